# SPDX-License-Identifier: MIT
"""What libs6.so does around a prefill's products and scans, small products, and sampling.

The structures mirror include/s6/prefill.h, quant_linear.h, int8_linear.h and sample.h field by
field; addresses are of the GPU. Importing this loads nothing heavy.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

from pipeline.s6_library import Problem

Fields = list[tuple[str, Any]]

_POINTER = ctypes.c_void_p
_INT32, _INT64, _FLOAT = ctypes.c_int32, ctypes.c_int64, ctypes.c_float

#: S6DataType.
FLOAT32, FLOAT16 = 0, 1

#: Most rows of activations that `QuantLinearProblem` takes.
FEW_TOKENS = 8

#: What divides the columns of its matrix, which it reads in vectors.
VECTOR_COLUMNS = 8


class EmbeddingRowsProblem(Problem):
    """S6EmbeddingRows."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        *((name, _INT32) for name in ("tokens", "m", "vocab_rows", "bits", "group_size")),
        *((name, _POINTER) for name in ("table", "scales", "token_ids", "x")),
    ]


class AddRmsNormProblem(Problem):
    """S6AddRmsNorm."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        ("rows", _INT32),
        ("m", _INT32),
        ("eps", _FLOAT),
        *((name, _POINTER) for name in ("x", "delta", "weight", "sum", "y")),
        ("x_row", _INT64),
        ("y_scales", _POINTER),
    ]


class SliceNormsProblem(Problem):
    """S6SliceNorms."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        *((name, _INT32) for name in ("rows", "r", "n")),
        ("eps", _FLOAT),
        ("x", _POINTER),
        ("x_row", _INT64),
    ]


class DequantiseProblem(Problem):
    """S6Dequantise."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        *((name, _INT32) for name in ("rows", "columns", "bits", "group_size")),
        *((name, _POINTER) for name in ("words", "scales", "y")),
        ("scale_group", _INT64),
    ]


class ConvertProblem(Problem):
    """S6Convert."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        ("from_dtype", ctypes.c_int),
        ("to_dtype", ctypes.c_int),
        ("count", _INT64),
        ("x", _POINTER),
        ("y", _POINTER),
    ]


class QuantLinearProblem(Problem):
    """S6QuantLinear."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        *((name, _INT32) for name in ("tokens", "rows", "columns", "bits", "group_size")),
        ("y_dtype", ctypes.c_int),
        ("add", _INT32),
        *((name, _POINTER) for name in ("weight", "scales", "x", "y")),
        *((name, _INT64) for name in ("scale_group", "x_row", "y_row")),
    ]


class QuantiseRowsProblem(Problem):
    """S6QuantiseRows."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        *((name, _INT32) for name in ("tokens", "columns")),
        *((name, _POINTER) for name in ("x", "codes", "scales")),
        ("x_row", _INT64),
    ]


class Int8LinearProblem(Problem):
    """S6Int8Linear."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        *((name, _INT32) for name in ("tokens", "rows", "columns", "group_size")),
        ("y_dtype", ctypes.c_int),
        ("add", _INT32),
        *((name, _POINTER) for name in ("weight", "weight_scales", "codes", "scales", "y")),
        ("y_row", _INT64),
    ]


class SampleProblem(Problem):
    """S6Sample."""

    _fields_: ClassVar[Fields] = [
        ("struct_size", ctypes.c_size_t),
        ("b", _INT32),
        ("vocab", _INT32),
        *((name, _POINTER) for name in ("logits", "temperature", "top_k", "top_p")),
        *((name, _POINTER) for name in ("seed", "draws", "next_ids")),
        ("logits_row", _INT64),
    ]
