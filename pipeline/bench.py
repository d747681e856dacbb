# SPDX-License-Identifier: MIT
"""Measures a loaded engine: time to the first token and per further token, with peers.

One iteration is what a user waits for: a prompt is read, then a continuation is decoded
greedily. Iterations repeat until the medians stand still, not until a count. Inside a timed
region nothing is printed, written, collected or asked of the system.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ValidationError

from pipeline import __version__
from pipeline.architecture import MambaArchitecture
from pipeline.board import Activity, peak_memory_bytes, read_activity, read_board, usable_cores
from pipeline.errors import BenchmarkError, MissingDependencyError, PipelineError, UsageError
from pipeline.records import (
    BenchRecord,
    BenchSettings,
    Board,
    Check,
    Comparison,
    ModelFacts,
    RooflineShare,
    Timings,
)
from pipeline.roofline import Limits, bound, decode_work, limits_of
from pipeline.session import Session, TokenIds
from pipeline.settings import default_threads
from pipeline.storage import write_atomically

if TYPE_CHECKING:
    from pipeline.engine import LoadedEngine

# The medians stand still when their last three values lie within the noise bound.
_SETTLED_WINDOW = 3
_MINIMUM_FIRST_TOKENS = 5
_MINIMUM_DECODED = 100
_MAXIMUM_SPREAD_PERCENT = 5.0
_MAXIMUM_OTHER_LOAD_PERCENT = 5.0

Clock = Callable[[], float]


@dataclass(frozen=True)
class BenchProgress:
    """Where a benchmark is.

    Attributes:
        subject: What is being measured: "onnxruntime" or the name of a peer.
        phase: "load", "warm-up" or "measure".
        iteration: Finished iterations of this phase.
        seconds: Measuring so far.
    """

    subject: str
    phase: Literal["load", "warm-up", "measure"]
    iteration: int = 0
    seconds: float = 0.0


Progress = Callable[[BenchProgress], None]


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
    """

    bundle: Path
    architecture: MambaArchitecture
    prompt: TokenIds
    settings: BenchSettings
    clock: Clock
    progress: Progress


@dataclass(frozen=True)
class Peer:
    """Another implementation to measure beside ours.

    Attributes:
        package: Python package it needs.
        precision: What it computes in.
        extra: Extra of this distribution that installs the package.
        measure: Runs the task.
    """

    package: str
    precision: str
    extra: str
    measure: Callable[[Task], Timings]


def _measure_torch(task: Task) -> Timings:
    from pipeline.torch_session import open_torch_session

    task.progress(BenchProgress("torch", "load"))
    session = open_torch_session(task.bundle, task.architecture, task.settings.threads)
    return measure(session, task, subject="torch")


PEERS: dict[str, Peer] = {
    "torch": Peer(package="torch", precision="fp32", extra="convert", measure=_measure_torch),
}
"""Peers by the name that `--compare` takes."""


def make_settings(**values: object) -> BenchSettings:
    """Settings from the words of a command line.

    Args:
        values: Fields of `BenchSettings`; None leaves a field at its default.

    Raises:
        UsageError: A value is out of range; names the option and what it takes.
    """
    try:
        return BenchSettings.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise UsageError(
            f"{option} is {first['input']}", fix=f"{option}: {first['msg'].lower()}"
        ) from error


def benchmark_folder(
    folder: Path,
    settings: BenchSettings,
    peers: Sequence[str] = (),
    progress: Progress = lambda _: None,
    *,
    command: str = "",
) -> BenchRecord:
    """Loads an engine, timed, and measures it.

    Args:
        folder: The engine.
        settings: What to measure.
        peers: Keys of `PEERS`.
        progress: Called between iterations, never inside a timed region.
        command: The command line, for the record.

    Raises:
        UsageError: Unknown peer.
        MissingDependencyError: A peer's package is not installed.
        ArtifactError: The engine cannot be used.
        BenchmarkError: The engine failed while being measured.
    """
    check_peers(peers)
    progress(BenchProgress("engine", "load"))
    start = time.perf_counter()
    # Importing the backend is part of what a user waits for.
    from pipeline.engine import load_engine

    engine = load_engine(folder, settings.threads)
    return run_benchmark(
        engine,
        settings,
        peers,
        progress,
        command=command,
        load_s=time.perf_counter() - start,
    )


