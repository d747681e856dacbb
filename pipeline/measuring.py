# SPDX-License-Identifier: MIT
"""Times a session: prompts and continuations until the medians stand still.

One iteration is what a user waits for: a prompt is read, then a continuation is decoded
greedily. Iterations repeat until the medians stand still, not until a count. Inside a timed
region nothing is printed, written, collected or asked of the system.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.architecture import MambaArchitecture
from pipeline.errors import BenchmarkError
from pipeline.garbage_collection import without_garbage_collection
from pipeline.records import BenchSettings, Timings
from pipeline.session import Floats, Session, State, TokenIds

# The medians stand still when their last three values lie within the noise bound.
_SETTLED_WINDOW = 3

Clock = Callable[[], float]
Stopped = Literal["settled", "iterations", "time"]


@dataclass(frozen=True)
class BenchProgress:
    """Where a benchmark is.

    Attributes:
        subject: What is being measured: "onnxruntime" or the name of a peer.
        phase: "load", "cool", "idle", "warm-up", "measure", "prefill" or "decode".
        iteration: Finished iterations of this phase.
        seconds: Measuring so far.
    """

    subject: str
    phase: Literal["load", "cool", "idle", "warm-up", "measure", "prefill", "decode"]
    iteration: int = 0
    seconds: float = 0.0


Progress = Callable[[BenchProgress], None]


class Contender(Protocol):
    """What can be timed: our sessions, and peers with a state of their own kind."""

    def prefill(self, token_ids: TokenIds) -> tuple[Floats, Any]:
        """Reads texts (b, l) from their beginning; logits (b, vocab) and the state after them."""

    def step(self, token_ids: TokenIds, state: Any) -> tuple[Floats, Any]:
        """Reads one token (b,) more of each text, from the state that came last."""


@dataclass(frozen=True)
class Task:
    """What every contender of one record gets.

    Attributes:
        bundle: The folder that holds the weights.
        architecture: Sizes of the model.
        prompt: (b, l) int64 token ids.
        settings: With `threads` filled in.
        clock: Monotonic seconds.
        progress: Called between iterations.
        backend: What measures ours, for peers that must not measure the same thing.
        llama_model: The same model as GGUF, for llama.cpp.
    """

    bundle: Path
    architecture: MambaArchitecture
    prompt: TokenIds
    settings: BenchSettings
    clock: Clock
    progress: Progress
    backend: str = ""
    llama_model: Path | None = None


def random_prompt(architecture: MambaArchitecture, settings: BenchSettings) -> TokenIds:
    """Seeded token ids (b, l); a Mamba's time does not depend on which tokens it reads."""
    generator = np.random.default_rng(settings.seed)
    shape = (settings.batch, settings.sequence_length)
    return generator.integers(0, architecture.vocab_size, size=shape, dtype=np.int64)


def unmarked(_: str) -> contextlib.AbstractContextManager[None]:
    """Marks no phase; for what is measured without telemetry."""
    return contextlib.nullcontext()


def measure(
    session: Contender,
    task: Task,
    subject: str,
    phase: Callable[[str], contextlib.AbstractContextManager[None]] = unmarked,
) -> Timings:
    """Repeats prompt and continuation until the medians stand still.

    Args:
        session: What to measure.
        task: The work.
        subject: Its name, for progress.
        phase: Marks what the block does.

    Raises:
        BenchmarkError: The logits are not finite.
        PipelineError: The session failed.
    """
    settings, progress = task.settings, task.progress
    with phase("warm-up"):
        for warmup in range(settings.warmup_iterations):
            progress(BenchProgress(subject, "warm-up", warmup))
            _iterate(session, task, subject)
    with phase("measure"):
        return _until_settled(session, task, subject)


