# SPDX-License-Identifier: MIT
"""Reads the energy counters of x86 processors (RAPL) below /sys/class/powercap."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import TelemetryError
from pipeline.telemetry import ENERGY, TEMPERATURE, Rail, Reading, polled


class RaplSampler:
    """See `telemetry.Sampler`.

    Args:
        interval_s: Time between readings.
        root: Root of the file tree.

    Raises:
        TelemetryError: There is no counter, or it may not be read.
    """

    source = "rapl"

    def __init__(self, interval_s: float = 0.1, root: Path = Path("/")) -> None:
        self.interval_s = interval_s
        self._counters: dict[str, _Counter] = {}
        folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        for folder in folders:
            name = _read(folder / "name")
            # Zones within a package ("intel-rapl:0:1") are parts of it.
            if name and name.startswith("package") and folder.name.count(":") == 1:
                self._counters[ENERGY + name] = _Counter(folder)
        if not self._counters:
            raise TelemetryError(f"no counter of a processor package in {root}sys/class/powercap")
        if all(counter.joules() is None for counter in self._counters.values()):
            raise TelemetryError(
                "the energy counters of this processor may be read by root alone",
                fix="run as root, or: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj",
            )
        names = [channel.removeprefix(ENERGY) for channel in self._counters]
        self.rail: Rail | None = Rail(
            " + ".join(names),
            tuple(self._counters),
            counts_energy=True,
            excludes="memory outside the package, disks, fans, GPUs and the power supply's losses",
        )
        self._zones = _processor_zones(root)
        self.missing: Mapping[str, str] = (
            {} if self._zones else {"temperature": "no thermal zone of the processor can be read"}
        )

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `telemetry.Sampler.readings`."""
        return polled(self.read, self.interval_s, stop)

    def read(self) -> dict[str, float]:
        """Joules since the sampler began, and temperatures."""
        values: dict[str, float] = {}
        for channel, counter in self._counters.items():
            joules = counter.joules()
            if joules is not None:
                values[channel] = joules
        for zone, path in self._zones.items():
            text = _read(path)
            if text and text.lstrip("-").isdigit():
                values[TEMPERATURE + zone] = int(text) / 1e3
        return values

    def close(self) -> float:
        """See `telemetry.Sampler.close`."""
        return 0.0


class _Counter:
    """One counter of microjoules, which begins again at zero now and then."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "energy_uj"
        span = _read(folder / "max_energy_range_uj")
        self._span = int(span) if span and span.isdigit() else 0
        self._last: int | None = None
        self._sum = 0

    def joules(self) -> float | None:
        """Joules since the first call."""
        text = _read(self._path)
        if text is None or not text.isdigit():
            return None
        now = int(text)
        if self._last is not None:
            step = now - self._last
            self._sum += step if step >= 0 else step + self._span
        self._last = now
        return self._sum / 1e6


def _processor_zones(root: Path) -> dict[str, Path]:
    zones = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if _read(zone / "type") == "x86_pkg_temp" and _read(zone / "temp"):
            zones["package"] = zone / "temp"
    return zones


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
