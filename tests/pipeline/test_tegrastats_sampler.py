# SPDX-License-Identifier: MIT
"""Lines of tegrastats as boards print them, any other text, and a log that is replayed."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.energy import Energy, metered
from pipeline.errors import TelemetryError
from pipeline.tegrastats_sampler import TegrastatsSampler, parse_line
from pipeline.telemetry import Recorder

JETPACK_6 = (
    "09-17-2026 02:10:16 RAM 1483/7620MB (lfb 105x4MB) SWAP 253/12002MB (cached 2MB) "
    "CPU [0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] GR3D_FREQ 62%@612 cpu@47.75C "
    "soc2@46.718C soc0@47.25C gpu@50C tj@50C soc1@48.093C VDD_IN 4541mW/4541mW "
    "VDD_CPU_GPU_CV 521mW/521mW VDD_SOC 1446mW/1473mW"
)
JETPACK_7_ROOT = (
    "08-19-2026 11:00:01 RAM 2210/7620MB (lfb 5x1MB) SWAP 0/0MB (cached 0MB) "
    "CPU [off,12%@1728,off,3%@1728,0%@1728,0%@1728] EMC_FREQ 41%@3199 GR3D_FREQ 99%@[1007] "
    "NVDEC off NVJPG off VIC off OFA off APE 200 cv0@-256C cpu@61.5C gpu@63C tj@63.5C "
    "VDD_IN 14880mW/9120mW VDD_CPU_GPU_CV 6010mW/3010mW VDD_SOC 3220mW/2100mW"
)
JETPACK_4 = (
    "RAM 1903/3964MB (lfb 2x1MB) IRAM 0/252kB(lfb 252kB) SWAP 0/1982MB (cached 0MB) "
    "CPU [5%@1479,off,off,2%@1479] EMC_FREQ 0% GR3D_FREQ 0% PLL@33C CPU@35.5C GPU@34C "
    "PMIC@100C AO@41.5C thermal@34.5C POM_5V_IN 2532/2698 POM_5V_GPU 41/41 POM_5V_CPU 370/448"
)
TOKENS = (
    JETPACK_6.split() + JETPACK_7_ROOT.split() + ["VDD_IN", "@C", "%@[,", "mW/", "CPU [", "999"]
)


def test_a_line_of_jetpack_6() -> None:
    values = parse_line(JETPACK_6)
    assert values["power_w/VDD_IN"] == 4.541
    assert values["power_w/VDD_SOC"] == 1.446, "now, not the mean"
    assert values["temperature_c/tj"] == 50
    assert values["temperature_c/soc1"] == 48.093
    assert values["load_percent/gpu"] == 62
    assert values["clock_mhz/gpu"] == 612
    assert values["clock_mhz/cpu0"] == 729
    assert values["swap_used_bytes"] == 253 * 2**20
    assert "load_percent/memory" not in values
    assert len([name for name in values if name.startswith("power_w/")]) == 3


def test_a_line_of_jetpack_7_as_root_with_processors_off() -> None:
    values = parse_line(JETPACK_7_ROOT)
    assert values["clock_mhz/gpu"] == 1007
    assert values["load_percent/memory"] == 41
    assert values["clock_mhz/memory"] == 3199
    assert "clock_mhz/cpu0" not in values, "it is off"
    assert "temperature_c/cv0" not in values, "a sensor that is off"
    assert values["power_w/VDD_IN"] == 14.88


def test_rails_of_jetpack_4_have_no_unit() -> None:
    values = parse_line(JETPACK_4)
    assert values["power_w/POM_5V_IN"] == 2.532
    assert values["power_w/POM_5V_CPU"] == 0.37
    assert "clock_mhz/gpu" not in values
    assert not {"power_w/RAM", "power_w/SWAP", "power_w/IRAM"} & values.keys()


@given(st.text())
def test_any_text_is_read_without_a_crash(line: str) -> None:
    assert all(math.isfinite(value) for value in parse_line(line).values())


@given(st.lists(st.sampled_from(TOKENS), max_size=60), st.integers(0, 400))
def test_tokens_in_any_order_and_number_are_read_without_a_crash(
    tokens: list[str], cut: int
) -> None:
    values = parse_line(" ".join(tokens)[cut:])
    assert all(math.isfinite(value) for value in values.values())


@given(st.permutations(JETPACK_6.partition(" RAM ")[2].split(" VDD_")))
def test_the_order_of_rails_means_nothing(parts: list[str]) -> None:
    line = " ".join(part if part[0].isdigit() else f"VDD_{part}" for part in parts)
    found = {name: value for name, value in parse_line(line).items() if "VDD" in name}
    whole = {name: value for name, value in parse_line(JETPACK_6).items() if "VDD" in name}
    assert found == whole


def replaying(folder: Path, lines: list[str], and_then: str) -> list[str]:
    """A program that prints a recorded log at the pace it is asked for, as tegrastats does."""
    log, program = folder / "tegrastats.log", folder / "tegrastats.py"
    log.write_text("\n".join(lines) + "\n")
    program.write_text(
        "import sys, time\n"
        "assert sys.argv[1] == '--interval'\n"
        "interval_s = int(sys.argv[2]) / 1e3\n"
        f"for line in open({str(log)!r}):\n"
        "    print(line, end='', flush=True)\n"
        "    time.sleep(interval_s / 10)  # a test need not wait for a board's pace\n"
        f"{and_then}\n"
    )
    return [sys.executable, str(program)]


def test_a_replayed_log_gives_its_energy(tmp_path: Path) -> None:
    lines = [JETPACK_6.replace("VDD_IN 4541mW", f"VDD_IN {4000 + 100 * i}mW") for i in range(40)]
    sampler = TegrastatsSampler(0.1, replaying(tmp_path, lines, "time.sleep(600)"))
    assert sampler.rail is not None
    done = threading.Event()
    with Recorder(sampler) as recorder:
        while len(recorder.recording.values.get("power_w/VDD_IN", [])) < len(lines):
            done.wait(0.01)
    recording = recorder.stop()
    times, watts = recording.times_s["power_w/VDD_IN"], recording.values["power_w/VDD_IN"]
    assert watts == [4.0 + 0.1 * i for i in range(40)] or watts == pytest.approx(
        [4.0 + 0.1 * i for i in range(40)]
    )
    found = metered(times, watts, times[0], times[-1])
    assert isinstance(found, Energy)
    # Steps of a tenth of a watt: whatever the pace, half of one is the most it can be off.
    assert found.uncertainty_j == pytest.approx(0.05 * found.seconds, rel=1e-6)
    assert found.peak_w == pytest.approx(7.9)
    assert recording.cpu_s > 0, "the program's own processor time counts"


def test_a_program_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    ends = "sys.stderr.write('no sensors left\\n'); sys.exit(7)"
    sampler = TegrastatsSampler(0.1, replaying(tmp_path, [JETPACK_6], ends))
    with Recorder(sampler) as recorder:
        recorder._thread.join(20)
    assert "ended with code 7: no sensors left" in recorder.stop().missing["power"]
    with pytest.raises(TelemetryError, match="ended with code 7"):
        TegrastatsSampler(0.1, replaying(tmp_path, [], ends))
    with pytest.raises(TelemetryError, match="cannot start"):
        TegrastatsSampler(0.1, [str(tmp_path / "absent")])


def test_lines_without_the_whole_modules_rail_leave_power_unknown(tmp_path: Path) -> None:
    line = JETPACK_6.partition(" VDD_IN")[0] + " VDD_SOC 1446mW/1473mW"
    sampler = TegrastatsSampler(0.1, replaying(tmp_path, [line], "time.sleep(600)"))
    assert sampler.rail is None
    assert "only VDD_SOC" in sampler.missing["power"]
    sampler.close()
