# SPDX-License-Identifier: MIT
"""Matrix products of half-precision tensors on the GPU, by NVIDIA's cuBLAS.

Called through its C interface, which has been the same since version 11, so nothing is compiled
against it. JetPack brings it with `libcublas-12-6`, a desktop with the CUDA toolkit.

cuBLAS reads matrices column by column. A row-major y (tokens, rows) = x (tokens, columns) times
the transpose of weight (rows, columns) is, read that way, y' = weight'^T x' with the leading
dimensions being the row strides: no tensor is moved or transposed.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from pipeline.cuda_driver import DeviceMemory, Gpu, Stream, find_nvidia_library
from pipeline.errors import BackendError

# cublas_api.h and library_types.h.
_TRANSPOSE, _AS_IS = 1, 0
_FLOAT32, _FLOAT16 = 0, 2
_COMPUTE_FLOAT32 = 68
_DEFAULT_ALGORITHM = -1

# Given to cuBLAS once, so that it never allocates by itself, which a graph could not repeat.
# NVIDIA recommends 32 MiB for Hopper and 4 MiB for others.
_WORKSPACE_BYTES = {9: 32 << 20}
_WORKSPACE_BYTES_ELSEWHERE = 4 << 20


class Product(NamedTuple):
    """One y = x weight^T, or y += x weight^T.

    Attributes:
        weight: Address of (rows, columns) float16, dense.
        rows: Outputs of a token.
        columns: Inputs of a token.
        x: Address of (tokens, columns) float16.
        x_row: Elements from one token of x to the next.
        tokens: How many.
        y: Address of (tokens, rows) float16 or, if `wide`, float32.
        y_row: Elements from one token of y to the next.
        wide: Whether y is float32.
        add: Whether y is added to, instead of overwritten.
    """

    weight: int
    rows: int
    columns: int
    x: int
    x_row: int
    tokens: int
    y: int
    y_row: int
    wide: bool = False
    add: bool = False


def gemm_arguments(p: Product) -> tuple[int | None, ...]:
    """What cublasGemmEx takes for a product, the addresses of the factors left out as None."""
    return (
        *(_TRANSPOSE, _AS_IS, p.rows, p.tokens, p.columns),
        *(None, p.weight, _FLOAT16, p.columns),
        *(p.x, _FLOAT16, p.x_row),
        *(None, p.y, _FLOAT32 if p.wide else _FLOAT16, p.y_row),
        *(_COMPUTE_FLOAT32, _DEFAULT_ALGORITHM),
    )


class Cublas:
    """cuBLAS on one stream, with a workspace of its own.

    Attributes:
        version: For example "12.6.4".
        workspace_bytes: Memory it holds for itself.

    Raises:
        BackendError: The library is missing or refuses.
    """

    def __init__(self, gpu: Gpu, stream: Stream) -> None:
        self._library = _load()
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self.workspace_bytes = _WORKSPACE_BYTES.get(
            int(gpu.facts.compute_capability.split(".", maxsplit=1)[0]), _WORKSPACE_BYTES_ELSEWHERE
        )
        self._workspace: DeviceMemory = gpu.allocate(self.workspace_bytes, "cuBLAS")
        # In this order: setting the stream takes a workspace away.
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream.handle))
        self._call(
            "cublasSetWorkspace_v2",
            self._handle,
            ctypes.c_void_p(self._workspace.pointer),
            ctypes.c_size_t(self.workspace_bytes),
        )
        number = ctypes.c_int()
        self._call("cublasGetVersion_v2", self._handle, ctypes.byref(number))
        self.version = f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self._gemm = self._library.cublasGemmEx
        integer, address = ctypes.c_int, ctypes.c_void_p
        self._gemm.argtypes = [
            *(address, integer, integer, integer, integer, integer),
            *(address, address, integer, integer),
            *(address, integer, integer),
            *(address, address, integer, integer),
            *(integer, integer),
        ]

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.cublasDestroy_v2(self._handle)

    def enqueue(self, product: Product) -> None:
        """Enqueues one product; an empty one is left out.

        Raises:
            BackendError: cuBLAS refuses it.
        """
        if product.tokens == 0:
            return
        arguments = list(gemm_arguments(product))
        arguments[5] = ctypes.addressof(self._one)
        arguments[12] = ctypes.addressof(self._one if product.add else self._zero)
        status = self._gemm(self._handle, *arguments)
        if status != 0:
            self._raise("cublasGemmEx", status)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            self._raise(name, status)

    def _raise(self, name: str, status: int) -> None:
        text = self._library.cublasGetStatusString(status).decode()
        raise BackendError(
            f"cuBLAS refused {name}: {text}",
            fix="if memory ran out, build with a smaller --max-length; otherwise report it with "
            "`mamba-orin board --json`",
        )


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(find_nvidia_library("cublas"))
    except (FileNotFoundError, OSError) as error:
        raise BackendError(
            f"cuBLAS was not found: {error}",
            fix="on a Jetson: sudo apt install libcublas-12-6; elsewhere install the CUDA toolkit "
            "or pip install nvidia-cublas",
        ) from error
    library.cublasGetStatusString.restype = ctypes.c_char_p
    library.cublasGetStatusString.argtypes = [ctypes.c_int]
    return library
