# SPDX-License-Identifier: MIT
"""Watches power, heat and clocks while something is measured: samplers and the recorder.

A sampler yields readings: a moment and whatever channels could be read at it. A channel that
could not be read is absent from a reading, never zero. Names of channels begin with their
quantity and unit: "power_w/VDD_IN", "temperature_c/tj", "clock_mhz/gpu", "events/oc3".

All moments are of CLOCK_MONOTONIC, which is one clock for all processes of a machine and the
one that `time.perf_counter` reads on Linux.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, runtime_checkable

from pipeline.errors import TelemetryError

POWER, ENERGY, TEMPERATURE = "power_w/", "energy_j/", "temperature_c/"
CLOCK, CLOCK_LIMIT, LOAD = "clock_mhz/", "clock_limit_mhz/", "load_percent/"
EVENTS, THROTTLE, SWAP = "events/", "throttle/", "swap_used_bytes"
"""Beginnings of channel names: what is read, and in which unit.

EVENTS are counters since boot. THROTTLE is above zero while something holds clocks down.
"""

# A reading later than this many intervals after the one before leaves a gap.
_GAP_INTERVALS = 2.5


@dataclass(frozen=True)
class Reading:
    """What could be read at one moment.

    Attributes:
        time_s: When; monotonic.
        values: By channel.
    """

    time_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Rail:
    """The channel that stands for the power of the machine.

    Attributes:
        name: Like "VDD_IN".
        channels: Channels that add up to it: power in watts or, where the hardware counts,
            energy in joules. More than one only where no sensor sees the whole.
        counts_energy: Whether the channels are counters of joules.
        excludes: What it leaves out, for people.
    """

    name: str
    channels: tuple[str, ...]
    counts_energy: bool
    excludes: str


class Sampler(Protocol):
    """One source of readings.

    Attributes:
        source: Its name: "sysfs", "jtop", "tegrastats", "nvml", "rapl" or "none".
        interval_s: Time between readings that it was asked for.
        rail: None where it knows no power; then `missing["power"]` says why.
        missing: Why "power" or "temperature" cannot be read; absent when they can.
    """

    source: str
    interval_s: float
    rail: Rail | None
    missing: Mapping[str, str]

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """Yields readings until `stop` is set, each as soon as it is there.

        Raises:
            TelemetryError: The source has gone.
        """

    def close(self) -> float:
        """Ends it and returns the processor seconds that child processes of it have used."""


@runtime_checkable
class CountsAtEdges(Protocol):
    """A sampler with a counter that is too dear to be read while something is measured."""

    def edge_readings(self) -> Iterator[Reading]:
        """Yields readings until the counter has moved, so that the last is of its moment."""


class NoSampler:
    """Reads nothing, for the reason it is given; see `Sampler`."""

    source = "none"
    interval_s = 0.0
    rail: Rail | None = None

    def __init__(self, reason: str) -> None:
        self.missing: Mapping[str, str] = {"power": reason, "temperature": reason}

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """Yields nothing and returns at once."""
        del stop
        yield from ()

    def close(self) -> float:
        """Nothing to end."""
        return 0.0


def polled(
    read: Callable[[], Mapping[str, float]], interval_s: float, stop: threading.Event
) -> Iterator[Reading]:
    """Readings of a source that answers when asked, at a fixed beat.

    A read that takes longer than the interval skips beats instead of running after them.

    Args:
        read: Reads all channels; its moment is the middle of the call.
        interval_s: Time between readings.
        stop: Ends the readings.
    """
    due = time.monotonic()
    while not stop.is_set():
        before = time.monotonic()
        values = read()
        after = time.monotonic()
        yield Reading((before + after) / 2, values)
        due += interval_s
        now = time.monotonic()
        if due <= now:
            due += ((now - due) // interval_s + 1) * interval_s
        stop.wait(due - now)


@dataclass(frozen=True)
class Phase:
    """A stretch of time in which one thing was done.

    Attributes:
        name: Like "idle", "prefill" or "decode".
        start_s: Beginning; monotonic.
        end_s: End.
    """

    name: str
    start_s: float
    end_s: float


@dataclass
class Recording:
    """Everything that was read in one session.

    Attributes:
        source: Of the sampler.
        interval_s: Asked for.
        rail: Of the sampler.
        missing: Of the sampler; "power" and "temperature" are also given when the source
            ended early.
        times_s: Moments of each channel's readings; monotonic.
        values: Readings of each channel, as long as its moments.
        phases: What was done when.
        gaps: Stretches between two readings, of whatever channel, that are too long.
        wall_s: How long it recorded.
        cpu_s: Processor time that reading has used, in this process and children.
    """

    source: str
    interval_s: float
    rail: Rail | None
    missing: dict[str, str]
    times_s: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def cpu_percent(self) -> float | None:
        """Share of one processor core that reading took; None when nothing was recorded."""
        return 100 * self.cpu_s / self.wall_s if self.wall_s > 0 else None

    def channels(self, beginning: str) -> list[str]:
        """Names of the channels of one quantity, without its beginning, sorted."""
        return sorted(
            name.removeprefix(beginning) for name in self.times_s if name.startswith(beginning)
        )

    def phase(self, name: str) -> Phase | None:
        """The last stretch of a name."""
        return next((phase for phase in reversed(self.phases) if phase.name == name), None)

    def within(self, channel: str, phase: Phase | None = None) -> list[float]:
        """Readings of a channel, of one phase or all."""
        if channel not in self.times_s:
            return []
        if phase is None:
            return list(self.values[channel])
        pairs = zip(self.times_s[channel], self.values[channel], strict=True)
        return [value for time_s, value in pairs if phase.start_s <= time_s <= phase.end_s]


class Recorder:
    """Collects a sampler's readings in a thread of its own while the `with` block runs.

    Args:
        sampler: Is closed at the end.
        clock: Monotonic seconds, for phases.
    """

    def __init__(self, sampler: Sampler, clock: Callable[[], float] = time.monotonic) -> None:
        self._sampler = sampler
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="telemetry", daemon=True)
        self._start_s = 0.0
        self._last_s: float | None = None
        self.recording = Recording(
            sampler.source, sampler.interval_s, sampler.rail, dict(sampler.missing)
        )

    def __enter__(self) -> Recorder:
        self._start_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> Recording:
        """Ends the readings; may be called again."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self.recording.wall_s = time.monotonic() - self._start_s
            self.recording.cpu_s += self._sampler.close()
        return self.recording

    @property
    def reads(self) -> bool:
        """Whether there is anything to wait for, like an idle phase."""
        return self._sampler.source != "none"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Marks what the block does; costs two looks at the clock, or at a counter.

        With a counter the phase begins and ends at moments at which that moved, so the end may be
        one update of the counter later than the block's.
        """
        start = self._edge()
        try:
            yield
        finally:
            self.recording.phases.append(Phase(name, start, self._edge()))

    def latest(self, channel: str) -> float | None:
        """The newest reading of a channel; None while there is none."""
        values = self.recording.values.get(channel)
        return values[-1] if values else None

    def _collect(self) -> None:
        try:
            for reading in self._sampler.readings(self._stop):
                self._take(reading)
        except TelemetryError as error:
            self._ended_early(str(error))
        except Exception as error:  # a fault here must not end what is being measured
            self._ended_early(f"unexpected {type(error).__name__}: {error}")
        finally:
            self.recording.cpu_s += time.thread_time()

    def _edge(self) -> float:
        """The moment at which a phase begins or ends."""
        moment = None
        if isinstance(self._sampler, CountsAtEdges) and not self._stop.is_set():
            try:
                for reading in self._sampler.edge_readings():
                    self._keep(reading)
                    moment = reading.time_s
            except TelemetryError as error:
                self._ended_early(str(error))
        return self._clock() if moment is None else moment

    def _take(self, reading: Reading) -> None:
        if self._last_s is not None:
            passed = reading.time_s - self._last_s
            if passed <= 0:
                return  # a source that repeats itself or whose clock went back
            if passed > _GAP_INTERVALS * self._sampler.interval_s > 0:
                self.recording.gaps.append((self._last_s, reading.time_s))
        self._last_s = reading.time_s
        self._keep(reading)

    def _keep(self, reading: Reading) -> None:
        for channel, value in reading.values.items():
            self.recording.times_s.setdefault(channel, []).append(reading.time_s)
            self.recording.values.setdefault(channel, []).append(value)

    def _ended_early(self, reason: str) -> None:
        for quantity in ("power", "temperature"):
            self.recording.missing.setdefault(quantity, f"{self._sampler.source} ended: {reason}")
