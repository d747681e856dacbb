# SPDX-License-Identifier: MIT
"""Calls the S6 kernels of libs6.so on tensors that already live on a GPU.

Works through ctypes on anything with a data pointer, a shape, strides and a dtype (torch or CuPy),
so there is nothing to compile against torch. Does not allocate, copy or synchronise, except for
`selective_scan_fn`, which converts the layout that mamba-ssm users have.

Invariants: importing this module loads no heavy package; every refusal of the library becomes a
`PluginError` with the library's own text.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from pipeline.errors import PluginError

LIBRARY_NAME = "libs6.so"
LIBRARY_VARIABLE = "MAMBA_ORIN_S6_LIBRARY"
PLUGIN_LIBRARY_NAME = "libs6_plugin.so"
PLUGIN_LIBRARY_VARIABLE = "MAMBA_ORIN_S6_PLUGIN"

#: S6DataType by the last part of a dtype's name.
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}

#: S6ScanVariant by name.
VARIANTS = {"auto": 0, "generic": 1, "lane": 2, "relay": 3}

_POINTER = ctypes.c_void_p
_STRIDED = ("u", "delta", "z", "B", "C", "y")


class Problem(ctypes.Structure):
    """A structure of the library's that tells it its own size, to be filled by keyword."""

    def __init__(self, **fields: object) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class SelectiveScanProblem(Problem):
    """S6SelectiveScan of include/s6/selective_scan.h, field by field."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("b", ctypes.c_int32),
        ("l", ctypes.c_int32),
        ("d", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("delta_softplus", ctypes.c_int32),
        ("sm_count", ctypes.c_int32),
        ("variant", ctypes.c_int),
        ("u", _POINTER),
        ("delta", _POINTER),
        ("A", _POINTER),
        ("B", _POINTER),
        ("C", _POINTER),
        ("D", _POINTER),
        ("z", _POINTER),
        ("delta_bias", _POINTER),
        ("state_in", _POINTER),
        ("state_out", _POINTER),
        ("y", _POINTER),
        ("lengths", _POINTER),
        *((f"{name}_row", ctypes.c_int64) for name in _STRIDED),
        *((f"{name}_batch", ctypes.c_int64) for name in _STRIDED),
    ]


class CausalConv1dProblem(Problem):
    """S6CausalConv1d of include/s6/causal_conv1d.h, field by field."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("weight_dtype", ctypes.c_int),
        ("b", ctypes.c_int32),
        ("l", ctypes.c_int32),
        ("d", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("silu", ctypes.c_int32),
        ("x", _POINTER),
        ("weight", _POINTER),
        ("bias", _POINTER),
        ("state_in", _POINTER),
        ("state_out", _POINTER),
        ("y", _POINTER),
        ("lengths", _POINTER),
        ("x_row", ctypes.c_int64),
        ("y_row", ctypes.c_int64),
        ("x_batch", ctypes.c_int64),
        ("y_batch", ctypes.c_int64),
    ]


def find_library() -> Path:
    """Returns where libs6.so is; see `find_built`."""
    return find_built(LIBRARY_NAME, LIBRARY_VARIABLE)


def find_plugin_library() -> Path:
    """Returns where libs6_plugin.so is; see `find_built`."""
    return find_built(PLUGIN_LIBRARY_NAME, PLUGIN_LIBRARY_VARIABLE)


