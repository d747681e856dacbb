# SPDX-License-Identifier: MIT
"""Reads a desktop or server GPU through NVIDIA's NVML. The only module that imports pynvml.

Orin's NVML knows neither power nor memory, so a Jetson is read through sysfs instead. On GPUs
since Volta a counter holds the energy since the driver was loaded; the power that NVML tells is on
most of them a mean over a second and shows no peaks. That counter is dear: the driver takes 3.5 ms
of processor time to answer (H200, driver 580), a thousand times what the others take, so it is read
at the edges of phases alone, which needs no more.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.errors import TelemetryError
from pipeline.telemetry import (
    CLOCK,
    CLOCK_LIMIT,
    ENERGY,
    LOAD,
    POWER,
    TEMPERATURE,
    THROTTLE,
    Rail,
    Reading,
    polled,
)

# The longest that an edge waits for the counter to move.
_LONGEST_UPDATE_S = 1.0

_EXCLUDES = "the host: its processor, memory, disks, fans and the power supply's losses"
# Bits of nvmlClocksEventReasons that mean that the GPU was held back (nvml.h). Idling, a cap
# that an application has asked for, and the like are no throttling.
_REASONS = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "software thermal": 0x20,
    "hardware thermal": 0x40,
    "power brake": 0x80,
}


class NvmlSampler:
    """See `telemetry.Sampler`.

    Args:
        interval_s: Time between readings.
        nvml: The module pynvml, or what behaves like it.
        device: Index of the GPU or its UUID; None takes what CUDA_VISIBLE_DEVICES names first.

    Raises:
        TelemetryError: The package, the library or the GPU is not there.
    """

    source = "nvml"

    def __init__(
        self, interval_s: float = 0.4, nvml: Any = None, device: str | None = None
    ) -> None:
        self.interval_s = interval_s
        self._nvml = nvml if nvml is not None else _import()
        try:
            self._nvml.nvmlInit()
            self._handle = self._find(device)
            self._name = _text(self._nvml.nvmlDeviceGetName(self._handle))
        except self._nvml.NVMLError as error:
            raise TelemetryError(f"NVML: {error}", fix="check that nvidia-smi works") from error
        self._reads = self._supported()
        self._counts = self._count() is not None
        self.rail, self.missing = self._describe()

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `telemetry.Sampler.readings`."""
        return polled(self.read, self.interval_s, stop)

    def read(self) -> dict[str, float]:
        """All channels now, but for the counter."""
        values: dict[str, float] = {}
        for channel, get in self._reads.items():
            try:
                values[channel] = get()
            except self._nvml.NVMLError:
                continue
        reasons = values.pop(THROTTLE, None)
        if reasons is not None:
            for name, bit in _REASONS.items():
                values[THROTTLE + name] = float(bool(int(reasons) & bit))
        return values

    def edge_readings(self) -> Iterator[Reading]:
        """See `telemetry.CountsAtEdges.edge_readings`."""
        first = self._count() if self._counts else None
        if first is None:
            return
        yield first
        while (found := self._count()) is not None:
            if found.values != first.values:
                yield found
                return
            if found.time_s - first.time_s > _LONGEST_UPDATE_S:
                return

    def _count(self) -> Reading | None:
        before = time.monotonic()
        try:
            joules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3
        except self._nvml.NVMLError:
            return None
        return Reading((before + time.monotonic()) / 2, {ENERGY + "gpu": joules})

    def close(self) -> float:
        """See `telemetry.Sampler.close`."""
        self._nvml.nvmlShutdown()
        return 0.0

    def _find(self, device: str | None) -> Any:
        visible = device or os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        if visible.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(visible))
        return self._nvml.nvmlDeviceGetHandleByUUID(visible)

    def _supported(self) -> dict[str, Callable[[], float]]:
        """Channels that this GPU and driver answer."""
        nvml, handle = self._nvml, self._handle
        reasons = getattr(
            nvml,
            "nvmlDeviceGetCurrentClocksEventReasons",
            getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None),
        )
        limit = functools.cache(  # of the chip, not of the moment; a millisecond each
            lambda: float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
        )
        wanted: dict[str, Callable[[], float]] = {
            POWER + "gpu": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            TEMPERATURE + "gpu": lambda: float(
                nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            CLOCK + "gpu": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            CLOCK + "memory": lambda: float(
                nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
            ),
            CLOCK_LIMIT + "gpu": limit,
            LOAD + "gpu": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        }
        if reasons is not None:
            wanted[THROTTLE] = lambda: float(reasons(handle))
        found = {}
        for channel, get in wanted.items():
            try:
                get()
            except nvml.NVMLError:
                continue
            found[channel] = get
        return found

    def _describe(self) -> tuple[Rail | None, Mapping[str, str]]:
        missing = {}
        if TEMPERATURE + "gpu" not in self._reads:
            missing["temperature"] = f"NVML does not tell that of a {self._name}"
        if self._counts:
            return Rail(self._name, (ENERGY + "gpu",), True, _EXCLUDES), missing
        if POWER + "gpu" in self._reads:
            return Rail(self._name, (POWER + "gpu",), False, _EXCLUDES), missing
        return None, {**missing, "power": f"NVML does not tell that of a {self._name}"}


def _import() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise TelemetryError(
            "the package nvidia-ml-py is not installed", fix="pip install 'mamba-orin[nvml]'"
        ) from error
    return pynvml


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
