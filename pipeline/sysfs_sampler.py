# SPDX-License-Identifier: MIT
"""Reads a Jetson's own sensors below /sys, without root and without another program.

Power comes from the INA3221 on the module. The chip averages up to 512 conversions, so one
reading spans hundreds of milliseconds and short peaks are flattened. Sensors are found by name
and label, because the number of a hwmon changes between boots. Files stay open: sysfs answers
each read at offset 0 anew, and opening them costs more than reading them.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import TelemetryError
from pipeline.telemetry import (
    CLOCK,
    CLOCK_LIMIT,
    EVENTS,
    LOAD,
    POWER,
    SWAP,
    TEMPERATURE,
    THROTTLE,
    Rail,
    Reading,
    polled,
)

EXCLUDES_OF_VDD_IN = (
    "what the carrier board loses in converting, NVMe disk, USB devices; at the wall it is more"
)
_TOTAL_RAIL = "VDD_IN"
_CHANNELS = range(1, 4)  # the seventh is the sum of the shunts, no rail
_OFFLINE_MILLICELSIUS = -200_000  # a sensor that is off says -256 °C
_READ_BYTES = 64
# Heat and clocks move more slowly than power, and each costs a call to the board's firmware.
_SLOW_INTERVAL_S = 0.5
# Cooling devices that hold clocks down; the fan is one, too, and is meant to run.
_CLOCK_COOLING = re.compile(r"cpu|gpu|devfreq|hot-surface|throttl", re.IGNORECASE)


class _File:
    """An open sysfs attribute; None whenever it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def number(self) -> int | None:
        """The integer it holds now. Some sensors of a Nano exist and refuse every read."""
        try:
            text = os.pread(self._descriptor, _READ_BYTES, 0).strip(b"\0\n ")
        except OSError:
            return None
        return int(text) if re.fullmatch(rb"-?\d{1,18}", text) else None

    def close(self) -> None:
        """Closes it."""
        os.close(self._descriptor)


class SysfsSampler:
    """See `telemetry.Sampler`.

    Args:
        interval_s: Time between readings of the power.
        root: Root of the file tree.

    Raises:
        TelemetryError: There is no INA3221, so this is not a board that it can read.
    """

    source = "sysfs"

    def __init__(self, interval_s: float = 0.1, root: Path = Path("/")) -> None:
        self.interval_s = interval_s
        self._root = root
        self._open: list[_File] = []
        self._rails: dict[str, tuple[_File, _File]] = {}
        self._slow: dict[str, tuple[_File, float]] = {}
        self._find_rails()
        if not self._rails:
            raise TelemetryError(
                f"no hwmon named ina3221 below {root}sys/class/hwmon",
                fix="on a Jetson, check that the kernel modules of Jetson Linux are loaded",
            )
        self._find_slow()
        self.missing: Mapping[str, str] = (
            {} if any(name.startswith(TEMPERATURE) for name in self._slow)
            else {"temperature": "no thermal zone can be read"}
        )  # fmt: skip
        self.rail: Rail | None = self._total()
        self._beats = max(1, round(_SLOW_INTERVAL_S / interval_s))
        self._beat = 0

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `telemetry.Sampler.readings`."""
        return polled(self.read, self.interval_s, stop)

    def read(self) -> dict[str, float]:
        """Power now; temperatures, clocks and counters at every few calls."""
        values: dict[str, float] = {}
        for channel, (volts, amperes) in self._rails.items():
            millivolts, milliamperes = volts.number(), amperes.number()
            if millivolts is not None and milliamperes is not None:
                values[channel] = millivolts * milliamperes / 1e6
        if self._beat % self._beats == 0:
            self._read_slow(values)
        self._beat += 1
        return values

    def close(self) -> float:
        """See `telemetry.Sampler.close`."""
        for file in self._open:
            file.close()
        self._open.clear()
        return 0.0

    def _read_slow(self, values: dict[str, float]) -> None:
        for channel, (file, scale) in self._slow.items():
            number = file.number()
            if number is None:
                continue
            if channel.startswith(TEMPERATURE) and number < _OFFLINE_MILLICELSIUS:
                continue
            values[channel] = number / scale
        swap = _swap_used_bytes(self._root)
        if swap is not None:
            values[SWAP] = swap

    def _file(self, path: Path) -> _File | None:
        with contextlib.suppress(OSError):
            file = _File(path)
            self._open.append(file)
            return file
        return None

    def _find_rails(self) -> None:
        for hwmon in self._hwmons("ina3221"):
            for number in _CHANNELS:
                label = _text(hwmon / f"in{number}_label")
                volts = self._file(hwmon / f"in{number}_input")
                amperes = self._file(hwmon / f"curr{number}_input")
                if label and "NC" not in label and volts and amperes:
                    self._rails[POWER + label] = volts, amperes

    def _total(self) -> Rail:
        if POWER + _TOTAL_RAIL in self._rails:
            return Rail(
                _TOTAL_RAIL,
                (POWER + _TOTAL_RAIL,),
                counts_energy=False,
                excludes=EXCLUDES_OF_VDD_IN,
            )
        names = [channel.removeprefix(POWER) for channel in self._rails]
        return Rail(
            " + ".join(names),
            tuple(self._rails),
            counts_energy=False,
            excludes="whatever is not fed by these rails; this board has no sensor for all of it",
        )

    def _find_slow(self) -> None:
        system = self._root / "sys"
        for zone in sorted((system / "class/thermal").glob("thermal_zone*")):
            name = _text(zone / "type")
            if name:
                self._add(TEMPERATURE + name.replace("-thermal", ""), zone / "temp", 1e3)
        for cooling in sorted((system / "class/thermal").glob("cooling_device*")):
            name = _text(cooling / "type")
            if name and _CLOCK_COOLING.search(name):
                self._add(THROTTLE + name, cooling / "cur_state", 1)
        for gpu in sorted((system / "class/devfreq").glob("*")):
            if gpu.name.endswith((".gpu", ".ga10b")):
                self._add(CLOCK + "gpu", gpu / "cur_freq", 1e6)
                self._add(CLOCK_LIMIT + "gpu", gpu / "max_freq", 1e6)
                self._add(LOAD + "gpu", gpu / "device/load", 10)
        cpu = system / "devices/system/cpu/cpu0/cpufreq"
        self._add(CLOCK + "cpu0", cpu / "scaling_cur_freq", 1e3)
        # Root alone may read the memory's clock.
        self._add(CLOCK + "memory", system / "kernel/debug/bpmp/debug/clk/emc/rate", 1e6)
        for hwmon in self._hwmons("soctherm_oc"):
            for counter in sorted(hwmon.glob("oc*_event_cnt")):
                self._add(EVENTS + counter.name.partition("_")[0], counter, 1)

    def _add(self, channel: str, path: Path, scale: float) -> None:
        file = self._file(path)
        if file is not None and channel not in self._slow:
            self._slow[channel] = file, scale

    def _hwmons(self, name: str) -> Iterator[Path]:
        for hwmon in sorted((self._root / "sys/class/hwmon").glob("hwmon*")):
            if _text(hwmon / "name") == name:
                yield hwmon


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _swap_used_bytes(root: Path) -> float | None:
    fields = re.findall(
        r"^(SwapTotal|SwapFree):\s+(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE
    )
    sizes = {name: int(kilobytes) * 1024 for name, kilobytes in fields}
    return float(sizes["SwapTotal"] - sizes["SwapFree"]) if len(sizes) == 2 else None
