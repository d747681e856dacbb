# SPDX-License-Identifier: MIT
"""The recorder: moments, phases, gaps, and sources that fail half way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from pipeline.errors import TelemetryError
from pipeline.telemetry import NoSampler, Rail, Reading, Recorder, Recording, polled


class Scripted:
    """A sampler that says what it is told to and then waits to be stopped."""

    source = "scripted"
    interval_s = 0.1
    rail: Rail | None = Rail("X", ("power_w/X",), counts_energy=False, excludes="nothing")
    missing: Mapping[str, str] = {}

    def __init__(self, readings: list[Reading], error: Exception | None = None) -> None:
        self._readings = readings
        self._error = error
        self.was_read = threading.Event()
        self.closed = 0

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        yield from self._readings
        self.was_read.set()
        if self._error:
            raise self._error
        stop.wait()

    def close(self) -> float:
        self.closed += 1
        return 0.25


def recorded(sampler: Scripted) -> Recording:
    with Recorder(sampler) as recorder:
        assert sampler.was_read.wait(10)
    return recorder.stop()


def watts(*pairs: tuple[float, float]) -> list[Reading]:
    return [Reading(time_s, {"power_w/X": value}) for time_s, value in pairs]


def test_readings_keep_their_moments_by_channel() -> None:
    readings = [*watts((1.0, 5.0), (1.1, 6.0)), Reading(1.2, {"temperature_c/tj": 50.0})]
    recording = recorded(Scripted(readings))
    assert recording.times_s == {"power_w/X": [1.0, 1.1], "temperature_c/tj": [1.2]}
    assert recording.values == {"power_w/X": [5.0, 6.0], "temperature_c/tj": [50.0]}
    assert recording.channels("power_w/") == ["X"]
    assert recording.within("power_w/Y") == []


def test_a_pause_between_readings_is_a_gap_and_a_late_one_is_not() -> None:
    recording = recorded(Scripted(watts((1.0, 5.0), (1.2, 5.0), (2.0, 5.0), (2.1, 5.0))))
    assert recording.gaps == [(1.2, 2.0)]


def test_a_clock_that_does_not_advance_is_passed_over() -> None:
    recording = recorded(Scripted(watts((1.0, 5.0), (1.0, 9.0), (0.5, 9.0), (1.1, 6.0))))
    assert recording.times_s["power_w/X"] == [1.0, 1.1]
    assert recording.values["power_w/X"] == [5.0, 6.0]


def test_phases_say_when_and_readings_can_be_asked_by_them() -> None:
    moments = iter([1.05, 1.15])
    sampler = Scripted(watts((1.0, 5.0), (1.1, 6.0), (1.2, 7.0)))
    with Recorder(sampler, clock=lambda: next(moments)) as recorder:
        with recorder.phase("decode"):
            assert sampler.was_read.wait(10)
        assert recorder.latest("power_w/X") == 7.0
        assert recorder.latest("power_w/Y") is None
    recording = recorder.stop()
    assert recording.phase("idle") is None
    assert recording.within("power_w/X", recording.phase("decode")) == [6.0]


def test_a_phase_is_marked_though_it_fails() -> None:
    recorder = Recorder(Scripted([]))
    with pytest.raises(RuntimeError), recorder, recorder.phase("decode"):
        raise RuntimeError
    assert recorder.recording.phase("decode") is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(TelemetryError("unplugged"), "unplugged"), (ZeroDivisionError(), "ZeroDivisionError")],
)
def test_a_source_that_fails_does_not_take_the_measurement_along(
    error: Exception, reason: str
) -> None:
    sampler = Scripted(watts((1.0, 5.0)), error)
    recording = recorded(sampler)
    assert recording.values["power_w/X"] == [5.0]
    assert reason in recording.missing["power"]
    assert sampler.closed == 1


def test_what_reading_costs_is_counted_children_included() -> None:
    sampler = Scripted(watts((1.0, 5.0)))
    recorder = Recorder(sampler)
    with recorder:
        assert sampler.was_read.wait(10)
    assert recorder.stop() is recorder.stop()
    assert sampler.closed == 1
    assert recorder.recording.cpu_s >= 0.25
    assert recorder.recording.cpu_percent is not None


def test_nothing_is_read_for_a_reason() -> None:
    with Recorder(NoSampler("this is a laptop")) as recorder:
        assert not recorder.reads
    recording = recorder.stop()
    assert recording.missing == {"power": "this is a laptop", "temperature": "this is a laptop"}
    assert recording.times_s == {}


def test_polling_ends_at_once_and_gives_the_middle_of_each_read() -> None:
    stop = threading.Event()
    calls: list[float] = []

    def read() -> dict[str, float]:
        calls.append(time.monotonic())
        if len(calls) == 3:
            stop.set()
        return {"power_w/X": float(len(calls))}

    readings = list(polled(read, 1e-4, stop))
    assert [reading.values["power_w/X"] for reading in readings] == [1.0, 2.0, 3.0]
    for reading, called in zip(readings, calls, strict=True):
        assert reading.time_s >= called - 1e-3
    assert [r.time_s for r in readings] == sorted(r.time_s for r in readings)