def run_benchmark(
    engine: LoadedEngine,
    settings: BenchSettings,
    peers: Sequence[str] = (),
    progress: Progress = lambda _: None,
    *,
    command: str = "",
    load_s: float | None = None,
    clock: Clock = time.perf_counter,
    observe: Callable[[], Activity] = read_activity,
    board: Board | None = None,
) -> BenchRecord:
    """Measures a loaded engine and then each peer on the same weights, prompt and threads.

    Args:
        engine: What to measure.
        settings: How; `threads` must be what the engine was loaded with.
        peers: Keys of `PEERS`.
        progress: Called between iterations, never inside a timed region.
        command: The command line, for the record.
        load_s: How long loading took.
        clock: Monotonic seconds.
        observe: Reads the machine's counters.
        board: The machine; None reads it.

    Raises:
        UsageError: Unknown peer.
        MissingDependencyError: A peer's package is not installed.
        BenchmarkError: The engine failed while being measured.
    """
    check_peers(peers)
    settings = settings.model_copy(update={"threads": settings.threads or default_threads()})
    board = board or read_board()
    architecture = engine.session.architecture
    prompt = random_prompt(architecture, settings)
    task = Task(engine.bundle, architecture, prompt, settings, clock, progress)
    began = datetime.now(timezone.utc)
    before, start = observe(), clock()
    timings = measure(engine.session, task, subject=engine.session.backend)
    after, seconds = observe(), clock() - start
    peak = peak_memory_bytes()
    missing = {
        "power": "this version reads no power sensor",
        "temperature": "this version reads no temperature sensor",
    }
    if load_s is None:
        missing["load_s"] = "the engine was loaded before"
    if peak is None:
        missing["peak_memory_bytes"] = "this system does not tell a process's peak memory"
    return BenchRecord(
        record_id=f"{began:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
        date_utc=began.isoformat(timespec="seconds"),
        generator=f"mamba-orin {__version__}",
        command=command,
        board=board,
        versions=_versions(engine, peers),
        model=_model_facts(engine),
        backend=engine.session.backend,
        settings=settings,
        timings=timings,
        load_s=load_s,
        peak_memory_bytes=peak,
        power=None,
        temperature=None,
        roofline=roofline_share(
            architecture, engine.manifest.precision, timings, board, settings.batch
        ),
        checks=(
            *check_timings(timings, settings),
            *check_activity(before, after, seconds, board.cores or usable_cores()),
        ),
        comparisons=tuple(_compare(name, task, timings) for name in peers),
        missing=missing,
    )


def write_record(record: BenchRecord, path: Path) -> None:
    """Writes a record as JSON: all of it or nothing.

    Raises:
        StorageError: The file cannot be written.
    """
    write_atomically(path, record.to_json())


def check_peers(peers: Sequence[str]) -> None:
    """Refuses peers that cannot run before anything is measured.

    Raises:
        UsageError: Unknown; names the choices.
        MissingDependencyError: Its package is not installed.
    """
    for name in peers:
        peer = PEERS.get(name)
        if peer is None:
            raise UsageError(
                f"unknown peer {name!r} in --compare", fix=f"choose from: {', '.join(PEERS)}"
            )
        if importlib.util.find_spec(peer.package) is None:
            raise MissingDependencyError(
                f"--compare {name} needs the package {peer.package}, which is not installed",
                fix=f"pip install 'mamba-orin[{peer.extra}]', or leave --compare out",
            )


def random_prompt(architecture: MambaArchitecture, settings: BenchSettings) -> TokenIds:
    """Seeded token ids (b, l); a Mamba's time does not depend on which tokens it reads."""
    generator = np.random.default_rng(settings.seed)
    shape = (settings.batch, settings.sequence_length)
    return generator.integers(0, architecture.vocab_size, size=shape, dtype=np.int64)


