# SPDX-License-Identifier: MIT
"""Reasons to trust a benchmark record, or not to: each check passes, fails or cannot be made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.board import Activity
from pipeline.power_records import PowerSummary
from pipeline.records import BenchSettings, Check, Timings
from pipeline.telemetry import (
    CLOCK,
    CLOCK_LIMIT,
    EVENTS,
    SWAP,
    TEMPERATURE,
    THROTTLE,
    Phase,
    Recording,
)

_MINIMUM_FIRST_TOKENS = 5
_MINIMUM_DECODED = 100
_MAXIMUM_SPREAD_PERCENT = 5.0
_MAXIMUM_OTHER_LOAD_PERCENT = 5.0


def check_timings(timings: Timings, settings: BenchSettings) -> tuple[Check, ...]:
    """What the samples themselves say about the record."""
    first, decode = timings.first_token, timings.decode
    return (
        Check(
            name="enough samples",
            passed=first.count >= _MINIMUM_FIRST_TOKENS and decode.count >= _MINIMUM_DECODED,
            detail=f"{first.count} prompts (at least {_MINIMUM_FIRST_TOKENS}), {decode.count} "
            f"decoded tokens (at least {_MINIMUM_DECODED})",
        ),
        Check(
            name="settled",
            passed=timings.stopped == "settled",
            detail={
                "settled": f"the last medians moved by at most {settings.noise_percent:g} %",
                "iterations": f"the medians still moved by more than {settings.noise_percent:g} % "
                f"after {settings.iterations} iterations",
                "time": f"the medians still moved by more than {settings.noise_percent:g} % "
                f"after {settings.maximum_seconds:g} s",
            }[timings.stopped],
        ),
        _check_spread("spread of the first token", first.spread_percent, first.count),
        _check_spread("spread of decoding", decode.spread_percent, decode.count),
        check_linear_growth(timings.decode_samples_ms, settings.sequence_length),
    )


def _check_spread(name: str, spread: float | None, count: int) -> Check:
    if spread is None:
        return Check(name=name, passed=None, detail=f"{count} samples have no spread")
    return Check(
        name=name,
        passed=spread <= _MAXIMUM_SPREAD_PERCENT,
        detail=f"half of the samples lie within {spread:.2g} % of the median "
        f"(at most {_MAXIMUM_SPREAD_PERCENT:g} %)",
    )


def check_linear_growth(
    decode_samples_ms: Sequence[Sequence[float]], sequence_length: int
) -> Check:
    """Whether a token late in a continuation costs as much as an early one.

    The last quarter of each continuation is compared with its first. A decoder that reads its
    whole text again for every token is slower there by the ratio of the texts' lengths; the
    check fails half way to that.

    Args:
        decode_samples_ms: (iteration, new token).
        sequence_length: Tokens before the continuation.
    """
    samples = np.asarray(decode_samples_ms)
    new_tokens = samples.shape[1]
    quarter = new_tokens // 4
    name = "grows linearly"
    if quarter < 4:
        return Check(
            name=name, passed=None, detail=f"{new_tokens} new tokens are too few; 16 would do"
        )
    early = np.median(samples[:, :quarter], axis=1)
    late = np.median(samples[:, -quarter:], axis=1)
    found = float(np.median(late / early))
    middle = quarter / 2
    quadratic = (sequence_length + new_tokens - middle) / (sequence_length + middle)
    return Check(
        name=name,
        passed=found <= (1 + quadratic) / 2,
        detail=f"the last {quarter} of {new_tokens} tokens cost {found:.3f} times the first "
        f"{quarter}; reading the text again for each would make it {quadratic:.2f}",
    )


def check_activity(
    before: Activity, after: Activity, seconds: float, cores: int
) -> tuple[Check, ...]:
    """What else the machine did meanwhile."""
    name = "no other load"
    if before.busy_s is None or after.busy_s is None or seconds <= 0:
        load = Check(name=name, passed=None, detail="this system does not tell what others use")
    else:
        others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
        percent = max(0.0, 100 * others / (seconds * cores))
        load = Check(
            name=name,
            passed=percent <= _MAXIMUM_OTHER_LOAD_PERCENT,
            detail=f"other processes used {percent:.1f} % of {cores} cores "
            f"(at most {_MAXIMUM_OTHER_LOAD_PERCENT:g} %)",
        )
    name = "no swapping"
    if before.swapped_pages is None or after.swapped_pages is None:
        return load, Check(name=name, passed=None, detail="this system does not count it")
    moved = after.swapped_pages - before.swapped_pages
    used = f"; {after.swap_used_bytes / 1e6:.0f} MB in use" if after.swap_used_bytes else ""
    return load, Check(
        name=name, passed=moved == 0, detail=f"{moved} pages moved to or from swap{used}"
    )


# --- what the sensors say -----------------------------------------------------------------

_FEWEST_POWER_READINGS = 10
_MAXIMUM_COUNTER_UNCERTAINTY_PERCENT = 5.0
_MAXIMUM_SWAP_BYTES = 100e6
_MAXIMUM_CLOCK_MOVEMENT_PERCENT = 2.0
_MAXIMUM_WARMING_C = 3.0
_PHASES_THAT_COUNT = ("measure", "prefill", "decode")
_MAXIMUM_SAMPLER_CPU_PERCENT = 1.0
# Jetson Linux begins to hold clocks down at 99 °C in software and at 101 °C in firmware, and
# its trip point before that is at 95 °C.
_THROTTLING_C = 95.0
# Under MAXN_SUPER one to thirty short events a second of the third kind are normal and cost at
# most 1.5 %; the other two kinds mean too weak a supply or too high a mean.
_USUAL_OVER_CURRENT = "oc3"
_USUAL_EVENTS_PER_S = 30.0


def check_sensors(
    recording: Recording, work: Phase | None, power: PowerSummary | None
) -> tuple[Check, ...]:
    """What the readings say about the time in which the engine worked.

    Args:
        recording: Everything that was read.
        work: From the first warm-up to the last token; None when nothing was marked.
        power: What was made of the power readings.
    """
    return (
        check_throttling(recording, work),
        check_over_current(recording, work),
        check_swap_in_use(recording, work),
        check_clocks(recording),
        check_warming(recording, work),
        check_power_readings(recording, power),
        check_sampler_cost(recording),
    )


def check_throttling(recording: Recording, work: Phase | None) -> Check:
    """Whether heat or a limit held the clocks down."""
    name = "not throttled"
    hottest = _hottest(recording, work)
    held = {
        reason: len([state for state in states if state > 0])
        for reason in recording.channels(THROTTLE)
        if (states := recording.within(THROTTLE + reason, work))
    }
    if not held and hottest is None:
        return _unknown(name, recording, "no thermal zone and no cooling device can be read")
    active = [f"{reason} in {count} readings" for reason, count in held.items() if count]
    is_too_hot = hottest is not None and hottest[1] >= _THROTTLING_C
    heat = f"at most {hottest[1]:.0f} °C ({hottest[0]})" if hottest else "temperature unknown"
    if active or is_too_hot:
        what = f"held back by {', '.join(active)}" if active else "hot enough to be held back"
        return Check(name=name, passed=False, detail=f"{what}; {heat}")
    return Check(name=name, passed=True, detail=f"nothing held the clocks down; {heat}")


def check_over_current(recording: Recording, work: Phase | None) -> Check:
    """Whether the supply was too weak; counters before and after."""
    name = "no over-current"
    kinds = recording.channels(EVENTS)
    if not kinds or work is None:
        return _unknown(name, recording, "no counter of over-current events can be read")
    grown = {}
    for kind in kinds:
        counts = recording.within(EVENTS + kind, work)
        if counts:
            grown[kind] = counts[-1] - counts[0]
    seconds = work.end_s - work.start_s
    per_s = {kind: count / seconds for kind, count in grown.items()}
    bad = [
        kind
        for kind in grown
        if per_s[kind] > (_USUAL_EVENTS_PER_S if kind == _USUAL_OVER_CURRENT else 0)
    ]
    detail = ", ".join(f"{kind}: {count:.0f} events" for kind, count in grown.items())
    return Check(
        name=name,
        passed=not bad,
        detail=f"{detail} in {seconds:.0f} s (none, but {_USUAL_OVER_CURRENT} up to "
        f"{_USUAL_EVENTS_PER_S:g} a second)",
    )


def check_swap_in_use(recording: Recording, work: Phase | None) -> Check:
    """Whether some of the memory in use lay in swap."""
    name = "no swap in use"
    used = recording.within(SWAP, work)
    if not used:
        return _unknown(name, recording, "this source does not tell it")
    return Check(
        name=name,
        passed=max(used) <= _MAXIMUM_SWAP_BYTES,
        detail=f"{max(used) / 1e6:.0f} MB at most (limit {_MAXIMUM_SWAP_BYTES / 1e6:.0f} MB)",
    )


def check_clocks(recording: Recording) -> Check:
    """Whether the GPU's clock stood still while it decoded."""
    name = "clocks stood still"
    decoding = recording.phase("decode") or recording.phase("measure")
    clocks = recording.within(CLOCK + "gpu", decoding)
    if not clocks:
        return _unknown(name, recording, "the clock of a GPU cannot be read")
    moved = 100 * (max(clocks) - min(clocks)) / max(clocks)
    limits = recording.within(CLOCK_LIMIT + "gpu", decoding)
    limit = f"; the limit is {limits[-1]:.0f} MHz" if limits else ""
    return Check(
        name=name,
        passed=moved <= _MAXIMUM_CLOCK_MOVEMENT_PERCENT,
        detail=f"GPU between {min(clocks):.0f} and {max(clocks):.0f} MHz while decoding "
        f"(at most {_MAXIMUM_CLOCK_MOVEMENT_PERCENT:g} %){limit}",
    )


