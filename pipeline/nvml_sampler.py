# SPDX-License-Identifier: MIT
"""Reads a desktop or server GPU through NVIDIA's NVML. The only module that imports pynvml.

Orin's NVML knows neither power nor memory, so a Jetson is read through sysfs instead. On GPUs
since Volta a counter holds the energy since the driver was loaded, so no reading is needed in
between; the power that NVML tells is on most of them a mean over a second and shows no peaks. That
counter is dear: the driver takes 3.5 ms of processor time to answer (H200, driver 580), a thousand
times what the others take, so it is read less often than they could be.
"""

from __future__ import annotations

import functools
import os
import threading
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
        self.rail, self.missing = self._describe()

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `telemetry.Sampler.readings`."""
        return polled(self.read, self.interval_s, stop)

    def read(self) -> dict[str, float]:
        """All channels now."""
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
            ENERGY + "gpu": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
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
        for channel, counts in ((ENERGY + "gpu", True), (POWER + "gpu", False)):
            if channel in self._reads:
                return Rail(self._name, (channel,), counts, _EXCLUDES), missing
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