def measure(session: Session, task: Task, subject: str) -> Timings:
    """Repeats prompt and continuation until the medians stand still.

    Args:
        session: What to measure.
        task: The work.
        subject: Its name, for progress.

    Raises:
        BenchmarkError: The logits are not finite.
        PipelineError: The session failed.
    """
    settings, progress = task.settings, task.progress
    for warmup in range(settings.warmup_iterations):
        progress(BenchProgress(subject, "warm-up", warmup))
        _iterate(session, task, subject)
    first_ms: list[float] = []
    decode_ms: list[list[float]] = []
    medians: list[tuple[float, float]] = []
    start = task.clock()
    while True:
        progress(BenchProgress(subject, "measure", len(first_ms), task.clock() - start))
        first, decoded = _iterate(session, task, subject)
        first_ms.append(first)
        decode_ms.append(decoded)
        medians.append((float(np.median(first_ms)), float(np.median(decode_ms))))
        stopped = _stop_reason(medians, settings, task.clock() - start)
        if stopped:
            return Timings.from_samples(
                first_ms,
                decode_ms,
                sequence_length=settings.sequence_length,
                batch=settings.batch,
                stopped=stopped,
            )


def _iterate(session: Session, task: Task, subject: str) -> tuple[float, list[float]]:
    """One prompt and its continuation: first token and each further one, in milliseconds."""
    clock, moments = task.clock, [0.0] * (task.settings.new_tokens + 1)
    with _without_garbage_collection():
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


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _stop_reason(
    medians: Sequence[tuple[float, float]], settings: BenchSettings, seconds: float
) -> Literal["settled", "iterations", "time"] | None:
    """Why to stop after these iterations; `medians` holds those of all samples so far."""
    if len(medians) >= max(settings.minimum_iterations, _SETTLED_WINDOW):
        recent = np.asarray(medians[-_SETTLED_WINDOW:])
        movement = 100 * (recent.max(axis=0) - recent.min(axis=0)) / recent[-1]
        if movement.max() <= settings.noise_percent:
            return "settled"
    if len(medians) >= settings.iterations:
        return "iterations"
    return "time" if seconds >= settings.maximum_seconds else None


def check_timings(timings: Timings, settings: BenchSettings) -> tuple[Check, ...]:
    """What the samples themselves say about the record."""
    first, decode = timings.first_token, timings.decode
    return (
        Check(
            name="enough samples",
            passed=first.count >= _MINIMUM_FIRST_TOKENS and decode.count >= _MINIMUM_DECODED,
            detail=f"{first.count} prompts (at least {_MINIMUM_FIRST_TOKENS}), {decode.count} "
            f"decoded tokens (at least {_MINIMUM_DECODED})",
        ),
        Check(
            name="settled",
            passed=timings.stopped == "settled",
            detail={
                "settled": f"the last medians moved by at most {settings.noise_percent:g} %",
                "iterations": f"the medians still moved by more than {settings.noise_percent:g} % "
                f"after {settings.iterations} iterations",
                "time": f"the medians still moved by more than {settings.noise_percent:g} % "
                f"after {settings.maximum_seconds:g} s",
            }[timings.stopped],
        ),
        _check_spread("spread of the first token", first.spread_percent, first.count),
        _check_spread("spread of decoding", decode.spread_percent, decode.count),
        check_linear_growth(timings.decode_samples_ms, settings.sequence_length),
    )


def _check_spread(name: str, spread: float | None, count: int) -> Check:
    if spread is None:
        return Check(name=name, passed=None, detail=f"{count} samples have no spread")
    return Check(
        name=name,
        passed=spread <= _MAXIMUM_SPREAD_PERCENT,
        detail=f"half of the samples lie within {spread:.2g} % of the median "
        f"(at most {_MAXIMUM_SPREAD_PERCENT:g} %)",
    )


def check_linear_growth(
    decode_samples_ms: Sequence[Sequence[float]], sequence_length: int
) -> Check:
    """Whether a token late in a continuation costs as much as an early one.

    The last quarter of each continuation is compared with its first. A decoder that reads its
    whole text again for every token is slower there by the ratio of the texts' lengths; the
    check fails half way to that.

    Args:
        decode_samples_ms: (iteration, new token).
        sequence_length: Tokens before the continuation.
    """
    samples = np.asarray(decode_samples_ms)
    new_tokens = samples.shape[1]
    quarter = new_tokens // 4
    name = "grows linearly"
    if quarter < 4:
        return Check(
            name=name, passed=None, detail=f"{new_tokens} new tokens are too few; 16 would do"
        )
    early = np.median(samples[:, :quarter], axis=1)
    late = np.median(samples[:, -quarter:], axis=1)
    found = float(np.median(late / early))
    middle = quarter / 2
    quadratic = (sequence_length + new_tokens - middle) / (sequence_length + middle)
    return Check(
        name=name,
        passed=found <= (1 + quadratic) / 2,
        detail=f"the last {quarter} of {new_tokens} tokens cost {found:.3f} times the first "
        f"{quarter}; reading the text again for each would make it {quadratic:.2f}",
    )