def find_built(name: str, variable: str) -> Path:
    """Returns where a library is that plugin/ builds.

    Looked for where the environment variable says, then among this checkout's builds, newest first.

    Args:
        name: Of the file.
        variable: Of the environment.

    Raises:
        PluginError: if there is none.
    """
    named = os.environ.get(variable)
    if named:
        if Path(named).is_file():
            return Path(named)
        raise PluginError(
            f"{variable} names {named}, which is not a file", fix=f"correct or unset {variable}"
        )
    builds = Path(__file__).resolve().parent.parent / "plugin" / "build"
    found = [path for path in builds.glob(f"*/{name}") if path.is_file()]
    if not found:
        raise PluginError(
            f"{name} was not found under {builds}",
            fix="build it: in plugin/, cmake --preset orin && cmake --build --preset orin; or set "
            f"{variable}",
        )
    return max(found, key=lambda path: path.stat().st_mtime)


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads libs6.so once.

    Raises:
        PluginError: if it is missing or cannot be loaded.
    """
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise PluginError(f"{path} cannot be loaded: {error}") from error
    library.s6_status_text.restype = ctypes.c_char_p
    library.s6_status_text.argtypes = [ctypes.c_int]
    library.s6_version.restype = ctypes.c_char_p
    return library


def selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    y: Any,
    *,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    state_in: Any = None,
    state_out: Any = None,
    lengths: Any = None,
    delta_softplus: bool = True,
    sm_count: int = 0,
    variant: str = "auto",
    stream: int | None = None,
    step: bool = False,
) -> None:
    """Enqueues the selective scan; channels last, results into `y` and `state_out`.

    Args:
        u: (b, l, d) float16, bfloat16 or float32, on the GPU; any row and batch stride.
        delta: (b, l, d) like u, the step before bias and softplus.
        A: (n, d) float32, already -exp(A_log).
        B: (b, l, n) like u.
        C: (b, l, n) like u.
        y: (b, l, d) like u, overwritten.
        D: (d) float32 skip, or None.
        z: (b, l, d) like u, gate, or None.
        delta_bias: (d) float32, or None.
        state_in: (b, n, d) float32, or None for zero.
        state_out: (b, n, d) float32, overwritten, may be state_in; None if not wanted.
        lengths: (b) int32, tokens of each row, or None for all.
        delta_softplus: whether the step passes softplus.
        sm_count: multiprocessors the stream may use; 0 asks the device.
        variant: a name of `VARIANTS`.
        stream: CUDA stream handle; None takes torch's current one.
        step: use the single-token entry point (l must be 1).

    Raises:
        PluginError: if the library is missing or refuses the arguments.
    """
    b, length, d = _shape(u, "u", 3)
    n = _shape(A, "A", 2)[0]
    problem = SelectiveScanProblem(
        dtype=_dtype(u, "u"),
        b=b,
        l=length,
        d=d,
        n=n,
        delta_softplus=int(delta_softplus),
        sm_count=sm_count,
        variant=VARIANTS[variant],
    )
    name = _dtype_name(u)
    sequence, narrow = (b, length, d), (b, length, n)
    for field, tensor, shape in (
        ("u", u, sequence),
        ("delta", delta, sequence),
        ("z", z, sequence),
        ("B", B, narrow),
        ("C", C, narrow),
        ("y", y, sequence),
    ):
        if tensor is None:
            continue
        _require(tensor, field, shape, name)
        row, batch = _row_strides(tensor, field)
        setattr(problem, field, _pointer(tensor))
        setattr(problem, f"{field}_row", row)
        setattr(problem, f"{field}_batch", batch)
    dense: tuple[tuple[str, Any, tuple[int, ...], str], ...] = (
        ("A", A, (n, d), "float32"),
        ("D", D, (d,), "float32"),
        ("delta_bias", delta_bias, (d,), "float32"),
        ("state_in", state_in, (b, n, d), "float32"),
        ("state_out", state_out, (b, n, d), "float32"),
        ("lengths", lengths, (b,), "int32"),
    )
    for field, tensor, extent, wanted in dense:
        if tensor is None:
            continue
        _require(tensor, field, extent, wanted)
        _require_dense(tensor, field)
        setattr(problem, field, _pointer(tensor))
    _call("s6_selective_scan_step" if step else "s6_selective_scan", problem, stream)


def causal_conv1d(
    x: Any,
    weight: Any,
    y: Any,
    *,
    bias: Any = None,
    state_in: Any = None,
    state_out: Any = None,
    lengths: Any = None,
    silu: bool = True,
    stream: int | None = None,
    step: bool = False,
) -> None:
    """Enqueues the causal convolution; channels last, results into `y` and `state_out`.

    Args:
        x: (b, l, d) float16, bfloat16 or float32, on the GPU; any row and batch stride.
        weight: (k, d) any of the three types; weight[k - 1] meets the current token.
        y: (b, l, d) like x, overwritten.
        bias: (d) like weight, or None.
        state_in: (b, k - 1, d) like x, the inputs before this part, or None for zero.
        state_out: (b, k - 1, d) like x, overwritten, may be state_in; None if not wanted.
        lengths: (b) int32, tokens of each row, or None for all.
        silu: whether SiLU follows.
        stream: CUDA stream handle; None takes torch's current one.
        step: use the single-token entry point (l must be 1).

    Raises:
        PluginError: if the library is missing or refuses the arguments.
    """
    b, length, d = _shape(x, "x", 3)
    k = _shape(weight, "weight", 2)[0]
    problem = CausalConv1dProblem(
        dtype=_dtype(x, "x"),
        weight_dtype=_dtype(weight, "weight"),
        b=b,
        l=length,
        d=d,
        k=k,
        silu=int(silu),
    )
    for field, tensor in (("x", x), ("y", y)):
        _require(tensor, field, (b, length, d), _dtype_name(x))
        row, batch = _row_strides(tensor, field)
        setattr(problem, field, _pointer(tensor))
        setattr(problem, f"{field}_row", row)
        setattr(problem, f"{field}_batch", batch)
    for field, tensor, shape, wanted in (
        ("weight", weight, (k, d), _dtype_name(weight)),
        ("bias", bias, (d,), _dtype_name(weight)),
        ("state_in", state_in, (b, k - 1, d), _dtype_name(x)),
        ("state_out", state_out, (b, k - 1, d), _dtype_name(x)),
        ("lengths", lengths, (b,), "int32"),
    ):
        if tensor is None:
            continue
        _require(tensor, field, shape, wanted)
        _require_dense(tensor, field)
        setattr(problem, field, _pointer(tensor))
    _call("s6_causal_conv1d_step" if step else "s6_causal_conv1d", problem, stream)


def selective_scan_fn(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """Drop-in for mamba-ssm's `selective_scan_fn`, inference only, with nothing to compile.

    Tensors have mamba-ssm's channels-first layout and are copied to ours; call `selective_scan`
    instead where the layout can be chosen.

    Args:
        u: (b, d, l) torch tensor on the GPU, float16, bfloat16 or float32.
        delta: (b, d, l).
        A: (d, n) real.
        B: (b, n, l) or (b, 1, n, l), time-varying.
        C: like B.
        D: (d) or None.
        z: (b, d, l) or None.
        delta_bias: (d) or None.
        delta_softplus: whether the step passes softplus.
        return_last_state: also return the state, (b, d, n) float32.

    Returns:
        y (b, d, l), or (y, last_state).

    Raises:
        PluginError: for a complex A, grouped or constant B or C, tensors off the GPU, or what the
            library refuses.
    """
    if not getattr(u, "is_cuda", False):
        raise PluginError("u is not on a GPU; libs6.so runs there only")
    if "complex" in str(A.dtype):
        raise PluginError("A is complex; only real Mamba models are supported")
    B = _ungrouped(B, "B")
    C = _ungrouped(C, "C")
    b, d, length = _shape(u, "u", 3)
    n = _shape(A, "A", 2)[1]

    def channels_last(tensor: Any) -> Any:
        return None if tensor is None else tensor.to(u.dtype).transpose(1, 2).contiguous()

    def single(tensor: Any) -> Any:
        return None if tensor is None else tensor.float().contiguous()

    y = u.new_empty((b, length, d))
    state = A.new_empty((b, n, d), dtype=single(A).dtype) if return_last_state else None
    selective_scan(
        channels_last(u),
        channels_last(delta),
        A.float().t().contiguous(),
        channels_last(B),
        channels_last(C),
        y,
        D=single(D),
        z=channels_last(z),
        delta_bias=single(delta_bias),
        state_out=state,
        delta_softplus=delta_softplus,
    )
    out = y.transpose(1, 2)
    return (out, state.transpose(1, 2)) if state is not None else out


def _ungrouped(tensor: Any, name: str) -> Any:
    """Drops the group axis of (b, 1, n, l)."""
    if len(tensor.shape) == 4 and tensor.shape[1] == 1:
        return tensor[:, 0]
    if len(tensor.shape) != 3:
        raise PluginError(
            f"{name} has shape {tuple(tensor.shape)}; only (b, n, l) and (b, 1, n, l) are supported"
        )
    return tensor


def version() -> str:
    """Version of libs6.so.

    Raises:
        PluginError: if it is missing or cannot be loaded.
    """
    text: bytes = load_library().s6_version()
    return text.decode()


def call(function: str, problem: Problem, stream: int) -> None:
    """Enqueues one call of the library on a stream.

    Args:
        function: Its C name.
        problem: The structure it takes.
        stream: CUDA stream handle.

    Raises:
        PluginError: if the library is missing, too old to have the call, or refuses the arguments.
    """
    status = _function(function)(ctypes.byref(problem), stream)
    if status != 0:
        text = load_library().s6_status_text(status).decode()
        raise PluginError(f"{function}: {text} (status {status})")


@functools.cache
def _function(name: str) -> Any:
    try:
        function = getattr(load_library(), name)
    except AttributeError as error:
        raise PluginError(
            f"{find_library()} has no {name}: it is older than this checkout",
            fix="build it again: in plugin/, cmake --build --preset orin",
        ) from error
    function.restype = ctypes.c_int
    function.argtypes = [_POINTER, _POINTER]
    return function


def _call(function: str, problem: Problem, stream: int | None) -> None:
    call(function, problem, _current_stream() if stream is None else stream)


def _current_stream() -> int:
    import torch  # Only torch knows its current stream; other callers pass one.

    return int(torch.cuda.current_stream().cuda_stream)


def _shape(tensor: Any, name: str, rank: int) -> tuple[int, ...]:
    shape = tuple(int(size) for size in tensor.shape)
    if len(shape) != rank:
        raise PluginError(f"{name} has shape {shape}; {rank} dimensions are needed")
    return shape


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).rsplit(".", maxsplit=1)[-1]


def _dtype(tensor: Any, name: str) -> int:
    found = _dtype_name(tensor)
    if found not in DTYPES:
        raise PluginError(f"{name} is {found}; one of {', '.join(DTYPES)} is needed")
    return DTYPES[found]


def _require(tensor: Any, name: str, shape: tuple[int, ...], dtype: str) -> None:
    found = tuple(int(size) for size in tensor.shape)
    if found != shape:
        raise PluginError(f"{name} has shape {found}; {shape} is needed")
    if _dtype_name(tensor) != dtype:
        raise PluginError(f"{name} is {_dtype_name(tensor)}; {dtype} is needed")
    if hasattr(tensor, "is_cuda") and not tensor.is_cuda:
        raise PluginError(f"{name} is not on a GPU; libs6.so runs there only")


def _require_dense(tensor: Any, name: str) -> None:
    wanted = 1
    for size, stride in zip(reversed(tensor.shape), reversed(_strides(tensor)), strict=True):
        if size > 1 and stride != wanted:
            raise PluginError(f"{name} is not contiguous")
        wanted *= int(size)


def _row_strides(tensor: Any, name: str) -> tuple[int, int]:
    """Row and batch stride in elements; those of axes of length 1 mean nothing and become dense."""
    batch, row, last = _strides(tensor)
    b, length, width = tensor.shape
    if width > 1 and last != 1:
        raise PluginError(f"{name} is not contiguous in its last axis")
    return (row if length > 1 else 0), (batch if b > 1 else 0)


def _strides(tensor: Any) -> tuple[int, ...]:
    """Strides in elements, of torch (in elements already) and array-interface objects (bytes)."""
    if callable(getattr(tensor, "stride", None)):
        return tuple(int(stride) for stride in tensor.stride())
    return tuple(int(stride) // int(tensor.itemsize) for stride in tensor.strides)


def _pointer(tensor: Any) -> int:
    if callable(getattr(tensor, "data_ptr", None)):
        return int(tensor.data_ptr())
    interface = getattr(tensor, "__cuda_array_interface__", None) or tensor.__array_interface__
    return int(interface["data"][0])