def _until_settled(session: Contender, task: Task, subject: str) -> Timings:
    settings = task.settings
    first_ms: list[float] = []
    decode_ms: list[list[float]] = []
    medians: list[tuple[float, float]] = []
    start = task.clock()
    while True:
        task.progress(BenchProgress(subject, "measure", len(first_ms), task.clock() - start))
        first, decoded = _iterate(session, task, subject)
        first_ms.append(first)
        decode_ms.append(decoded)
        medians.append((float(np.median(first_ms)), float(np.median(decode_ms))))
        stopped = stop_reason(medians, settings, task.clock() - start)
        if stopped:
            return Timings.from_samples(
                first_ms,
                decode_ms,
                sequence_length=settings.sequence_length,
                batch=settings.batch,
                stopped=stopped,
            )


def _iterate(session: Contender, task: Task, subject: str) -> tuple[float, list[float]]:
    """One prompt and its continuation: first token and each further one, in milliseconds."""
    clock, moments = task.clock, [0.0] * (task.settings.new_tokens + 1)
    gc.collect()
    with without_garbage_collection():
        start = clock()
        logits, state = session.prefill(task.prompt)
        token_ids = logits.argmax(axis=-1)
        moments[0] = clock()
        for position in range(1, len(moments)):
            logits, state = session.step(token_ids, state)
            token_ids = logits.argmax(axis=-1)
            moments[position] = clock()
    if not np.isfinite(logits).all():
        raise BenchmarkError(
            f"{subject} computed logits that are not finite, so its speed means nothing",
            fix="check the engine with `mamba-orin score`; convert again, with --precision fp32 "
            "if the weights are too large for fp16",
        )
    return 1e3 * (moments[0] - start), [float(ms) for ms in 1e3 * np.diff(moments)]


def stop_reason(
    medians: Sequence[tuple[float, float]], settings: BenchSettings, seconds: float
) -> Stopped | None:
    """Why to stop after these iterations; `medians` holds those of all samples so far."""
    if len(medians) >= max(settings.minimum_iterations, _SETTLED_WINDOW):
        recent = np.asarray(medians[-_SETTLED_WINDOW:])
        movement = 100 * (recent.max(axis=0) - recent.min(axis=0)) / recent[-1]
        if movement.max() <= settings.noise_percent:
            return "settled"
    if len(medians) >= settings.iterations:
        return "iterations"
    return "time" if seconds >= settings.maximum_seconds else None


@dataclass(frozen=True)
class Sustained:
    """Work that went on without a pause, so that its energy can be told.

    Attributes:
        prompts: Prompts that were read, of all texts together.
        decoded: Tokens that were decoded, of all texts together.
    """

    prompts: int
    decoded: int


def sustain(
    session: Session,
    task: Task,
    subject: str,
    phase: Callable[[str], contextlib.AbstractContextManager[None]],
) -> Sustained:
    """Reads prompts, then decodes, each for as long as `energy_seconds` says.

    Iterations switch between the two within milliseconds, which no sensor can follow.

    Args:
        session: What to run.
        task: The work.
        subject: Its name, for progress.
        phase: Marks what the block does.
    """
    settings, clock = task.settings, task.clock
    prompts = decoded = 0
    gc.collect()
    with without_garbage_collection():
        task.progress(BenchProgress(subject, "prefill"))
        with phase("prefill"):
            end = clock() + settings.energy_seconds
            while True:
                logits, state = session.prefill(task.prompt)
                prompts += 1
                if clock() >= end:
                    break
        task.progress(BenchProgress(subject, "decode"))
        with phase("decode"):
            end = clock() + settings.energy_seconds
            while True:
                logits, state = _decode(session, logits.argmax(axis=-1), state, settings.new_tokens)
                decoded += settings.new_tokens
                if clock() >= end:
                    break
    return Sustained(prompts * settings.batch, decoded * settings.batch)


def _decode(
    session: Session, token_ids: TokenIds, state: State, count: int
) -> tuple[Floats, State]:
    logits, state = session.step(token_ids, state)
    for _ in range(count - 1):
        logits, state = session.step(logits.argmax(axis=-1), state)
    return logits, state
