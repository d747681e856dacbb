# SPDX-License-Identifier: MIT
"""A board's own sensors: found by name, read without guessing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.energy import Energy, metered
from pipeline.errors import TelemetryError
from pipeline.samplers import CHOICES, open_sampler
from pipeline.sysfs_sampler import SysfsSampler
from pipeline.telemetry import Recorder
from tests.pipeline.board_sensors import GPU, HWMON, OVER_CURRENT, THERMAL, nano_sensors, set_power


def test_everything_a_nano_tells_is_read_in_its_unit(tmp_path: Path) -> None:
    sampler = SysfsSampler(root=nano_sensors(tmp_path))
    values = sampler.read()
    assert values["power_w/VDD_IN"] == pytest.approx(4.54)
    assert values["power_w/VDD_SOC"] == pytest.approx(1.445)
    assert values["temperature_c/tj"] == 47.75
    assert values["clock_mhz/gpu"] == 306
    assert values["clock_limit_mhz/gpu"] == 1020
    assert values["clock_mhz/cpu0"] == 729.6
    assert values["load_percent/gpu"] == 62.5
    assert (values["events/oc1"], values["events/oc3"]) == (1, 3)
    assert values["swap_used_bytes"] == (3894976 - 3635904) * 1024
    assert values["throttle/17000000.gpu"] == 0
    sampler.close()


def test_what_cannot_be_read_is_absent_and_never_zero(tmp_path: Path) -> None:
    root = nano_sensors(tmp_path)
    (root / THERMAL / "thermal_zone1/temp").write_text("-256000\n")
    (root / HWMON / "curr3_input").unlink()
    (root / "proc/meminfo").unlink()
    sampler = SysfsSampler(root=root)
    values = sampler.read()
    assert not {name for name in values if "cv" in name.lower() and "temperature" in name}
    assert "temperature_c/gpu" not in values, "a sensor that is off says -256 °C"
    assert "power_w/VDD_SOC" not in values
    assert "swap_used_bytes" not in values
    assert "clock_mhz/memory" not in values, "root alone may read it"
    assert "throttle/pwm-fan" not in values, "a fan that turns holds nothing back"
    assert "power_w/sum of shunt voltages" not in values
    sampler.close()


def test_the_rail_of_the_whole_module_is_taken_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    sampler = SysfsSampler(root=nano_sensors(tmp_path))
    assert sampler.rail is not None
    assert sampler.rail.name == "VDD_IN"
    assert "carrier board" in sampler.rail.excludes
    sampler.close()


def test_a_board_without_it_adds_its_rails_up(tmp_path: Path) -> None:
    root = nano_sensors(tmp_path)
    (root / HWMON / "in1_label").write_text("NC\n")
    sampler = SysfsSampler(root=root)
    assert sampler.rail is not None
    assert sampler.rail.channels == ("power_w/VDD_CPU_GPU_CV", "power_w/VDD_SOC")
    assert "no sensor for all of it" in sampler.rail.excludes
    sampler.close()


def test_a_machine_without_the_chip_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="no hwmon named ina3221"):
        SysfsSampler(root=tmp_path)
    chosen = open_sampler("auto", root=tmp_path)
    assert chosen.source in {"none", "nvml", "jtop", "tegrastats"}, "what this machine itself has"
    if chosen.source == "none":
        assert "ina3221" in chosen.missing["power"]
        assert "rapl" in chosen.missing["power"]
    chosen.close()
    assert "turned off" in open_sampler("none").missing["power"]
    assert set(CHOICES) >= {"auto", "sysfs", "jtop", "tegrastats", "nvml", "rapl", "none"}


def test_clocks_and_counters_are_read_again_each_time(tmp_path: Path) -> None:
    root = nano_sensors(tmp_path)
    sampler = SysfsSampler(interval_s=0.5, root=root)
    sampler.read()
    (root / GPU / "cur_freq").write_text("1020000000\n")
    (root / OVER_CURRENT / "oc3_event_cnt").write_text("17\n")
    set_power(root, 14.25)
    values = sampler.read()
    assert values["clock_mhz/gpu"] == 1020
    assert values["events/oc3"] == 17
    assert values["power_w/VDD_IN"] == pytest.approx(14.25)
    sampler.close()


def test_heat_is_read_less_often_than_power(tmp_path: Path) -> None:
    sampler = SysfsSampler(interval_s=0.1, root=nano_sensors(tmp_path))
    readings = [sampler.read() for _ in range(10)]
    assert sum("power_w/VDD_IN" in values for values in readings) == 10
    assert sum("temperature_c/tj" in values for values in readings) == 2
    sampler.close()


def test_energy_of_a_step_in_power_that_really_happened(tmp_path: Path) -> None:
    """Readings in real time, from files that change meanwhile; no time is asserted."""
    root = nano_sensors(tmp_path)
    set_power(root, 5.0)
    sampler = SysfsSampler(interval_s=0.01, root=root)
    pause = threading.Event()
    with Recorder(sampler) as recorder:
        with recorder.phase("before"):
            pause.wait(0.2)
        with recorder.phase("after"):
            set_power(root, 15.0)
            pause.wait(0.2)
    recording = recorder.stop()
    times, watts = recording.times_s["power_w/VDD_IN"], recording.values["power_w/VDD_IN"]
    for name, power_w in (("before", 5.0), ("after", 15.0)):
        phase = recording.phase(name)
        assert phase is not None
        found = metered(times, watts, phase.start_s, phase.end_s)
        assert isinstance(found, Energy), found
        truth = power_w * (phase.end_s - phase.start_s)
        assert abs(found.joules - truth) <= found.uncertainty_j + 0.05 * truth
    assert recording.missing == {}
