# SPDX-License-Identifier: MIT
"""A bundle straight on the GPU: the kernels of libs6.so and cuBLAS, nothing between."""

from __future__ import annotations

from pathlib import Path

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_decode import WholeTokenStepper
from pipeline.cuda_driver import Gpu, Stream, open_gpu
from pipeline.cuda_prefill import Prefill
from pipeline.cuda_weights import upload
from pipeline.errors import BackendError, PluginError
from pipeline.gpu_session import GpuSession
from pipeline.manifest import Activations, Precision
from pipeline.s6_decode import MAX_BATCH
from pipeline.s6_library import call, find_library
from pipeline.s6_prefill import FLOAT16, FLOAT32, ConvertProblem
from pipeline.settings import Progress, no_progress

# Widths that the kernels read in whole vectors must be multiples of this.
_WIDTH_MULTIPLE = 8


class CudaSession(GpuSession):
    """Runs a bundle on the GPU by libs6.so and cuBLAS.

    Args:
        bundle: Folder of the weight file; the caller has checked its manifest.
        architecture: Sizes of the model.
        max_batch: Texts at once.
        max_length: Tokens of one prefill over all texts; longer stretches are read in pieces.
        progress: Told bytes of weights that are there and bytes in all.
        activations: See `cuda_prefill.Prefill`.

    Raises:
        ModuleNotFoundError: The package cuda-bindings is not installed.
        BackendError: There is no GPU, a library is missing, or the model is not one this backend
            runs or does not fit.
        PluginError: libs6.so is missing, or was built for another GPU.
    """

    def __init__(
        self,
        bundle: Path,
        architecture: MambaArchitecture,
        max_batch: int,
        max_length: int,
        progress: Progress = no_progress,
        *,
        activations: Activations | None = None,
    ) -> None:
        refuse_odd_widths(architecture)
        gpu = open_gpu()
        stream = gpu.new_stream()
        refuse_foreign_library(gpu, stream)
        weights = upload(gpu, stream, bundle, architecture, progress)
        prefill = Prefill(
            gpu, stream, architecture, weights, max(max_length, MAX_BATCH), activations
        )
        stepper = WholeTokenStepper(gpu, stream, architecture, weights, prefill)
        super().__init__("cuda", gpu, stream, architecture, weights, prefill, stepper, max_batch)
        self._cublas = prefill.cublas

    @property
    def cublas_version(self) -> str:
        """Version of cuBLAS, for example "12.6.4"."""
        return self._cublas.version


def refuse_float32(precision: Precision) -> None:
    """Refuses bundles with float32 matrices.

    Raises:
        BackendError: The precision is fp32.
    """
    if precision == "fp32":
        raise BackendError(
            "the bundle holds float32 matrices; on the GPU products are of float16",
            fix="convert with --precision fp16, or build with --backend onnxruntime",
        )


def refuse_odd_widths(architecture: MambaArchitecture) -> None:
    """Refuses models whose rows the kernels cannot read in whole vectors.

    Raises:
        BackendError: A width is not a multiple of 8.
    """
    for name in ("d_model", "d_inner"):
        width = getattr(architecture, name)
        if width % _WIDTH_MULTIPLE:
            raise BackendError(
                f"{name} is {width}; the cuda backend runs models whose widths are multiples of "
                f"{_WIDTH_MULTIPLE}",
                fix="build with --backend onnxruntime",
            )


def refuse_foreign_library(gpu: Gpu, stream: Stream) -> None:
    """Refuses a libs6.so that holds no code for this GPU, by its smallest kernel.

    Raises:
        PluginError: It is missing, or was built for another GPU.
    """
    memory = gpu.allocate(16, "a test of libs6.so")
    problem = ConvertProblem(
        from_dtype=FLOAT32, to_dtype=FLOAT16, count=1, x=memory.pointer, y=memory.pointer + 8
    )
    try:
        call("s6_convert", problem, stream.handle)
    except PluginError as error:
        facts = gpu.facts
        raise PluginError(
            f"{find_library()} has no code for {facts.name} (compute capability "
            f"{facts.compute_capability}): {error}",
            fix="build it for this GPU: in plugin/, cmake --preset orin "
            f"-DCMAKE_CUDA_ARCHITECTURES={facts.compute_capability.replace('.', '')}-real && "
            "cmake --build --preset orin",
        ) from error
    stream.finish()
