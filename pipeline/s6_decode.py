# SPDX-License-Identifier: MIT
"""Calls the decode step of libs6.so: one token through a whole model in one launch.

The structures mirror include/s6/decode.h field by field. Like `s6_library`, this neither
allocates nor synchronises, and imports nothing heavy.
"""

from __future__ import annotations

import ctypes
from typing import Any

from pipeline.errors import PluginError
from pipeline.s6_library import load_library

MAX_BATCH = 8

_POINTER = ctypes.c_void_p


class Matrix(ctypes.Structure):
    """S6Matrix: a weight matrix of every block, or the one of embedding or head.

    Attributes:
        bits: 16, 8 or 4.
        group_size: Columns that share a scale; 0 for 16 bits.
        data: Device pointer to the first block's matrix [rows, columns].
        scales: Device pointer to its float16 scales [groups, rows]; None for 16 bits.
        layer_bytes: From a block's matrix to the next block's.
        scales_layer_bytes: From a block's scales to the next block's.
    """

    _fields_ = [
        ("bits", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("data", _POINTER),
        ("scales", _POINTER),
        ("layer_bytes", ctypes.c_int64),
        ("scales_layer_bytes", ctypes.c_int64),
    ]


class Vector(ctypes.Structure):
    """S6Vector: a float32 vector or small table of every block."""

    _fields_ = [("data", _POINTER), ("layer_bytes", ctypes.c_int64)]


class DecodeProblem(ctypes.Structure):
    """S6Decode."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("b", "m", "d", "n", "k", "r", "layers")),
        *((name, ctypes.c_int32) for name in ("vocab", "vocab_rows", "sm_count")),
        ("norm_eps", ctypes.c_float),
        ("mixer_norm_eps", ctypes.c_float),
        *((name, Matrix) for name in ("embedding", "in_proj", "x_proj", "dt_proj")),
        *((name, Matrix) for name in ("out_proj", "head")),
        *((name, Vector) for name in ("norm", "conv_weight", "conv_bias", "dt_bias", "A", "D")),
        *((name, _POINTER) for name in ("final_norm", "token_ids", "x", "y")),
        *((name, _POINTER) for name in ("conv_state", "ssm_state", "logits", "next_ids")),
        ("workspace", _POINTER),
    ]

    def __init__(self, **fields: object) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


def decode(problem: DecodeProblem, stream: int) -> None:
    """Enqueues one token of each text on a CUDA stream.

    Raises:
        PluginError: The library refuses the problem, or CUDA the launch.
    """
    status = _function("s6_decode", ctypes.c_int, _POINTER)(ctypes.byref(problem), stream)
    _raise_unless_ok("s6_decode", status)


def check(problem: DecodeProblem) -> None:
    """Asks the library, without a device, whether it takes a problem.

    Raises:
        PluginError: It does not; with its reason.
    """
    status = _function("s6_decode_check", ctypes.c_int)(ctypes.byref(problem))
    _raise_unless_ok("s6_decode_check", status)


def workspace_bytes(problem: DecodeProblem) -> int:
    """Bytes of device memory that `problem.workspace` must point to, zeroed once before use."""
    return int(_function("s6_decode_workspace_bytes", ctypes.c_size_t)(ctypes.byref(problem)))


def most_texts(problem: DecodeProblem, shared_bytes: int) -> int:
    """Texts, up to MAX_BATCH, that a call takes where a block may have so much shared memory.

    Args:
        problem: Its `b` does not count; `sm_count` is the device's.
        shared_bytes: See `cuda_driver.GpuFacts`.
    """
    function = _function("s6_decode_most_texts", ctypes.c_int32, ctypes.c_int32)
    return int(function(ctypes.byref(problem), shared_bytes))


def _function(name: str, result: type, *arguments: type) -> Any:
    """One of the library that takes a problem, and these arguments after it."""
    function = getattr(load_library(), name)
    function.restype = result
    function.argtypes = [ctypes.POINTER(DecodeProblem), *arguments]
    return function


def _raise_unless_ok(name: str, status: int) -> None:
    if status != 0:
        text = load_library().s6_status_text(status).decode()
        raise PluginError(f"{name}: {text} (status {status})")
