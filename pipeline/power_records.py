# SPDX-License-Identifier: MIT
"""What a benchmark record says of power, heat and clocks, and the raw readings behind it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.facts import Facts


class Channel(BaseModel):
    """The readings of one sensor.

    Attributes:
        times_s: When, in seconds since the recording began.
        values: What, in the unit that the channel's name says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    times_s: tuple[float, ...]
    values: tuple[float, ...]

    @model_validator(mode="after")
    def _has_a_moment_for_every_value(self) -> Channel:
        if len(self.times_s) != len(self.values):
            raise ValueError(f"{len(self.times_s)} moments and {len(self.values)} values")
        return self


class Stretch(BaseModel):
    """A part of the recording.

    Attributes:
        name: What was done: "idle", "warm-up", "measure", "prefill" or "decode".
        start_s: Beginning, in seconds since the recording began.
        end_s: End.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    start_s: float
    end_s: float


class TelemetryRecord(Facts):
    """The raw readings of one benchmark.

    Attributes:
        source: "sysfs", "jtop", "tegrastats", "nvml" or "rapl".
        interval_s: Time between readings that was asked for.
        median_interval_s: That of the fastest channel, as it was.
        cpu_percent: Share of one processor core that reading took, child processes included.
        gaps_s: Beginning and end of each stretch without any reading.
        phases: What was done when.
        channels: Readings by channel; see `pipeline.telemetry` for the names.
    """

    source: str
    interval_s: float
    median_interval_s: float | None
    cpu_percent: float | None
    gaps_s: tuple[tuple[float, float], ...]
    phases: tuple[Stretch, ...]
    channels: dict[str, Channel]


class PhaseEnergy(Facts):
    """Energy of one phase.

    Attributes:
        phase: Like "decode".
        seconds: How long it took.
        readings: Readings of the rail inside it.
        energy_j: Energy.
        uncertainty_j: The energy lies within this much of it, as far as the moments of the
            readings go; the sensor's own accuracy is not part of it. See `pipeline.energy`.
        mean_w: Mean power.
        peak_w: Highest reading.
        net_energy_j: Beyond what the idle machine, model loaded, would have used meanwhile.
        net_uncertainty_j: Of the latter.
        tokens: Tokens of all texts that the phase has read or produced.
        energy_per_token_j: Energy over tokens.
        net_energy_per_token_j: Net energy over tokens.
    """

    phase: str
    seconds: float
    readings: int
    energy_j: float | None
    uncertainty_j: float | None
    mean_w: float | None
    peak_w: float | None
    net_energy_j: float | None
    net_uncertainty_j: float | None
    tokens: int | None
    energy_per_token_j: float | None
    net_energy_per_token_j: float | None


class PowerSummary(Facts):
    """Power over the measurement.

    Attributes:
        rail: What was read, like "VDD_IN".
        excludes: What that rail leaves out.
        idle_w: Mean power with the model loaded and nothing to do.
        mean_w: Mean power while decoding.
        peak_w: Highest reading while decoding.
        energy_per_token_j: Energy of a decoded token, idle power included.
        energy_per_token_uncertainty_j: Of the latter.
        phases: Each phase by itself.
    """

    rail: str
    excludes: str
    idle_w: float | None
    mean_w: float | None
    peak_w: float | None
    energy_per_token_j: float | None
    energy_per_token_uncertainty_j: float | None
    phases: tuple[PhaseEnergy, ...]


class TemperatureSummary(BaseModel):
    """Temperature from the first warm-up to the last token.

    Attributes:
        zone: Which sensor, like "tj".
        start_c: At the first reading.
        mean_c: Mean.
        peak_c: Highest reading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    zone: str
    start_c: float
    mean_c: float
    peak_c: float


class ClockSummary(Facts):
    """Clock of the GPU while it worked.

    Attributes:
        lowest_mhz: Lowest reading.
        mean_mhz: Mean.
        highest_mhz: Highest reading.
        limit_mhz: The highest that the power mode allows.
    """

    lowest_mhz: float
    mean_mhz: float
    highest_mhz: float
    limit_mhz: float | None


class Pinned(Facts):
    """What was done to the machine so that it stands still, and whether it was undone.

    Attributes:
        power_mode_before: Name of the mode that was active.
        power_mode: Name of the mode that was measured.
        clocks: "locked" by this benchmark, "locked before" it, or "left" as they were.
        restored: Whether mode and clocks were put back; None when nothing was changed.
    """

    power_mode_before: str | None
    power_mode: str | None
    clocks: Literal["locked", "locked before", "left"]
    restored: bool | None


class ServedLoad(Facts):
    """What the scenario "server" adds: requests that arrive by chance at a rate.

    Attributes:
        requested_rate_per_s: Rate that was asked for.
        offered_rate_per_s: Rate at which requests did arrive.
        requests: Requests that were answered.
        failed: Requests that were not.
        most_at_once: The most requests that were under way together.
        seconds: From the first arrival to the last token.
        tokens_per_second: Tokens of all answers over that time.
    """

    requested_rate_per_s: float
    offered_rate_per_s: float
    requests: int
    failed: int
    most_at_once: int
    seconds: float
    tokens_per_second: float
