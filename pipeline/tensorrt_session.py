# SPDX-License-Identifier: MIT
"""A bundle on TensorRT: two plans that share one copy of the weights with each other.

States are read and written in place: an input and its output are the same memory, which our
operators allow and no layer of TensorRT's own touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_decode import most_texts
from pipeline.cuda_driver import DeviceMemory, Gpu, Stream, open_gpu
from pipeline.cuda_repeats import Repeats
from pipeline.cuda_session import refuse_foreign_library
from pipeline.cuda_stretch_state import StretchState
from pipeline.cuda_weights import upload
from pipeline.errors import PluginError
from pipeline.gpu_parts import LogitsPart, StateAddresses
from pipeline.gpu_session import GpuSession
from pipeline.s6_decode import MAX_BATCH
from pipeline.settings import Progress, no_progress
from pipeline.tensorrt_runtime import Plan, Profile, Run, Shape

PREFILL_PLAN = "prefill.plan"
STEP_PLAN = "step.plan"

# Tokens whose logits one run of a prefill gives at most; 26 MB for a vocabulary of 50,000.
_LOGIT_ROWS = 128
_HALF, _FLOAT, _INT32 = 2, 4, 4


@dataclass(frozen=True)
class StretchLimits:
    """What one profile of the prefill reads at once.

    Attributes:
        batch: Most texts.
        length: Most tokens of each.
        logits: Most tokens of each whose logits are given.
    """

    batch: int
    length: int
    logits: int


def stretch_limits(max_batch: int, max_length: int) -> list[StretchLimits]:
    """The profiles of a prefill: one text of full length, and several that share it.

    Memory for activations is taken for the largest product of texts and tokens, so several texts
    are read in shorter stretches.
    """
    limits = [StretchLimits(1, max_length, min(_LOGIT_ROWS, max_length))]
    texts = min(max_batch, MAX_BATCH)
    if texts > 1:
        length = max(max_length // texts, 1)
        limits.append(StretchLimits(texts, length, min(_LOGIT_ROWS // texts, length)))
    return limits


def prefill_profiles(architecture: MambaArchitecture, limits: list[StretchLimits]) -> list[Profile]:
    """Ranges of shapes of the graph `tensorrt_graphs.prefill_graph`."""
    a = architecture
    profiles: list[Profile] = []
    for limit in limits:
        first = min(2, limit.batch)
        batches = (first, limit.batch, limit.batch)
        profile: dict[str, tuple[Shape, Shape, Shape]] = {
            "token_ids": ((first, 1), (limit.batch, limit.length), (limit.batch, limit.length)),
            "logit_positions": ((1,), (1,), (limit.logits,)),
        }
        for layer in range(a.n_layer):
            for kind, rows in (("conv", a.d_conv - 1), ("ssm", a.d_state)):
                smallest, usual, largest = ((b, rows, a.d_inner) for b in batches)
                profile[f"{kind}_state_in.{layer}"] = (smallest, usual, largest)
        profiles.append(profile)
    return profiles


def step_profile(architecture: MambaArchitecture, max_batch: int) -> Profile:
    """Range of shapes of the graph `tensorrt_graphs.step_graph`."""
    a, most = architecture, min(max_batch, MAX_BATCH)

    def states(rows: int) -> tuple[Shape, Shape, Shape]:
        one, many = ((a.n_layer, b, rows, a.d_inner) for b in (1, most))
        return one, one, many

    return {
        "token_ids": ((1,), (1,), (most,)),
        "conv_state_in": states(a.d_conv - 1),
        "ssm_state_in": states(a.d_state),
    }


class TensorRtReader:
    """Reads stretches of text by a plan; see `gpu_parts.Reader`.

    Args:
        gpu: Where to run.
        stream: Where to enqueue.
        architecture: Sizes of the model.
        plan: Of `tensorrt_graphs.prefill_graph`.
        weights: Address of each weight, by its name.
        limits: Those the plan was built for.
        scratch: Memory for the plan.
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        architecture: MambaArchitecture,
        plan: Plan,
        weights: Mapping[str, int],
        limits: list[StretchLimits],
        scratch: DeviceMemory,
    ) -> None:
        self._stream, self._architecture, self._limits = stream, architecture, limits
        self._scratch = scratch
        tokens = max(limit.batch * limit.length for limit in limits)
        rows = max(limit.batch * limit.logits for limit in limits)
        self._ids = gpu.allocate(_INT32 * tokens, f"the ids of {tokens} tokens")
        self._positions = gpu.allocate(_INT32 * _LOGIT_ROWS, "positions")
        self._logits = gpu.allocate(
            _FLOAT * rows * architecture.vocab_size, f"the logits of {rows} tokens"
        )
        self.token_ids, self.logits = self._ids.pointer, self._logits.pointer
        self._repeats = Repeats(stream)
        self.state = StretchState(gpu, stream, architecture, self._repeats.forget)
        self._runs = []
        for number in range(len(limits)):
            run = plan.new_run(number, scratch.pointer, scratch.size, stream.handle)
            for name, address in weights.items():
                run.set_address(name, address)
            run.set_address("token_ids", self.token_ids)
            run.set_address("logit_positions", self._positions.pointer)
            run.set_address("logits", self.logits)
            self._runs.append(run)

    @property
    def memory_bytes(self) -> dict[str, int]:
        """See `gpu_parts.Reader`."""
        return {
            "activations": self._scratch.size,
            "token ids and logits": self._ids.size + self._positions.size + self._logits.size,
        }

    def most_length(self, batch: int, *, all_logits: bool) -> int:
        """See `gpu_parts.Reader`."""
        limit = self._limits[self._profile(batch)]
        return limit.logits if all_logits else limit.length

    def read(self, batch: int, length: int) -> None:
        """See `gpu_parts.Reader`."""
        self._read(batch, length, [length - 1])

    def read_with_logits(self, batch: int, length: int) -> Iterator[LogitsPart]:
        """See `gpu_parts.Reader`."""
        self._read(batch, length, list(range(length)))
        of_text = _FLOAT * length * self._architecture.vocab_size
        for text in range(batch):
            yield LogitsPart(text, 0, length, self.logits + text * of_text)

    def enqueue(self, batch: int, length: int, positions: int) -> None:
        """Enqueues a stretch as one execution.

        Args:
            batch: Texts.
            length: Tokens of each.
            positions: How many tokens of each get logits.
        """
        self._run_of(batch, length, positions).enqueue(self._stream.handle)

    def layer_times(self, batch: int, length: int) -> list[tuple[str, float]]:
        """Reads a stretch and tells the layers of the plan with their milliseconds, in order."""
        return self._run_of(batch, length, 1).layer_times(self._stream.handle)

    def _run_of(self, batch: int, length: int, positions: int) -> Run:
        """A run that has its shapes and the addresses of the states."""
        a, run = self._architecture, self._runs[self._profile(batch)]
        conv, ssm = self.state.addresses(batch)
        run.set_shape("token_ids", (batch, length))
        run.set_shape("logit_positions", (positions,))
        for kind, first, rows, element in (
            ("conv", conv, a.d_conv - 1, _HALF),
            ("ssm", ssm, a.d_state, _FLOAT),
        ):
            shape = (batch, rows, a.d_inner)
            of_layer = element * batch * rows * a.d_inner
            for layer in range(a.n_layer):
                run.set_shape(f"{kind}_state_in.{layer}", shape)
                address = first + layer * of_layer
                run.set_address(f"{kind}_state_in.{layer}", address)
                run.set_address(f"{kind}_state_out.{layer}", address)
        return run

    def _read(self, batch: int, length: int, positions: list[int]) -> None:
        self._stream.write(self._positions.pointer, np.array(positions, dtype=np.int32))
        count = len(positions)
        self._repeats.run((batch, length, count), lambda: self.enqueue(batch, length, count))

    def _profile(self, batch: int) -> int:
        return 0 if batch == 1 else 1


