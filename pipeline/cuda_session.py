# SPDX-License-Identifier: MIT
"""A bundle straight on the GPU: the kernels of libs6.so and cuBLAS, nothing between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_decode import MAX_BATCH, Choice, Lane, Stepper
from pipeline.cuda_driver import Gpu, GpuFacts, Stream, open_gpu
from pipeline.cuda_prefill import Prefill
from pipeline.cuda_state import CudaState, StatePool
from pipeline.cuda_weights import upload
from pipeline.errors import BackendError, PluginError, UsageError
from pipeline.manifest import Precision
from pipeline.s6_library import call, find_library
from pipeline.s6_prefill import FLOAT16, FLOAT32, ConvertProblem
from pipeline.session import Floats, State, TokenIds
from pipeline.settings import Progress, no_progress

logger = logging.getLogger(__name__)

# Widths that the kernels read in whole vectors must be multiples of this.
_WIDTH_MULTIPLE = 8
_IDLE_LANES = 2

Ids = npt.NDArray[np.int32]


class CudaSession:
    """Runs a bundle on the GPU; see `session.Session` and `session.DecodesAhead`.

    Args:
        bundle: Folder of the weight file; the caller has checked its manifest.
        architecture: Sizes of the model.
        max_batch: Texts at once.
        max_length: Tokens of one prefill over all texts; longer stretches are read in pieces.
        progress: Told bytes of weights that are there and bytes in all.

    Raises:
        ModuleNotFoundError: The package cuda-bindings is not installed.
        BackendError: There is no GPU, a library is missing, or the model is not one this backend
            runs or does not fit.
        PluginError: libs6.so is missing, or was built for another GPU.
    """

    backend = "cuda"

    def __init__(
        self,
        bundle: Path,
        architecture: MambaArchitecture,
        max_batch: int,
        max_length: int,
        progress: Progress = no_progress,
    ) -> None:
        refuse_odd_widths(architecture)
        self._architecture = architecture
        self._max_batch, self._max_tokens = max_batch, max(max_length, MAX_BATCH)
        self._gpu = open_gpu()
        self._stream = self._gpu.new_stream()
        refuse_foreign_library(self._gpu, self._stream)
        self._weights = upload(self._gpu, self._stream, bundle, architecture, progress)
        self._prefill = Prefill(
            self._gpu, self._stream, architecture, self._weights, self._max_tokens
        )
        self._pool = StatePool(self._gpu, self._stream, architecture)
        self._stepper = Stepper(self._gpu, self._stream, architecture, self._weights, self._prefill)
        if self._stepper.refusal is not None:
            logger.warning(
                "decoding goes the slow way, as a prefill of one token: %s", self._stepper.refusal
            )
        self._ids = self._gpu.allocate(4 * max_batch, "token ids")
        logit_bytes = 4 * min(max_batch, MAX_BATCH) * architecture.vocab_size
        self._logits = self._gpu.allocate(logit_bytes, "logits")
        self._host_logits = self._gpu.allocate_pinned(
            (max_batch, architecture.vocab_size), np.float32
        )
        self._lanes: list[Lane] = []

    @property
    def architecture(self) -> MambaArchitecture:
        """Sizes of the loaded model."""
        return self._architecture

    @property
    def gpu(self) -> GpuFacts:
        """The GPU it runs on."""
        return self._gpu.facts

    @property
    def cublas_version(self) -> str:
        """Version of cuBLAS, for example "12.6.4"."""
        return self._prefill.cublas.version

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Memory of the GPU that the session holds, states apart, by what it is for."""
        return {
            "weights": self._weights.memory.size,
            "activations": self._prefill.activation_bytes,
            "unpacked weights": self._prefill.weights.scratch_bytes,
            "cuBLAS": self._prefill.cublas.workspace_bytes,
            "decoding": self._stepper.workspace_bytes + self._logits.size,
        }

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        """See `session.Session.prefill`."""
        self._gpu.use_here()
        batch, length = token_ids.shape
        self._refuse_large(batch)
        before = None if state is None else self._on_gpu(state)
        vocab = self._architecture.vocab_size
        shape = (batch, length, vocab) if all_logits else (batch, vocab)
        logits = np.empty(shape, dtype=np.float32) if all_logits else self._host_logits.array
        buffers = []
        for number, first in enumerate(range(0, batch, MAX_BATCH)):
            rows = token_ids[first : first + MAX_BATCH]
            after = self._pool.new(len(rows))
            if before is None:
                self._prefill.enter(len(rows), None, None)
            else:
                source = before.buffers[number]
                self._prefill.enter(len(rows), source.conv, source.ssm)
            self._read(rows, logits[first : first + len(rows)], all_logits=all_logits)
            self._prefill.leave(len(rows), after.conv, after.ssm)
            buffers.append(after)
        self._stream.finish()
        return (logits if all_logits else logits[:batch].copy()), CudaState(self._pool, buffers)

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        """See `session.Session.step`."""
        self._gpu.use_here()
        here = self._on_gpu(state)
        batch = here.batch
        self._refuse_large(batch)
        self._stream.write(self._ids.pointer, token_ids.astype(np.int32))
        first = 0
        for buffer in here.buffers:
            self._stepper.enqueue(buffer, self._ids.pointer + 4 * first, self._logits.pointer)
            self._read_logits(
                self._host_logits.array[first : first + buffer.batch], self._logits.pointer
            )
            first += buffer.batch
        self._stream.finish()
        return self._host_logits.array[:batch].copy(), here.changed()

    def decode_tokens(
        self,
        logits: Floats,
        state: State,
        count: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """See `session.DecodesAhead.decode_tokens`."""
        self._gpu.use_here()
        (buffer,) = self._on_gpu(state).buffers
        lane = self._lanes.pop() if self._lanes else self._new_lane()
        try:
            choice = Choice(temperature, min(top_k, 2**31 - 1), top_p, seed % 2**64)
            yield from lane.run(logits, buffer, count, choice)
        finally:
            if len(self._lanes) < _IDLE_LANES:
                self._lanes.append(lane)

    def _new_lane(self) -> Lane:
        return Lane(self._gpu, self._stream, self._stepper, self._architecture.vocab_size)

    def _read(self, rows: TokenIds, logits: Floats, *, all_logits: bool) -> None:
        """Reads the tokens (b, l) of a few texts; fills logits (b, l, vocab) or (b, vocab)."""
        batch, length = rows.shape
        most = self._max_tokens // batch
        for begin in range(0, length, most):
            piece = np.ascontiguousarray(rows[:, begin : begin + most], dtype=np.int32)
            self._stream.write(self._prefill.token_ids, piece)
            self._prefill.read(*piece.shape)
            if all_logits:
                self._read_all_logits(logits[:, begin : begin + piece.shape[1]])
        if not all_logits:
            self._read_logits(logits, self._prefill.logits)

    def _read_all_logits(self, logits: Floats) -> None:
        """Writes the logits (b, l, vocab) after each token of the piece that was read last."""
        length = logits.shape[1]
        for text, of_text in enumerate(logits):
            for first in range(0, length, self._prefill.logit_rows):
                part = of_text[first : first + self._prefill.logit_rows]
                self._prefill.enqueue_logits(text * length + first, len(part))
                self._read_logits(part, self._prefill.logits)

    def _read_logits(self, to: Floats, source: int) -> None:
        self._stream.read(to.ctypes.data, source, to.nbytes)

    def _on_gpu(self, state: State) -> CudaState:
        if isinstance(state, CudaState):
            return state
        groups = range(0, state.batch, MAX_BATCH)
        return CudaState(
            self._pool,
            [
                self._pool.upload(
                    state.conv[:, first : first + MAX_BATCH],
                    state.ssm[:, first : first + MAX_BATCH],
                )
                for first in groups
            ],
        )

    def _refuse_large(self, batch: int) -> None:
        if batch > self._max_batch:
            raise UsageError(
                f"{batch} texts at once; the engine was built for {self._max_batch}",
                fix="build it again with a larger --max-batch",
            )


def refuse_float32(precision: Precision) -> None:
    """Refuses bundles with float32 matrices.

    Raises:
        BackendError: The precision is fp32.
    """
    if precision == "fp32":
        raise BackendError(
            "the bundle holds float32 matrices; the cuda backend multiplies in float16",
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
