# SPDX-License-Identifier: MIT
"""Measures a loaded engine into a record: time, energy, heat, and what speaks against it.

In this order: cool down, hold mode and clocks, watch the machine idle, warm up, iterate until
the medians stand still, then work without a pause for the energy of prompts and of tokens, put
mode and clocks back, and measure the peers.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from pipeline import __version__
from pipeline.architecture import MambaArchitecture
from pipeline.board import Activity, peak_memory_bytes, read_activity, read_board, usable_cores
from pipeline.errors import UsageError
from pipeline.measuring import BenchProgress, Clock, Progress, Task, measure, random_prompt, sustain
from pipeline.peers import PEERS, check_peers, compare, version_of
from pipeline.power_control import HeldStill
from pipeline.power_records import ServedLoad
from pipeline.power_summary import (
    clock_summary,
    power_summary,
    telemetry_record,
    temperature_summary,
    working_time,
)
from pipeline.records import (
    BenchRecord,
    BenchSettings,
    Board,
    ModelFacts,
    RooflineShare,
    Timings,
)
from pipeline.roofline import Limits, bound, decode_work, limits_of
from pipeline.samplers import CHOICES, open_sampler
from pipeline.settings import board_root, default_threads
from pipeline.storage import write_atomically
from pipeline.telemetry import TEMPERATURE, Recorder, Recording, Sampler
from pipeline.validity import check_activity, check_sensors, check_timings

if TYPE_CHECKING:
    from pipeline.engine import LoadedEngine

_LOOK_AT_HEAT_S = 1.0


def make_settings(**values: object) -> BenchSettings:
    """Settings from the words of a command line.

    Args:
        values: Fields of `BenchSettings`; None leaves a field at its default.

    Raises:
        UsageError: A value is out of range; names the option and what it takes.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if "scenario" not in given and given.get("batch", 1) != 1:
        given["scenario"] = "batch"
    try:
        settings = BenchSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise UsageError(
            f"{option} is {first['input']}", fix=f"{option}: {first['msg'].lower()}"
        ) from error
    if (settings.scenario == "server") != (settings.request_rate_per_s is not None):
        raise UsageError(
            f"--scenario {settings.scenario} and --request-rate do not fit together",
            fix="give --scenario server with --request-rate R, or neither",
        )
    if settings.scenario != "batch" and settings.batch > 1:
        raise UsageError(
            f"--scenario {settings.scenario} has no batch of {settings.batch}",
            fix="leave --batch out, or give --scenario batch",
        )
    if settings.telemetry not in CHOICES:
        raise UsageError(
            f"unknown source {settings.telemetry!r} in --telemetry",
            fix=f"choose from {', '.join(CHOICES)}",
        )
    return settings


@dataclass(frozen=True)
class Bystanders:
    """What a benchmark sees of the world beside the engine; a test has its own.

    Attributes:
        clock: Monotonic seconds.
        observe: Reads the machine's counters.
        open_sampler: Opens the source of power and heat.
        board: The machine; None reads it.
        sleep: Waits for some seconds.
        root: Root of the file tree of the board, for sensors and for what holds mode and clocks.
    """

    clock: Clock = time.perf_counter
    observe: Callable[[], Activity] = read_activity
    open_sampler: Callable[[str, float | None, Path], Sampler] = open_sampler
    board: Board | None = None
    sleep: Callable[[float], None] = time.sleep
    root: Path = field(default_factory=board_root)


def benchmark_folder(
    folder: Path,
    settings: BenchSettings,
    peers: Sequence[str] = (),
    progress: Progress = lambda _: None,
    *,
    command: str = "",
    llama_model: Path | None = None,
) -> BenchRecord:
    """Loads an engine, timed, and measures it.

    Args:
        folder: The engine.
        settings: What to measure.
        peers: Keys of `PEERS`.
        progress: Called between iterations, never inside a timed region.
        command: The command line, for the record.
        llama_model: The same model as GGUF, for the peer llama.cpp.

    Raises:
        UsageError: Unknown peer, or a model for it that is no file.
        ArtifactError: The engine cannot be used.
        BoardError: Mode or clocks cannot be held as asked for.
        TelemetryError: The source that was named does not work here.
        BenchmarkError: The engine failed while being measured.
    """
    check_peers(peers, llama_model)
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
        llama_model=llama_model,
    )


