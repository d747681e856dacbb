# SPDX-License-Identifier: MIT
"""What sensors say for and against a record; each check can pass, fail and not know."""

from __future__ import annotations

import pytest

from pipeline.records import Check
from pipeline.telemetry import Phase, Recording
from pipeline.validity import check_sensors

WORK = Phase("work", 0.0, 10.0)
QUIET = {
    "temperature_c/tj": [60.0] * 10,
    "temperature_c/cpu": [55.0] * 10,
    "throttle/gpu": [0.0] * 10,
    "events/oc1": [3.0] * 10,
    "events/oc3": [7.0] * 10,
    "swap_used_bytes": [5e6] * 10,
    "clock_mhz/gpu": [1020.0] * 10,
    "clock_limit_mhz/gpu": [1020.0] * 10,
}


def found(**changes: list[float]) -> dict[str, Check]:
    channels = {**QUIET, **{name.replace("__", "/"): values for name, values in changes.items()}}
    recording = Recording("sysfs", 0.1, None, {"power": "no rail in this test"})
    recording.phases.append(Phase("decode", 0.0, 10.0))
    recording.wall_s, recording.cpu_s = 10.0, 0.05
    for name, values in channels.items():
        recording.times_s[name] = [float(i) for i in range(len(values))]
        recording.values[name] = values
    return {check.name: check for check in check_sensors(recording, WORK, None)}


def test_a_quiet_run_passes_all_that_can_be_told() -> None:
    checks = found()
    assert checks.pop("enough power readings").passed is None
    assert {check.passed for check in checks.values()} == {True}, checks


@pytest.mark.parametrize(
    ("name", "channel", "values", "words"),
    [
        ("not throttled", "throttle__gpu", [0.0] * 8 + [2.0] * 2, "held back by gpu in 2 readings"),
        ("not throttled", "temperature_c__tj", [95.5] * 10, "96 °C (tj)"),
        ("no over-current", "events__oc1", [3.0] * 9 + [4.0], "oc1: 1 events"),
        ("no over-current", "events__oc3", [0.0] * 9 + [400.0], "oc3: 400 events in 10 s"),
        ("no swap in use", "swap_used_bytes", [3e8] * 10, "300 MB at most"),
        ("clocks stood still", "clock_mhz__gpu", [1020.0] * 9 + [612.0], "between 612 and 1020"),
        ("heat settled", "temperature_c__tj", [40.0 + 2.0 * i for i in range(10)], "+8.0 °C"),
    ],
)
def test_what_is_wrong_is_said_with_its_numbers(
    name: str, channel: str, values: list[float], words: str
) -> None:
    check = found(**{channel: values})[name]
    assert check.passed is False
    assert words in check.detail


def test_decoding_may_be_cooler_than_the_prompt_before_it() -> None:
    assert found(temperature_c__tj=[60.0, *[52.0] * 9])["heat settled"].passed is True
    recording = Recording("sysfs", 0.1, None, {})
    recording.phases += [Phase("prefill", 0.0, 8.5), Phase("decode", 8.5, 17.5)]
    recording.times_s["temperature_c/tj"] = [float(i) for i in range(18)]
    recording.values["temperature_c/tj"] = [60.0] * 9 + [52.0] * 9
    work = Phase("work", 0.0, 17.5)
    check = next(c for c in check_sensors(recording, work, None) if c.name == "heat settled")
    assert check.passed is True, check
    recording.values["temperature_c/tj"][6:9] = [50.0] * 3
    check = next(c for c in check_sensors(recording, work, None) if c.name == "heat settled")
    assert check.passed is False
    assert "-10.0 °C" in check.detail
    assert "of prefill" in check.detail


def test_warming_too_slow_to_show_in_one_phase_is_seen_over_all_of_them() -> None:
    recording = Recording("sysfs", 0.1, None, {})
    recording.phases += [Phase("prefill", 0.0, 8.5), Phase("decode", 8.5, 17.5)]
    recording.times_s["temperature_c/tj"] = [float(i) for i in range(18)]
    recording.values["temperature_c/tj"] = [50.0 + 0.6 * i for i in range(18)]
    work = Phase("work", 0.0, 17.5)
    check = next(c for c in check_sensors(recording, work, None) if c.name == "heat settled")
    assert check.passed is False
    assert "+3.6 °C" in check.detail
    assert "of the work" in check.detail


def test_short_events_of_the_third_kind_are_usual_under_the_highest_mode() -> None:
    check = found(events__oc3=[0.0] * 9 + [200.0])["no over-current"]
    assert check.passed is True
    assert "oc3: 200 events" in check.detail


def test_what_was_not_read_is_unknown_and_never_fine() -> None:
    empty = Recording("none", 0.0, None, {"power": "this is a laptop"})
    checks = check_sensors(empty, None, None)
    assert {check.passed for check in checks} == {None}
    assert {check.detail for check in checks} == {"this is a laptop"}


def test_a_sampler_that_costs_too_much_is_found_out() -> None:
    recording = Recording("sysfs", 0.1, None, {})
    recording.times_s["power_w/X"], recording.values["power_w/X"] = [0.0], [1.0]
    recording.wall_s, recording.cpu_s = 10.0, 0.2
    check = next(c for c in check_sensors(recording, None, None) if "cost" in c.name)
    assert check.passed is False
    assert "2.00 % of one core" in check.detail
