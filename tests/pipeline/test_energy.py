# SPDX-License-Identifier: MIT
"""Energy of waveforms whose energy is known, and the bounds that are stated with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.energy import Energy, added, beyond_idle, counted, metered

Waveform = Callable[[Any], Any]


def constant(_: Any) -> Any:
    return np.full_like(np.asarray(_, dtype=float), 12.5)


def ramp(t: Any) -> Any:
    return 4.0 + 0.8 * np.asarray(t)


def spikes(t: Any) -> Any:
    """Every second 250 ms of 20 W upon 5 W; longer than the time between readings."""
    return np.where(np.asarray(t) % 1.0 < 0.25, 20.0, 5.0)


# From 1.0 to 9.0 seconds, by hand: 8 * 12.5; 8 * 4 + 0.4 * (81 - 1); 8 * (5 + 0.25 * 15).
KNOWN = [(constant, 100.0), (ramp, 64.0), (spikes, 70.0)]


def sampled(waveform: Waveform, interval_s: float = 0.1, offset_s: float = 0.013) -> Any:
    times = offset_s + interval_s * np.arange(int(10 / interval_s))
    return times, waveform(times)


def known(energy: Energy | str) -> Energy:
    assert isinstance(energy, Energy), energy
    return energy


def energy_of(waveform: Waveform, interval_s: float = 0.1) -> Energy:
    times, watts = sampled(waveform, interval_s)
    return known(metered(times, watts, 1.0, 9.0))


@pytest.mark.parametrize(("waveform", "joules"), KNOWN)
@pytest.mark.parametrize("interval_s", [0.02, 0.1, 0.2])
def test_energy_of_a_known_waveform_is_within_its_bound(
    waveform: Waveform, joules: float, interval_s: float
) -> None:
    found = energy_of(waveform, interval_s)
    assert abs(found.joules - joules) <= found.uncertainty_j + 1e-9
    assert found.mean_w == pytest.approx(found.joules / 8)


def test_what_readings_describe_wholly_has_no_error() -> None:
    flat = energy_of(constant)
    assert (flat.joules, flat.uncertainty_j) == pytest.approx((100.0, 0.0))
    rising = energy_of(ramp)
    assert rising.joules == pytest.approx(64.0)
    # One step of 0.08 W either way over 8 s, halved: the bound of what might have been.
    assert rising.uncertainty_j == pytest.approx(0.32, rel=0.02)


def test_faster_readings_narrow_the_bound() -> None:
    bounds = [energy_of(spikes, interval_s).uncertainty_j for interval_s in (0.2, 0.1, 0.02)]
    assert bounds == sorted(bounds, reverse=True)
    # 16 edges of 15 W, each known to 20 ms, half of it either way.
    assert bounds[-1] == pytest.approx(16 * 15 * 0.02 / 2, rel=0.1)


@pytest.mark.parametrize(("waveform", "joules"), KNOWN)
@pytest.mark.parametrize("lost", [(30, 45), (10, 12), (60, 90)])
def test_missing_readings_widen_the_bound_by_what_may_have_happened(
    waveform: Waveform, joules: float, lost: tuple[int, int]
) -> None:
    times, watts = sampled(waveform)
    kept = np.r_[0 : lost[0], lost[1] : len(times)]
    whole = known(metered(times, watts, 1.0, 9.0))
    holed = known(metered(times[kept], watts[kept], 1.0, 9.0))
    assert abs(holed.joules - joules) <= holed.uncertainty_j + 1e-9
    assert holed.uncertainty_j >= whole.uncertainty_j - 1e-9
    assert holed.readings < whole.readings


def test_a_phase_beyond_the_readings_counts_as_a_gap() -> None:
    times, watts = sampled(ramp)
    cut = known(metered(times[:50], watts[:50], 1.0, 9.0))
    whole = known(metered(times, watts, 1.0, 9.0))
    assert cut.uncertainty_j > 10 * whole.uncertainty_j


@given(
    powers=st.lists(st.floats(0, 100), min_size=4, max_size=40),
    shape=st.floats(0.2, 5),
    begin=st.floats(0.0, 0.4),
    end=st.floats(0.6, 1.0),
)
def test_any_power_that_moves_one_way_between_readings_lies_within_the_bound(
    powers: list[float], shape: float, begin: float, end: float
) -> None:
    """The curve between two readings is bent by any exponent, so it is never a straight line."""
    times = np.arange(len(powers), dtype=float)
    start_s, end_s = begin * times[-1], end * times[-1]
    fine = np.linspace(start_s, end_s, 20_001)
    left = np.minimum(fine.astype(int), len(powers) - 2)
    watts = np.asarray(powers)
    curve = watts[left] + (watts[left + 1] - watts[left]) * (fine - left) ** shape
    inside = (times >= start_s) & (times <= end_s)
    found = metered(times, watts, start_s, end_s)
    if not inside.any():
        assert isinstance(found, str)
        return
    truth = float(np.trapezoid(curve, fine))
    tolerance = 1e-3 * max(powers) * (end_s - start_s) + 1e-9  # of the fine integration
    assert abs(known(found).joules - truth) <= known(found).uncertainty_j + tolerance


@given(
    steps=st.lists(st.floats(0.01, 50), min_size=12, max_size=60),
    period=st.integers(1, 3),
)
def test_a_counter_that_is_written_now_and_then_is_within_its_bound(
    steps: list[float], period: int
) -> None:
    """Polled at every second; the hardware writes its sum only every few."""
    truth = np.concatenate(([0.0], np.cumsum(steps)))
    times = np.arange(len(truth), dtype=float)
    written = truth[(np.arange(len(truth)) // period) * period]
    start_s, end_s = 3.5, len(steps) - 4.5
    found = counted(times, written, start_s, end_s)
    if end_s <= start_s or isinstance(found, str):
        return
    exact = float(np.interp(end_s, times, truth) - np.interp(start_s, times, truth))
    assert abs(found.joules - exact) <= found.uncertainty_j + 1e-6


def test_a_counter_needs_no_reading_in_between() -> None:
    found = known(counted([0.0, 0.1, 60.0, 60.1], [0.0, 1.0, 600.0, 601.0], 0.05, 60.05))
    assert found.joules == pytest.approx(600.0)
    assert found.uncertainty_j <= 2.0


def test_idle_is_taken_away_with_its_own_uncertainty() -> None:
    idle = Energy(2.0, 10.0, 0.5, 5.0, 5.0, 20)
    work = Energy(4.0, 50.0, 1.0, 12.5, 13.0, 40)
    net = beyond_idle(work, idle)
    assert net.joules == pytest.approx(30.0)
    assert net.uncertainty_j == pytest.approx(2.0)


def test_rails_add_up() -> None:
    one, two = Energy(2.0, 10.0, 0.5, 5.0, 6.0, 20), Energy(2.0, 4.0, 0.1, 2.0, None, 19)
    both = added([one, two])
    assert (both.joules, both.uncertainty_j, both.mean_w) == pytest.approx((14.0, 0.6, 7.0))
    assert both.peak_w is None, "one rail has none"
    assert both.readings == 19


@pytest.mark.parametrize("find", [metered, counted])
def test_too_little_is_said_and_not_guessed(find: Callable[..., Energy | str]) -> None:
    assert "too few" in str(find([], [], 0.0, 1.0))
    assert "too few" in str(find([5.0], [3.0], 0.0, 9.0))
    assert "too few" in str(find([0.0, 0.1], [3.0, 4.0], 5.0, 9.0))
    assert "no length" in str(find([0.0, 0.1], [3.0, 4.0], 5.0, 5.0))
    with pytest.raises(ValueError, match="rise"):
        find([1.0, 0.5], [1.0, 1.0], 0.0, 2.0)


def test_a_counter_that_stands_still_tells_nothing() -> None:
    assert "did not move" in str(counted([0.0, 1.0, 2.0], [5.0, 5.0, 5.0], 0.5, 1.5))