def check_warming(recording: Recording, work: Phase | None) -> Check:
    """Whether the machine had reached the temperature that it keeps.

    Each phase must keep its own, since a prompt heats more than decoding does; over all of the
    work only a rise counts.
    """
    name = "heat settled"
    hottest = _hottest(recording, work)
    if hottest is None:
        return _unknown(name, recording, "no temperature can be read")
    channel = TEMPERATURE + hottest[0]
    risen = _moved(recording.within(channel, work))
    if risen is None:
        count = len(recording.within(channel, work))
        return _unknown(name, recording, f"{count} readings are too few to tell")
    moved = {"the work": max(risen, 0.0)}
    for phase in recording.phases:
        change = _moved(recording.within(channel, phase))
        if phase.name in _PHASES_THAT_COUNT and change is not None:
            moved[phase.name] = change
    worst = max(moved, key=lambda stretch: abs(moved[stretch]))
    return Check(
        name=name,
        passed=abs(moved[worst]) <= _MAXIMUM_WARMING_C,
        detail=f"{hottest[0]} moved by {moved[worst]:+.1f} °C from the middle third to the last "
        f"of {worst} (at most {_MAXIMUM_WARMING_C:g} °C)",
    )


def _moved(readings: list[float]) -> float | None:
    """From the mean of the middle third to that of the last; None with less than three."""
    third = len(readings) // 3
    if third == 0:
        return None
    return float(np.mean(readings[-third:]) - np.mean(readings[third : 2 * third]))


