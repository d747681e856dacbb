# SPDX-License-Identifier: MIT
"""The double-precision oracle, called from Python, and what a GPU test needs to run at all."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from pipeline import s6_library
from pipeline.errors import PluginError

BUILDS = Path(__file__).resolve().parents[2] / "plugin" / "build"


def require_gpu():
    """Returns torch, or skips with the reason."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        s6_library.load_library()
    except PluginError as error:
        pytest.skip(str(error))
    return torch


def load_oracle() -> ctypes.CDLL:
    """Loads libs6_reference.so from any build of plugin/, or skips."""
    found = sorted(BUILDS.glob("*/libs6_reference.so"), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.skip("libs6_reference.so is not built: cmake --preset host in plugin/")
    return ctypes.CDLL(str(found[-1]))


def _double(array):
    return None if array is None else np.ascontiguousarray(array, dtype=np.float64)


def _at(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def selective_scan(
    u,
    delta,
    A,
    B,
    C,
    *,
    D=None,
    z=None,
    delta_bias=None,
    state_in=None,
    lengths=None,
    delta_softplus=True,
):
    """Returns (y, state) in double precision; arguments as in pipeline.s6_library, numpy."""
    b, length, d = u.shape
    n = A.shape[0]
    y, state = np.empty((b, length, d)), np.empty((b, n, d))
    arrays = [_double(x) for x in (u, delta, A, B, C, D, z, delta_bias, state_in)]
    rows = None if lengths is None else np.ascontiguousarray(lengths, dtype=np.int32)
    load_oracle().s6_reference_selective_scan(
        b,
        length,
        d,
        n,
        int(delta_softplus),
        *(_at(x) for x in arrays),
        _at(rows),
        _at(y),
        _at(state),
    )
    return y, state


def causal_conv1d(x, weight, *, bias=None, state_in=None, lengths=None, silu=True):
    """Returns (y, state) in double precision."""
    b, length, d = x.shape
    k = weight.shape[0]
    y, state = np.empty((b, length, d)), np.empty((b, k - 1, d))
    arrays = [_double(v) for v in (x, weight, bias, state_in)]
    rows = None if lengths is None else np.ascontiguousarray(lengths, dtype=np.int32)
    load_oracle().s6_reference_causal_conv1d(
        b, length, d, k, int(silu), *(_at(v) for v in arrays), _at(rows), _at(y), _at(state)
    )
    return y, state


def relative_error(found, wanted) -> float:
    """||found - wanted|| / ||wanted|| over all elements; NaN stays NaN and fails any bound."""
    found = np.asarray(found, dtype=np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