class TensorRtStepper:
    """Reads single tokens by a plan; see `gpu_parts.Stepper`.

    Every number of texts has a run of its own, whose shapes never change: so its work can be part
    of a graph.

    Args:
        gpu: Where to run.
        stream: Where to enqueue.
        architecture: Sizes of the model.
        plan: Of `tensorrt_graphs.step_graph`.
        weights: Address of the image of the weights.
        scratch: Memory for the plan.
        max_batch: Texts at once.
    """

    refusal: str | None = None

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        architecture: MambaArchitecture,
        plan: Plan,
        weights: int,
        scratch: DeviceMemory,
        max_batch: int,
    ) -> None:
        self._stream, self._architecture = stream, architecture
        self._plan, self._weights, self._scratch = plan, weights, scratch
        self.most_texts = max_batch
        # What a caller does not want is written all the same.
        self._logits = gpu.allocate(_FLOAT * max_batch * architecture.vocab_size, "unwanted logits")
        self._next_ids = gpu.allocate(_INT32 * max_batch, "unwanted token ids")
        self._runs: dict[int, Run] = {}

    @property
    def workspace_bytes(self) -> int:
        """Memory it holds so far, the scratch apart that the reader counts."""
        return self._logits.size + self._next_ids.size

    def enqueue(
        self,
        buffer: StateAddresses,
        token_ids: int,
        logits: int | None,
        next_ids: int | None = None,
    ) -> None:
        """See `gpu_parts.Stepper`."""
        run = self._run_of(buffer.batch)
        run.set_address("token_ids", token_ids)
        run.set_address("next_ids", next_ids or self._next_ids.pointer)
        run.set_address("logits", logits or self._logits.pointer)
        for kind, address in (("conv", buffer.conv), ("ssm", buffer.ssm)):
            run.set_address(f"{kind}_state_in", address)
            run.set_address(f"{kind}_state_out", address)
        run.enqueue(self._stream.handle)

    def _run_of(self, batch: int) -> Run:
        if batch not in self._runs:
            a = self._architecture
            run = self._plan.new_run(
                0, self._scratch.pointer, self._scratch.size, self._stream.handle
            )
            run.set_shape("token_ids", (batch,))
            run.set_shape("conv_state_in", a.conv_state_shape(batch))
            run.set_shape("ssm_state_in", a.ssm_state_shape(batch))
            run.set_address("weights", self._weights)
            self._runs[batch] = run
        return self._runs[batch]


