# SPDX-License-Identifier: MIT
"""Reads what NVIDIA's tegrastats prints, in the forms of JetPack 5, 6 and 7.

A line is a row of tokens whose presence and order change between releases, boards and users, so
each is looked for on its own and none is required. Below 100 ms tegrastats does not become
faster. Its lines carry seconds of wall-clock time; the moment of a line's arrival is used.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence

from pipeline.child_lines import ChildLines
from pipeline.errors import TelemetryError
from pipeline.sysfs_sampler import EXCLUDES_OF_VDD_IN
from pipeline.telemetry import CLOCK, LOAD, POWER, SWAP, TEMPERATURE, Rail, Reading

FASTEST_INTERVAL_S = 0.1
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")

_NUMBER = r"\d{1,9}"
# "VDD_IN 4541mW/4541mW": now and the mean since tegrastats began. JetPack 4 left out the unit.
_RAIL = re.compile(rf"\b([A-Z]\w{{2,31}}) ({_NUMBER})(?:mW/{_NUMBER}mW|mW\b|/{_NUMBER}(?![\w/]))")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w{0,31})@(-?\d{1,4}(?:\.\d{1,4})?)C\b")
_SWAP = re.compile(rf"\bSWAP ({_NUMBER})/{_NUMBER}MB\b")
_MEMORY = re.compile(rf"\bEMC_FREQ (\d{{1,3}})%(?:@({_NUMBER}))?")
# "62%@612", or with one clock for each cluster "62%@[611,0]"; root alone sees some of it.
_GPU = re.compile(rf"\bGR3D_FREQ (\d{{1,3}})%(?:@\[?({_NUMBER}))?")
_CPU = re.compile(rf"\bCPU \[\s*(?:\d{{1,3}}%@({_NUMBER})|off)")
_NO_SENSOR_BELOW_C = -200


def parse_line(line: str) -> dict[str, float]:
    """The channels of one line; empty when it holds none.

    Args:
        line: As tegrastats prints it.
    """
    values: dict[str, float] = {}
    for name, milliwatts in _RAIL.findall(line):
        values.setdefault(POWER + name, int(milliwatts) / 1e3)
    # The memory's tokens have the same shape as those of a rail of JetPack 4.
    for name in ("RAM", "SWAP", "IRAM"):
        values.pop(POWER + name, None)
    for zone, celsius in _TEMPERATURE.findall(line):
        if float(celsius) > _NO_SENSOR_BELOW_C:
            values.setdefault(TEMPERATURE + zone, float(celsius))
    if found := _SWAP.search(line):
        values[SWAP] = int(found[1]) * 2.0**20
    for pattern, name in ((_GPU, "gpu"), (_MEMORY, "memory")):
        if found := pattern.search(line):
            values[LOAD + name] = float(found[1])
            if found[2]:
                values[CLOCK + name] = float(found[2])
    if (found := _CPU.search(line)) and found[1]:
        values[CLOCK + "cpu0"] = float(found[1])
    return values


class TegrastatsSampler:
    """See `telemetry.Sampler`.

    Args:
        interval_s: Time between lines.
        command: The program.

    Raises:
        TelemetryError: It cannot be started.
    """

    source = "tegrastats"

    def __init__(self, interval_s: float = 0.1, command: Sequence[str] = ("tegrastats",)) -> None:
        self.interval_s = max(interval_s, FASTEST_INTERVAL_S)
        self._child = ChildLines([*command, "--interval", str(round(self.interval_s * 1e3))])
        try:
            # It says which rails there are, and is kept, so nothing is lost.
            self._first = self._first_reading()
        except TelemetryError:
            self._child.close()
            raise
        names = [name.removeprefix(POWER) for name in self._first.values if name.startswith(POWER)]
        total = next((name for name in _TOTAL_RAILS if name in names), None)
        self.missing: Mapping[str, str] = {} if total else {
            "power": "tegrastats prints no rail of the whole module, "
            f"only {', '.join(names) or 'none at all'}"
        }  # fmt: skip
        self.rail = (
            Rail(total, (POWER + total,), counts_energy=False, excludes=EXCLUDES_OF_VDD_IN)
            if total
            else None
        )

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """See `telemetry.Sampler.readings`."""
        yield self._first
        for moment, line in self._child.lines(stop):
            if values := parse_line(line):
                yield Reading(moment, values)

    def close(self) -> float:
        """See `telemetry.Sampler.close`."""
        return self._child.close()

    def _first_reading(self) -> Reading:
        for moment, line in self._child.lines(threading.Event()):
            if values := parse_line(line):
                return Reading(moment, values)
        raise AssertionError("the lines end by an error alone")
