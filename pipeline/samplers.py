# SPDX-License-Identifier: MIT
"""Chooses how a machine's power and heat are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import TelemetryError, UsageError
from pipeline.jtop_sampler import JtopSampler
from pipeline.nvml_sampler import NvmlSampler
from pipeline.rapl_sampler import RaplSampler
from pipeline.sysfs_sampler import SysfsSampler
from pipeline.tegrastats_sampler import TegrastatsSampler
from pipeline.telemetry import NoSampler, Sampler

# In this order: raw sensors before services that read the same ones more slowly.
_SOURCES: dict[str, Callable[[dict[str, Any], Path], Sampler]] = {
    "sysfs": lambda interval, root: SysfsSampler(**interval, root=root),
    "jtop": lambda interval, _: JtopSampler(**interval),
    "tegrastats": lambda interval, _: TegrastatsSampler(**interval),
    "nvml": lambda interval, _: NvmlSampler(**interval),
    "rapl": lambda interval, root: RaplSampler(**interval, root=root),
}
CHOICES = ("auto", *_SOURCES, "none")
"""What `--telemetry` takes."""


def open_sampler(
    choice: str = "auto", interval_s: float | None = None, root: Path = Path("/")
) -> Sampler:
    """Opens a source of readings.

    Args:
        choice: One of `CHOICES`; "auto" takes the first that works, or none with the reasons.
        interval_s: Time between readings; None leaves each source its own.
        root: Root of the file tree for the sources that read files.

    Raises:
        TelemetryError: The source that was named does not work here.
        UsageError: There is no such source.
    """
    interval: dict[str, Any] = {} if interval_s is None else {"interval_s": interval_s}
    if choice == "none":
        return NoSampler("telemetry was turned off")
    if choice != "auto":
        if choice not in _SOURCES:
            raise UsageError(
                f"unknown source {choice!r} in --telemetry", fix=f"choose from {', '.join(CHOICES)}"
            )
        return _SOURCES[choice](interval, root)
    reasons = []
    for name, open_one in _SOURCES.items():
        try:
            return open_one(interval, root)
        except TelemetryError as error:
            reasons.append(f"{name}: {error}")
    return NoSampler("nothing can be read here: " + "; ".join(reasons))