class TensorRtSession(GpuSession):
    """Runs a bundle on the GPU by two plans.

    Attributes:
        reader: Reads stretches of text.

    Args:
        folder: Where the plans are.
        plugins: The library with their operators.
        bundle: Folder of the weight file; the caller has checked its manifest.
        architecture: Sizes of the model.
        max_batch: Texts at once, as the plans were built for.
        max_length: Tokens of one prefill, likewise.
        progress: Told bytes of weights that are there and bytes in all.

    Raises:
        ModuleNotFoundError: The package cuda-bindings is not installed.
        BackendError: There is no GPU, or the model does not fit.
        EngineMismatchError: TensorRT does not take a plan.
        PluginError: libs6.so is missing or was built for another GPU, or TensorRT does not take
            the plugin library.
    """

    def __init__(
        self,
        folder: Path,
        plugins: Path,
        bundle: Path,
        architecture: MambaArchitecture,
        max_batch: int,
        max_length: int,
        progress: Progress = no_progress,
    ) -> None:
        gpu = open_gpu()
        stream = gpu.new_stream()
        refuse_foreign_library(gpu, stream)
        prefill = Plan(folder / PREFILL_PLAN, plugins)
        step = Plan(folder / STEP_PLAN, plugins)
        weights = upload(gpu, stream, bundle, architecture, progress)
        scratch = gpu.allocate(
            max(prefill.scratch_bytes, step.scratch_bytes), "activations of the engine"
        )
        limits = stretch_limits(max_batch, max_length)
        self.reader = TensorRtReader(
            gpu, stream, architecture, prefill, weights.addresses, limits, scratch
        )
        most = min(max_batch, most_texts(gpu, architecture, weights))
        if most == 0:
            raise PluginError(
                "a token of this model needs more shared memory than a block of this GPU has",
                fix="build with --backend cuda, which then decodes the slow way",
            )
        stepper = TensorRtStepper(
            gpu, stream, architecture, step, weights.memory.pointer, scratch, most
        )
        super().__init__(
            "tensorrt", gpu, stream, architecture, weights, self.reader, stepper, max_batch
        )
