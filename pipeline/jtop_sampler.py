# SPDX-License-Identifier: MIT
"""Reads the service of jetson-stats, through its own client in a process of its own.

The client differs between versions 4.3 and 7: rails may have no voltage, the total no name, the
GPU the name of its driver. So every value is optional here. Its `avg` of a rail is smoothed with
a weight of one half and is no mean; it is not used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.child_lines import ChildLines
from pipeline.errors import TelemetryError
from pipeline.sysfs_sampler import EXCLUDES_OF_VDD_IN
from pipeline.telemetry import (
    CLOCK,
    CLOCK_LIMIT,
    LOAD,
    POWER,
    SWAP,
    TEMPERATURE,
    Rail,
    Reading,
)

SOCKET = Path("/run/jtop.sock")
# Where the role `telemetry` installs it.
_ENVIRONMENT = Path("/opt/mamba-orin/jetson-stats/bin/python")
_FEED = Path(__file__).with_name("jtop_feed.py")
_OFFLINE_C = -256
_UNNAMED_TOTAL = "TOT"


def parse_facts(facts: Mapping[str, Any]) -> dict[str, float]:
    """The channels of one line of the feed.

    Args:
        facts: "power", "temperature", "memory" and "gpu" as the client has them; any may lack.
    """
    values: dict[str, float] = {}
    power = _mapping(facts.get("power"))
    for name, rail in _mapping(power.get("rail")).items():
        _put(values, POWER + str(name), _mapping(rail).get("power"), 1e3)
    total = _mapping(power.get("tot"))
    _put(values, POWER + str(total.get("name") or _UNNAMED_TOTAL), total.get("power"), 1e3)
    for zone, sensor in _mapping(facts.get("temperature")).items():
        celsius = _mapping(sensor).get("temp")
        if _mapping(sensor).get("online", True) is not False and celsius != _OFFLINE_C:
            _put(values, TEMPERATURE + str(zone), celsius)
    memory = _mapping(facts.get("memory"))
    _put(values, SWAP, _mapping(memory.get("SWAP")).get("used"), 1 / 1024)
    emc = _mapping(memory.get("EMC"))
    _put(values, CLOCK + "memory", emc.get("cur"), 1e3)
    _put(values, LOAD + "memory", emc.get("val"))
    # The first GPU, whatever the device tree calls it.
    gpu = _mapping(next(iter(_mapping(facts.get("gpu")).values()), None))
    clocks = _mapping(gpu.get("freq"))
    _put(values, CLOCK + "gpu", clocks.get("cur"), 1e3)
    _put(values, CLOCK_LIMIT + "gpu", clocks.get("max"), 1e3)
    _put(values, LOAD + "gpu", _mapping(gpu.get("status")).get("load"))
    return values


class JtopSampler:
    """See `telemetry.Sampler`.

    Args:
        interval_s: Time between readings; the first client of the service decides for all.
        socket: Where the service listens.
        command: Runs the feed; None looks for a Python that has jetson-stats.

    Raises:
        TelemetryError: There is no service, no client, or the client is refused.
    """

    source = "jtop"

    def __init__(
        self, interval_s: float = 0.5, socket: Path = SOCKET, command: Sequence[str] | None = None
    ) -> None:
        if not socket.exists():
            raise TelemetryError(
                f"there is no {socket}: the service of jetson-stats does not run",
                fix="start it with: sudo systemctl start jtop",
            )
        self.interval_s = interval_s
        words = [*(command or [_python_with_client(), str(_FEED)]), "--interval", str(interval_s)]
        self._child = ChildLines([*words, "--socket", str(socket)] if socket != SOCKET else words)
        try:
            self._first = self._first_reading()
        except TelemetryError:
            self._child.close()
            raise
        names = [name.removeprefix(POWER) for name in self._first.values if name.startswith(POWER)]
        total = next((name for name in ("VDD_IN", "VIN", "POM_5V_IN") if name in names), None)
        self.missing: Mapping[str, str] = {}
        self.rail: Rail | None = None
        if total:
            self.rail = Rail(total, (POWER + total,), False, EXCLUDES_OF_VDD_IN)
        elif _UNNAMED_TOTAL in names:
            self.rail = Rail(
                "sum of all rails",
                (POWER + _UNNAMED_TOTAL,),
                counts_energy=False,
                excludes="whatever has no rail of its own; jetson-stats found no total",
            )
        else:
            self.missing = {"power": "jetson-stats finds no power sensor"}

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `telemetry.Sampler.readings`."""
        yield self._first
        yield from self._parsed(stop)

    def close(self) -> float:
        """See `telemetry.Sampler.close`."""
        return self._child.close()

    def _first_reading(self) -> Reading:
        for reading in self._parsed(threading.Event()):
            return reading
        raise AssertionError("the lines end by an error alone")

    def _parsed(self, stop: threading.Event) -> Iterator[Reading]:
        for moment, line in self._child.lines(stop):
            try:
                facts = json.loads(line)
            except (ValueError, RecursionError):
                continue
            values = parse_facts(_mapping(facts))
            told = facts.get("time_s") if isinstance(facts, dict) else None
            if values:
                yield Reading(float(told) if isinstance(told, (int, float)) else moment, values)


def _python_with_client() -> str:
    if importlib.util.find_spec("jtop") is not None:
        return sys.executable
    if os.access(_ENVIRONMENT, os.X_OK):
        return str(_ENVIRONMENT)
    raise TelemetryError(
        f"neither this Python nor {_ENVIRONMENT} has the client of jetson-stats",
        fix="run the role telemetry, or: pip install 'mamba-orin[jtop]'",
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _put(values: dict[str, float], channel: str, value: object, scale: float = 1.0) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) / scale
        if abs(number) < 1e15:  # neither infinite nor not a number
            values[channel] = number
