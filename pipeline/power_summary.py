# SPDX-License-Identifier: MIT
"""Makes of a recording what a benchmark record keeps: energy, heat, clocks, raw readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pipeline.energy import Energy, added, beyond_idle, counted, metered
from pipeline.power_records import (
    Channel,
    ClockSummary,
    PhaseEnergy,
    PowerSummary,
    Stretch,
    TelemetryRecord,
    TemperatureSummary,
)
from pipeline.telemetry import (
    CLOCK,
    CLOCK_LIMIT,
    ENERGY,
    POWER,
    TEMPERATURE,
    Phase,
    Recording,
)

# The zone that stands for a machine: the junction of a Jetson, else the GPU, else the processor.
_ZONES = ("tj", "gpu", "package", "cpu", "CPU")
_IDLE = "idle"
_MEASURED_PHASES = ("idle", "prefill", "decode", "measure")


def working_time(recording: Recording) -> Phase | None:
    """From the first warm-up to the end of the last phase; None when nothing was marked."""
    worked = [phase for phase in recording.phases if phase.name != _IDLE]
    if not worked:
        return None
    return Phase("work", min(p.start_s for p in worked), max(p.end_s for p in worked))


def power_summary(recording: Recording, tokens: Mapping[str, int]) -> PowerSummary | str:
    """Energy of each phase.

    Args:
        recording: Everything that was read.
        tokens: Tokens that each phase has read or produced; phases without any are left out.

    Returns:
        The summary, or why there is none.
    """
    rail = recording.rail
    if rail is None:
        return recording.missing.get("power", "no power sensor was read")
    if not any(channel in recording.times_s for channel in rail.channels):
        return recording.missing.get("power", f"there is no reading of {rail.name}")
    idle_phase = recording.phase(_IDLE)
    idle = _energy(recording, idle_phase) if idle_phase else "idling was not measured"
    phases = tuple(
        _phase_energy(phase, _energy(recording, phase), idle, tokens.get(name))
        for name in _MEASURED_PHASES
        if (phase := recording.phase(name)) is not None
    )
    decode = next((phase for phase in phases if phase.phase == "decode"), None)
    values: dict[str, float | None] = {
        "idle_w": idle.mean_w if isinstance(idle, Energy) else None,
        "mean_w": decode.mean_w if decode else None,
        "peak_w": decode.peak_w if decode else None,
        "energy_per_token_j": decode.energy_per_token_j if decode else None,
        "energy_per_token_uncertainty_j": None,
    }
    if decode and decode.uncertainty_j is not None and decode.tokens:
        values["energy_per_token_uncertainty_j"] = decode.uncertainty_j / decode.tokens
    reasons = dict.fromkeys(values, "decoding was not measured")
    if decode:
        for field in ("mean_w", "peak_w", "energy_per_token_j"):
            reasons[field] = decode.missing.get(field, "")
        reasons["energy_per_token_uncertainty_j"] = decode.missing.get("energy_per_token_j", "")
    if isinstance(idle, str):
        reasons["idle_w"] = idle
    return PowerSummary(
        rail=rail.name,
        excludes=rail.excludes,
        phases=phases,
        missing={field: reasons[field] for field, value in values.items() if value is None},
        **values,
    )


def _energy(recording: Recording, phase: Phase) -> Energy | str:
    rail = recording.rail
    assert rail is not None
    find = counted if rail.counts_energy else metered
    parts = []
    for channel in rail.channels:
        times = recording.times_s.get(channel, [])
        part = find(times, recording.values.get(channel, []), phase.start_s, phase.end_s)
        if isinstance(part, str):
            return part
        parts.append(part)
    energy = added(parts)
    if rail.counts_energy:
        # A counter that is read at the edges shows no peak; a meter beside it does.
        meters = [POWER + channel.removeprefix(ENERGY) for channel in rail.channels]
        peaks = [max(recording.within(meter, phase), default=None) for meter in meters]
        if None not in peaks:
            energy = replace(energy, peak_w=sum(peak for peak in peaks if peak is not None))
    return energy


def _phase_energy(
    phase: Phase, energy: Energy | str, idle: Energy | str, tokens: int | None
) -> PhaseEnergy:
    fields: dict[str, float | int | None] = dict.fromkeys(
        (
            "energy_j",
            "uncertainty_j",
            "mean_w",
            "peak_w",
            "net_energy_j",
            "net_uncertainty_j",
            "energy_per_token_j",
            "net_energy_per_token_j",
        )
    )
    fields["tokens"] = tokens
    reasons = {"tokens": "this phase has no tokens of its own"}
    if isinstance(energy, str):
        reasons |= {field: energy for field in fields if field != "tokens"}
    else:
        fields |= {
            "energy_j": energy.joules,
            "uncertainty_j": energy.uncertainty_j,
            "mean_w": energy.mean_w,
            "peak_w": energy.peak_w,
        }
        reasons["peak_w"] = "too few readings inside the phase"
        if isinstance(idle, Energy) and phase.name != _IDLE:
            net = beyond_idle(energy, idle)
            fields |= {"net_energy_j": net.joules, "net_uncertainty_j": net.uncertainty_j}
        unknown = idle if isinstance(idle, str) else "it is idling itself"
        reasons |= dict.fromkeys(("net_energy_j", "net_uncertainty_j"), unknown)
        if tokens:
            fields["energy_per_token_j"] = energy.joules / tokens
            net_j = fields["net_energy_j"]
            fields["net_energy_per_token_j"] = None if net_j is None else net_j / tokens
        reasons["energy_per_token_j"] = reasons["tokens"]
        reasons["net_energy_per_token_j"] = unknown if tokens else reasons["tokens"]
    return PhaseEnergy(
        phase=phase.name,
        seconds=phase.end_s - phase.start_s,
        readings=0 if isinstance(energy, str) else energy.readings,
        missing={field: reasons[field] for field, value in fields.items() if value is None},
        **fields,  # type: ignore[arg-type] # a whole number of tokens is one
    )


def temperature_summary(recording: Recording, work: Phase | None) -> TemperatureSummary | str:
    """Heat while the engine worked, or why it is not known."""
    zones = recording.channels(TEMPERATURE)
    zone = next((name for name in (*_ZONES, *zones) if name in zones), None)
    readings = recording.within(TEMPERATURE + zone, work) if zone else []
    if zone is None or not readings:
        return recording.missing.get("temperature", "no temperature was read while it worked")
    return TemperatureSummary(
        zone=zone,
        start_c=readings[0],
        mean_c=float(np.mean(readings)),
        peak_c=max(readings),
    )


def clock_summary(recording: Recording) -> ClockSummary | str:
    """The GPU's clock while it decoded, or why it is not known."""
    decoding = recording.phase("decode") or recording.phase("measure")
    clocks = recording.within(CLOCK + "gpu", decoding)
    if not clocks:
        return recording.missing.get("power", "the clock of a GPU cannot be read")
    limits = recording.within(CLOCK_LIMIT + "gpu", decoding)
    return ClockSummary(
        lowest_mhz=min(clocks),
        mean_mhz=float(np.mean(clocks)),
        highest_mhz=max(clocks),
        limit_mhz=limits[-1] if limits else None,
        missing={} if limits else {"limit_mhz": "this source does not tell it"},
    )