def run_benchmark(
    engine: LoadedEngine,
    settings: BenchSettings,
    peers: Sequence[str] = (),
    progress: Progress = lambda _: None,
    *,
    command: str = "",
    load_s: float | None = None,
    llama_model: Path | None = None,
    world: Bystanders | None = None,
) -> BenchRecord:
    """Measures a loaded engine and then each peer on the same weights, prompt and threads.

    Args:
        engine: What to measure.
        settings: How; `threads` must be what the engine was loaded with.
        peers: Keys of `PEERS`.
        progress: Called between iterations, never inside a timed region.
        command: The command line, for the record.
        load_s: How long loading took.
        llama_model: The same model as GGUF, for the peer llama.cpp.
        world: Clock, sensors and machine.

    Raises:
        UsageError: Unknown peer, or a model for it that is no file.
        BoardError: Mode or clocks cannot be held as asked for.
        TelemetryError: The source that was named does not work here.
        BenchmarkError: The engine failed while being measured.
    """
    check_peers(peers, llama_model)
    world = world or Bystanders()
    settings = settings.model_copy(update={"threads": settings.threads or default_threads()})
    architecture = engine.session.architecture
    task = Task(
        engine.bundle,
        architecture,
        random_prompt(architecture, settings),
        settings,
        world.clock,
        progress,
        engine.session.backend,
        llama_model,
    )
    began = datetime.now(timezone.utc)
    held = HeldStill(
        world.board or read_board(world.root), settings.power_mode, settings.clocks, root=world.root
    )
    with held:
        # Read again: mode and clocks may be others now.
        board = world.board or read_board(world.root)
        found = _measure(engine, task, world)
    recording, work = found.recording, working_time(found.recording)
    prompt_tokens = found.prompts * settings.sequence_length
    optional: dict[str, Any] = {
        "pinned": held.pinned or held.why_nothing,
        "telemetry": telemetry_record(recording),
        "power": power_summary(recording, {"prefill": prompt_tokens, "decode": found.decoded}),
        "temperature": temperature_summary(recording, work),
        "clocks": clock_summary(recording),
        "served": found.served or "only the scenario server has it",
        "load_s": "the engine was loaded before" if load_s is None else load_s,
        "peak_memory_bytes": found.peak_memory_bytes
        or "this system does not tell a process's peak memory",
    }
    missing = {field: value for field, value in optional.items() if isinstance(value, str)}
    values: dict[str, Any] = {
        field: None if field in missing else value for field, value in optional.items()
    }
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
        timings=found.timings,
        roofline=roofline_share(
            architecture, engine.manifest.precision, found.timings, board, settings.batch
        ),
        checks=(
            *check_timings(found.timings, settings),
            *check_activity(
                found.before, found.after, found.seconds, board.cores or usable_cores()
            ),
            *check_sensors(recording, work, values["power"]),
        ),
        comparisons=tuple(compare(name, task, found.timings) for name in peers),
        missing=missing,
        **values,
    )


@dataclass(frozen=True)
class _Found:
    """What one run gave."""

    timings: Timings
    recording: Recording
    before: Activity
    after: Activity
    seconds: float
    peak_memory_bytes: int | None
    prompts: int = 0
    decoded: int = 0
    served: ServedLoad | None = None


def _measure(engine: LoadedEngine, task: Task, world: Bystanders) -> _Found:
    settings, session, subject = task.settings, engine.session, engine.session.backend
    sampler = world.open_sampler(settings.telemetry, settings.telemetry_interval_s, world.root)
    with Recorder(sampler, clock=world.clock) as recorder:
        if settings.cool_down_c is not None:
            _cool_down(recorder, task, world)
        # A reading before the first phase, and below one after the last: each lies between two.
        world.sleep(2 * sampler.interval_s)
        if recorder.reads and settings.idle_seconds:
            task.progress(BenchProgress(subject, "idle"))
            with recorder.phase("idle"):
                world.sleep(settings.idle_seconds)
        before, start = world.observe(), world.clock()
        if settings.scenario == "server":
            from pipeline.server_load import measure_server

            timings, served = measure_server(engine, task, recorder.phase)
        else:
            timings, served = measure(session, task, subject, recorder.phase), None
        after, seconds = world.observe(), world.clock() - start
        found = _Found(
            timings,
            recorder.recording,
            before,
            after,
            seconds,
            peak_memory_bytes(),
            served=served,
        )
        if recorder.reads and settings.energy_seconds and settings.scenario != "server":
            kept_up = sustain(session, task, subject, recorder.phase)
            found = replace(found, prompts=kept_up.prompts, decoded=kept_up.decoded)
        world.sleep(2 * sampler.interval_s)
    return found


def _cool_down(recorder: Recorder, task: Task, world: Bystanders) -> None:
    """Waits until no zone is warmer than asked for, or long enough."""
    settings, start = task.settings, world.clock()
    while recorder.reads and world.clock() - start < settings.cool_down_seconds:
        zones = recorder.recording.channels(TEMPERATURE)
        readings = [recorder.latest(TEMPERATURE + zone) for zone in zones]
        warmest = max((celsius for celsius in readings if celsius is not None), default=None)
        if warmest is not None and warmest <= (settings.cool_down_c or 0):
            return
        task.progress(BenchProgress(f"{warmest or 0:.0f} °C", "cool"))
        world.sleep(_LOOK_AT_HEAT_S)


def write_record(record: BenchRecord, path: Path) -> None:
    """Writes a record as JSON: all of it or nothing.

    Raises:
        StorageError: The file cannot be written.
    """
    write_atomically(path, record.to_json())


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
        package = PEERS[name].package
        version = version_of(package) if package else None
        if package and version:
            versions[package] = version
    return versions
