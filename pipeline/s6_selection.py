# SPDX-License-Identifier: MIT
"""delta, B and C of a stretch in one call of libs6.so: include/s6/selection.h.

Importing this loads nothing heavy.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

from pipeline.architecture import MambaArchitecture
from pipeline.s6_library import Problem

#: What the kernel takes; the header has the same numbers.
STATE = 16
RANK_MULTIPLE = 16
MAX_RANK = 48
CHANNELS = 128

_FEW_CHANNELS = 512
_FEW_MULTIPROCESSORS = 8


class SelectionProblem(Problem):
    """S6Selection."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("tokens", "d", "r", "n")),
        *((name, ctypes.c_void_p) for name in ("u", "x_proj", "dt_proj", "delta", "B", "C")),
    ]


def takes_selection(architecture: MambaArchitecture) -> bool:
    """Whether the kernel takes a model's x_proj and dt_proj: the smallest ones', without norms."""
    a = architecture
    return (
        a.mixer_norm_eps is None
        and a.d_state == STATE
        and a.dt_rank % RANK_MULTIPLE == 0
        and a.dt_rank <= MAX_RANK
        and a.d_inner % CHANNELS == 0
    )


def prefers_selection(architecture: MambaArchitecture, multiprocessors: int) -> bool:
    """Whether the kernel is faster than two products of cuBLAS, too: docs/lab_note_prefill.md.

    A block of it is busy for long and reads all weights, so a large GPU is left half empty, and
    only products that are too small for cuBLAS gain there.
    """
    few = architecture.d_inner <= _FEW_CHANNELS or multiprocessors <= _FEW_MULTIPROCESSORS
    return takes_selection(architecture) and few