def telemetry_record(recording: Recording) -> TelemetryRecord | str:
    """The raw readings, or why there are none."""
    if not recording.times_s:
        return recording.missing.get("power", "nothing was read")
    start = min(
        [times[0] for times in recording.times_s.values()]
        + [phase.start_s for phase in recording.phases]
    )
    longest = max(recording.times_s.values(), key=len)
    median = float(np.median(np.diff(longest))) if len(longest) > 1 else None
    missing = {} if median is not None else {"median_interval_s": "there is one reading"}
    if recording.cpu_percent is None:
        missing["cpu_percent"] = "the recording has no length"
    return TelemetryRecord(
        source=recording.source,
        interval_s=recording.interval_s,
        median_interval_s=None if median is None else round(median, 6),
        cpu_percent=recording.cpu_percent,
        gaps_s=tuple(
            (_moment(begin - start), _moment(end - start)) for begin, end in recording.gaps
        ),
        phases=tuple(
            Stretch(
                name=phase.name,
                start_s=_moment(phase.start_s - start),
                end_s=_moment(phase.end_s - start),
            )
            for phase in recording.phases
        ),
        channels={
            name: Channel(
                times_s=tuple(_moment(time_s - start) for time_s in times),
                values=tuple(float(f"{value:.7g}") for value in recording.values[name]),
            )
            for name, times in sorted(recording.times_s.items())
        },
        missing=missing,
    )


def _moment(seconds: float) -> float:
    """A tenth of a millisecond is finer than any sensor tells."""
    return round(seconds, 4)
