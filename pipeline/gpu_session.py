# SPDX-License-Identifier: MIT
"""A session on the GPU, whatever reads and steps there: states, batches, logits, decoding ahead."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_decode import Choice, Lane
from pipeline.cuda_driver import Gpu, GpuFacts, Stream
from pipeline.cuda_state import CudaState, StatePool
from pipeline.cuda_weights import DeviceWeights
from pipeline.errors import UsageError
from pipeline.gpu_parts import Reader, Stepper
from pipeline.session import Floats, State, TokenIds

logger = logging.getLogger(__name__)

_IDLE_LANES = 2

Ids = npt.NDArray[np.int32]


def like_parts(batch: int, most: int) -> list[slice]:
    """The texts that are stepped at once: in as few parts as can be, of about the same size.

    So that no text is left alone where three or more are stepped at once: it would go through a
    kernel of its own, which rounds otherwise, and its answer would depend on how many others there
    are.

    Args:
        batch: Texts, at least 1.
        most: That are stepped at once.
    """
    count = math.ceil(batch / most)
    return [slice(i * batch // count, (i + 1) * batch // count) for i in range(count)]


class GpuSession:
    """Runs a model on the GPU; see `session.Session` and `session.DecodesAhead`.

    Args:
        backend: Name of what computes.
        gpu: Where to run.
        stream: Where everything is enqueued.
        architecture: Sizes of the model.
        weights: On the GPU.
        reader: Reads stretches of text.
        stepper: Reads single tokens.
        max_batch: Texts at once.
    """

    def __init__(
        self,
        backend: str,
        gpu: Gpu,
        stream: Stream,
        architecture: MambaArchitecture,
        weights: DeviceWeights,
        reader: Reader,
        stepper: Stepper,
        max_batch: int,
    ) -> None:
        self.backend = backend
        self._gpu, self._stream, self._architecture = gpu, stream, architecture
        self._weights, self._reader, self._stepper = weights, reader, stepper
        self._max_batch, self._most_texts = max_batch, stepper.most_texts
        self._pool = StatePool(gpu, stream, architecture)
        if stepper.refusal is not None:
            logger.warning(
                "decoding goes the slow way, as a prefill of one token: %s", stepper.refusal
            )
        self._ids = gpu.allocate(4 * max_batch, "token ids")
        logit_bytes = 4 * min(max_batch, self._most_texts) * architecture.vocab_size
        self._logits = gpu.allocate(logit_bytes, "logits")
        self._host_logits = gpu.allocate_pinned((max_batch, architecture.vocab_size), np.float32)
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
    def memory_bytes(self) -> dict[str, int]:
        """Memory of the GPU that the session holds, states apart, by what it is for."""
        return {
            "weights": self._weights.memory.size,
            **self._reader.memory_bytes,
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
        for number, part in enumerate(like_parts(batch, self._most_texts)):
            rows = token_ids[part]
            after = self._pool.new(len(rows))
            if before is None:
                self._reader.state.enter(len(rows), None, None)
            else:
                source = before.buffers[number]
                self._reader.state.enter(len(rows), source.conv, source.ssm)
            self._read(rows, logits[part], all_logits=all_logits)
            self._reader.state.leave(len(rows), after.conv, after.ssm)
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
        most = self._reader.most_length(batch, all_logits=all_logits)
        for begin in range(0, length, most):
            piece: Ids = np.ascontiguousarray(rows[:, begin : begin + most], dtype=np.int32)
            self._stream.write(self._reader.token_ids, piece)
            if all_logits:
                for part in self._reader.read_with_logits(*piece.shape):
                    first = begin + part.first
                    self._read_logits(logits[part.text, first : first + part.rows], part.address)
            else:
                self._reader.read(*piece.shape)
        if not all_logits:
            self._read_logits(logits, self._reader.logits)

    def _read_logits(self, to: Floats, source: int) -> None:
        self._stream.read(to.ctypes.data, source, to.nbytes)

    def _on_gpu(self, state: State) -> CudaState:
        if isinstance(state, CudaState):
            return state
        return CudaState(
            self._pool,
            [
                self._pool.upload(state.conv[:, part], state.ssm[:, part])
                for part in like_parts(state.batch, self._most_texts)
            ],
        )

    def _refuse_large(self, batch: int) -> None:
        if batch > self._max_batch:
            raise UsageError(
                f"{batch} texts at once; the engine was built for {self._max_batch}",
                fix="build it again with a larger --max-batch",
            )