def check_power_readings(recording: Recording, power: PowerSummary | None) -> Check:
    """Whether the power was read often enough, or a counter near enough to the edges."""
    name = "enough power readings"
    if power is None:
        return _unknown(name, recording, recording.missing.get("power", "no power was read"))
    decode = next((phase for phase in power.phases if phase.phase == "decode"), None)
    if recording.rail is not None and recording.rail.counts_energy:
        if decode is None or decode.energy_j is None or decode.uncertainty_j is None:
            return Check(name=name, passed=False, detail="decoding was not counted")
        percent = 100 * decode.uncertainty_j / decode.energy_j if decode.energy_j else math.inf
        return Check(
            name=name,
            passed=percent <= _MAXIMUM_COUNTER_UNCERTAINTY_PERCENT,
            detail=f"the counter of {power.rail} tells the energy of decoding to {percent:.2g} % "
            f"(at most {_MAXIMUM_COUNTER_UNCERTAINTY_PERCENT:g} %)",
        )
    readings = decode.readings if decode else 0
    gaps = f"; {len(recording.gaps)} gaps" if recording.gaps else ""
    return Check(
        name=name,
        passed=readings >= _FEWEST_POWER_READINGS,
        detail=f"{readings} readings of {power.rail} while decoding "
        f"(at least {_FEWEST_POWER_READINGS}){gaps}",
    )


def check_sampler_cost(recording: Recording) -> Check:
    """Whether reading the sensors took no time worth mentioning."""
    name = "reading sensors cost little"
    percent = recording.cpu_percent
    if percent is None or not recording.times_s:
        return _unknown(name, recording, "nothing was read")
    return Check(
        name=name,
        passed=percent <= _MAXIMUM_SAMPLER_CPU_PERCENT,
        detail=f"{percent:.2f} % of one core (at most {_MAXIMUM_SAMPLER_CPU_PERCENT:g} %)",
    )


def _hottest(recording: Recording, work: Phase | None) -> tuple[str, float] | None:
    """The zone with the highest reading, and that reading."""
    peaks = [
        (max(readings), zone)
        for zone in recording.channels(TEMPERATURE)
        if (readings := recording.within(TEMPERATURE + zone, work))
    ]
    return max(peaks)[::-1] if peaks else None


def _unknown(name: str, recording: Recording, reason: str) -> Check:
    if recording.source == "none":
        reason = recording.missing["power"]
    return Check(name=name, passed=None, detail=reason)