def check_activity(
    before: Activity, after: Activity, seconds: float, cores: int
) -> tuple[Check, ...]:
    """What else the machine did meanwhile."""
    name = "no other load"
    if before.busy_s is None or after.busy_s is None or seconds <= 0:
        load = Check(name=name, passed=None, detail="this system does not tell what others use")
    else:
        others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
        percent = max(0.0, 100 * others / (seconds * cores))
        load = Check(
            name=name,
            passed=percent <= _MAXIMUM_OTHER_LOAD_PERCENT,
            detail=f"other processes used {percent:.1f} % of {cores} cores "
            f"(at most {_MAXIMUM_OTHER_LOAD_PERCENT:g} %)",
        )
    name = "no swapping"
    if before.swapped_pages is None or after.swapped_pages is None:
        return load, Check(name=name, passed=None, detail="this system does not count it")
    moved = after.swapped_pages - before.swapped_pages
    used = f"; {after.swap_used_bytes / 1e6:.0f} MB in use" if after.swap_used_bytes else ""
    return load, Check(
        name=name, passed=moved == 0, detail=f"{moved} pages moved to or from swap{used}"
    )


def roofline_share(
    architecture: MambaArchitecture, precision: str, timings: Timings, board: Board, batch: int
) -> RooflineShare:
    """How near decoding came to the floor of this machine's memory."""
    work = decode_work(architecture, precision, batch)
    median_ms = timings.decode.median_ms
    limits = limits_of(board)
    known = isinstance(limits, Limits)
    floor_ms = bound(work, limits, precision).bound_ms if isinstance(limits, Limits) else None
    fields = ("board", "bandwidth_gb_per_s", "bound_ms_per_token", "share_percent")
    return RooflineShare(
        bytes_per_token=work.bytes,
        read_gb_per_s=work.bytes / median_ms / 1e6,
        board=f"{limits.board}, {limits.power_mode}" if isinstance(limits, Limits) else None,
        bandwidth_gb_per_s=limits.memory_gb_per_s if isinstance(limits, Limits) else None,
        bound_ms_per_token=floor_ms,
        share_percent=None if floor_ms is None else 100 * floor_ms / median_ms,
        missing={} if known else {field: str(limits) for field in fields},
    )


def _compare(name: str, task: Task, ours: Timings) -> Comparison:
    peer = PEERS[name]
    version = _version_of(peer.package)
    missing = {} if version else {"version": f"{peer.package} does not tell it"}
    try:
        theirs = peer.measure(task)
    except PipelineError as error:
        # What was measured of ours is worth keeping when a peer fails.
        unmeasured = ("timings", "first_token_ratio", "ms_per_token_ratio")
        missing |= {field: str(error) for field in unmeasured}
        return Comparison(
            peer=name,
            version=version,
            precision=peer.precision,
            timings=None,
            first_token_ratio=None,
            ms_per_token_ratio=None,
            missing=missing,
        )
    return Comparison(
        peer=name,
        version=version,
        precision=peer.precision,
        timings=theirs,
        first_token_ratio=theirs.first_token.median_ms / ours.first_token.median_ms,
        ms_per_token_ratio=theirs.decode.median_ms / ours.decode.median_ms,
        missing=missing,
    )


def _model_facts(engine: LoadedEngine) -> ModelFacts:
    manifest = engine.manifest
    return ModelFacts(
        name=manifest.model_name,
        architecture=manifest.architecture.to_dict(),
        parameters=manifest.architecture.parameters,
        precision=manifest.precision,
        weight_bytes=manifest.weights_bytes,
        weights_sha256=manifest.weights_sha256,
    )


def _versions(engine: LoadedEngine, peers: Sequence[str]) -> dict[str, str]:
    versions = {
        "mamba-orin": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **engine.manifest.versions,
    }
    for name in peers:
        versions[PEERS[name].package] = _version_of(PEERS[name].package) or "unknown"
    return versions


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
