# SPDX-License-Identifier: MIT
"""NVML through a stand-in driver: what a GPU supports is found out, not assumed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import TelemetryError
from pipeline.nvml_sampler import NvmlSampler


class RefusalError(Exception):
    """What pynvml raises."""


def driver(**refused: bool) -> Any:
    """A driver of one GPU of 300 W whose refused calls answer as pynvml does."""

    def answering(name: str, value: Any) -> Any:
        def call(*_: Any) -> Any:
            if refused.get(name):
                raise RefusalError("Not Supported")
            return value

        return call

    nvml = SimpleNamespace(
        NVMLError=RefusalError,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        closed=0,
        asked=[],
    )
    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetName": b"GPU X",
        "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
        "nvmlDeviceGetPowerUsage": 300_500,
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97),
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x1,
    }
    for name, value in answers.items():
        setattr(nvml, name, answering(name, value))

    def by_index(index: int) -> str:
        nvml.asked.append(index)
        return f"handle {index}"

    def by_uuid(uuid: str) -> str:
        nvml.asked.append(uuid)
        return uuid

    def shutdown() -> None:
        nvml.closed += 1

    nvml.nvmlDeviceGetHandleByIndex = by_index
    nvml.nvmlDeviceGetHandleByUUID = by_uuid
    nvml.nvmlShutdown = shutdown
    return nvml


def test_values_are_in_the_units_that_their_names_say() -> None:
    nvml = driver()
    sampler = NvmlSampler(nvml=nvml)
    values = sampler.read()
    assert "energy_j/gpu" not in values, "the counter is too dear for every reading"
    assert values["power_w/gpu"] == 300.5
    assert (values["clock_mhz/gpu"], values["load_percent/gpu"]) == (1980, 97)
    assert values["throttle/power cap"] == 1
    assert values["throttle/hardware thermal"] == 0, "idling is no throttling either"
    assert "throttle/" not in values
    assert sampler.rail is not None
    assert sampler.rail.name == "GPU X"
    assert sampler.rail.counts_energy
    assert "host" in sampler.rail.excludes
    sampler.close()
    assert nvml.closed == 1


def test_an_edge_waits_until_the_counter_has_moved() -> None:
    nvml = driver()
    counter = iter([4_000_000, 5_000_000, 5_000_000, 5_000_000, 5_100_000, 5_200_000])
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda _: next(counter)
    sampler = NvmlSampler(nvml=nvml)
    first, moved = sampler.edge_readings()
    assert (first.values["energy_j/gpu"], moved.values["energy_j/gpu"]) == (5000, 5100)
    assert moved.time_s > first.time_s


def test_an_edge_of_a_gpu_without_a_counter_has_no_readings() -> None:
    sampler = NvmlSampler(nvml=driver(nvmlDeviceGetTotalEnergyConsumption=True))
    assert list(sampler.edge_readings()) == []


def test_what_the_driver_takes_long_to_tell_and_never_changes_is_asked_once() -> None:
    nvml = driver()
    asked = []

    def maximum(*arguments: Any) -> int:
        asked.append(arguments)
        return 1980

    nvml.nvmlDeviceGetMaxClockInfo = maximum
    sampler = NvmlSampler(nvml=nvml)
    assert [sampler.read()["clock_limit_mhz/gpu"] for _ in range(3)] == [1980] * 3
    assert len(asked) == 1


def test_a_gpu_without_a_counter_is_metered_and_one_without_either_says_so() -> None:
    sampler = NvmlSampler(nvml=driver(nvmlDeviceGetTotalEnergyConsumption=True))
    assert sampler.rail is not None
    assert not sampler.rail.counts_energy
    blind = NvmlSampler(
        nvml=driver(
            nvmlDeviceGetTotalEnergyConsumption=True,
            nvmlDeviceGetPowerUsage=True,
            nvmlDeviceGetTemperature=True,
        )
    )
    assert blind.rail is None
    assert set(blind.missing) == {"power", "temperature"}
    assert "power_w/gpu" not in blind.read()


@pytest.mark.parametrize(
    ("visible", "asked"), [("", 0), ("3,1", 3), ("GPU-ab12", "GPU-ab12"), (None, 0)]
)
def test_the_gpu_that_cuda_sees_first_is_the_one_that_is_read(
    visible: str | None, asked: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = driver()
    NvmlSampler(nvml=nvml)
    assert nvml.asked == [asked]


def test_no_driver_is_an_error_with_its_words() -> None:
    with pytest.raises(TelemetryError, match="Not Supported"):
        NvmlSampler(nvml=driver(nvmlInit=True))
