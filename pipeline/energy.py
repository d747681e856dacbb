# SPDX-License-Identifier: MIT
"""Joules from readings, with how far they may be off; pure functions.

Two kinds of sensors: a meter tells the power at moments, a counter the energy so far.

**Meters.** Between two readings the power is taken to have moved in one direction, so it lay
between them: the straight line's energy is off by at most half of their difference times the
time between. Across a gap it may have been anywhere between the lowest and the highest reading
of the whole recording. These errors are added up, none cancels another. What no bound covers: a
change that came and went between two readings, unless the sensor itself averages over them, and
the accuracy of the sensor.

**Counters.** The energy between two moments lies between that of the readings just inside and
just outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_Values = npt.NDArray[np.float64]

_GAP_STEPS = 2.5
_FEWEST_READINGS = 2


@dataclass(frozen=True)
class Energy:
    """Energy between two moments.

    Attributes:
        seconds: Time between them.
        joules: Energy.
        uncertainty_j: The true energy lies within this much of it; see the module.
        mean_w: Joules over seconds.
        peak_w: The highest reading, or of a counter the steepest step; None without one inside.
        readings: How many lie inside.
    """

    seconds: float
    joules: float
    uncertainty_j: float
    mean_w: float
    peak_w: float | None
    readings: int


def metered(
    times_s: npt.ArrayLike, watts: npt.ArrayLike, start_s: float, end_s: float
) -> Energy | str:
    """Energy by readings of a meter.

    Args:
        times_s: Moments of the readings, rising.
        watts: The readings.
        start_s: From when.
        end_s: Until when.

    Returns:
        The energy, or why there is none.
    """
    times, values = _arrays(times_s, watts)
    refusal = _refuse(times, start_s, end_s)
    if refusal:
        return refusal
    inside = (times >= start_s) & (times <= end_s)
    lowest, highest = float(values.min()), float(values.max())
    longest_step = _GAP_STEPS * float(np.median(np.diff(times)))
    # Beyond the first and the last reading their values are held, as across a gap.
    edges = np.unique(np.concatenate(([start_s], times[inside], [end_s])))
    power = np.interp(edges, times, values)
    joules = float(np.trapezoid(power, edges))
    low = high = 0.0
    for left, right in pairwise(edges):
        before = int(np.searchsorted(times, left, side="right")) - 1
        after = int(np.searchsorted(times, right, side="left"))
        is_gap = before < 0 or after >= len(times) or times[after] - times[before] > longest_step
        if is_gap:
            bottom, top = lowest, highest
        else:
            bottom, top = sorted((float(values[before]), float(values[after])))
        low += bottom * (right - left)
        high += top * (right - left)
    seconds = end_s - start_s
    return Energy(
        seconds=seconds,
        joules=joules,
        uncertainty_j=max(joules - low, high - joules, 0.0),
        mean_w=joules / seconds,
        peak_w=float(values[inside].max()) if inside.any() else None,
        readings=int(inside.sum()),
    )


def counted(
    times_s: npt.ArrayLike, joules_so_far: npt.ArrayLike, start_s: float, end_s: float
) -> Energy | str:
    """Energy by readings of a counter.

    Args:
        times_s: Moments of the readings, rising.
        joules_so_far: The readings, never falling.
        start_s: From when.
        end_s: Until when.

    Returns:
        The energy, or why there is none.
    """
    times, values = _arrays(times_s, joules_so_far)
    refusal = _refuse(times, start_s, end_s)
    if refusal:
        return refusal
    # A counter is written now and then; only the moments at which it moved tell anything.
    moved = np.concatenate(([True], np.diff(values) > 0))
    times, values = times[moved], values[moved]
    if len(times) < _FEWEST_READINGS or start_s < times[0] or end_s > times[-1]:
        return "the counter did not move before and after"
    begin, begin_error = _count_at(times, values, start_s)
    finish, finish_error = _count_at(times, values, end_s)
    seconds = end_s - start_s
    inside = (times >= start_s) & (times <= end_s)
    steps = np.diff(values) / np.diff(times)
    inner = inside[:-1] & inside[1:]
    return Energy(
        seconds=seconds,
        joules=finish - begin,
        uncertainty_j=begin_error + finish_error,
        mean_w=(finish - begin) / seconds,
        peak_w=float(steps[inner].max()) if inner.any() else None,
        readings=int(inside.sum()),
    )


def _count_at(times: _Values, values: _Values, moment: float) -> tuple[float, float]:
    """The counter at a moment, and how far off: it lies between the readings around it.

    What is read may be one update old, so the bound reaches over the whole step.
    """
    after = min(max(int(np.searchsorted(times, moment, side="left")), 1), len(times) - 1)
    return (
        float(np.interp(moment, times, values)),
        float(values[after] - values[after - 1]),
    )


@dataclass(frozen=True)
class NetEnergy:
    """Energy beyond what an idle machine uses.

    Attributes:
        joules: Energy less idle power times time.
        uncertainty_j: Both uncertainties added.
    """

    joules: float
    uncertainty_j: float


def beyond_idle(work: Energy, idle: Energy) -> NetEnergy:
    """Takes away what the machine would have used doing nothing in the same time."""
    share = work.seconds / idle.seconds
    return NetEnergy(
        joules=work.joules - share * idle.joules,
        uncertainty_j=work.uncertainty_j + share * idle.uncertainty_j,
    )


def added(parts: Sequence[Energy]) -> Energy:
    """The energy of rails that add up to the whole; peaks may not have come together."""
    peaks = [part.peak_w for part in parts if part.peak_w is not None]
    joules = sum(part.joules for part in parts)
    return Energy(
        seconds=parts[0].seconds,
        joules=joules,
        uncertainty_j=sum(part.uncertainty_j for part in parts),
        mean_w=joules / parts[0].seconds,
        peak_w=sum(peaks) if len(peaks) == len(parts) else None,
        readings=min(part.readings for part in parts),
    )


def _arrays(times_s: npt.ArrayLike, values: npt.ArrayLike) -> tuple[_Values, _Values]:
    times, found = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
    if times.shape != found.shape:
        raise ValueError(f"{times.shape} moments and {found.shape} readings")
    if (np.diff(times) <= 0).any():
        raise ValueError("moments must rise")
    return times, found


def _refuse(times: _Values, start_s: float, end_s: float) -> str | None:
    if end_s <= start_s:
        return "the phase has no length"
    inside = int(((times >= start_s) & (times <= end_s)).sum())
    if len(times) < _FEWEST_READINGS or inside < 1:
        return f"{inside} readings in {end_s - start_s:.3g} s are too few"
    return None
