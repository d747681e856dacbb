# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from pipeline.resampling import BLOCK_TOKENS, REPLICATES, Draws, interval


def moving_average(length: int, reach: int, seed: int) -> np.ndarray:
    """A series of mean 0 whose neighbours resemble each other over `reach` places."""
    noise = np.random.default_rng(seed).normal(size=length + reach - 1)
    return np.convolve(noise, np.ones(reach) / reach, "valid")


@pytest.mark.parametrize("reach", [1, 20])
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(reach: int) -> None:
    length, texts, held = 6000, 200, 0
    draws = Draws(length)
    for seed in range(texts):
        low, high = interval(draws.means(moving_average(length, reach, seed)))
        held += low <= 0 <= high
    # 95 % is promised; a block bootstrap stays a little below. Of 200 texts, 2.5 % is a deviation.
    assert 0.87 <= held / texts <= 0.99


def test_what_makes_a_stretch_hard_for_both_cancels_in_their_difference() -> None:
    hard = moving_average(6000, 50, seed=0) * 20
    worse = hard + 0.01
    draws = Draws(6000)
    low, high = interval(draws.means(worse) - draws.means(hard))
    assert (low, high) == pytest.approx((0.01, 0.01))
    low, high = interval(draws.means(hard))
    assert high - low > 0.1


def test_every_token_is_drawn_alike() -> None:
    """The ends of the text meet, so that they are not drawn more rarely than its middle."""
    length = 10 * BLOCK_TOKENS
    draws = Draws(length)
    expected = 1 / length
    for position in (0, 1, length // 2, length - 1):
        series = np.zeros(length)
        series[position] = 1.0
        found = draws.means(series)
        assert found.shape == (REPLICATES,)
        assert found.mean() == pytest.approx(expected, rel=0.1)


def test_a_constant_has_no_spread_even_in_a_text_shorter_than_a_stretch() -> None:
    for length in (1, 5, BLOCK_TOKENS, BLOCK_TOKENS + 1, 2000):
        np.testing.assert_allclose(Draws(length).means(np.full(length, 3.5)), 3.5)


def test_a_short_text_is_said_to_be_too_short() -> None:
    assert not Draws(9 * BLOCK_TOKENS).are_enough
    assert Draws(10 * BLOCK_TOKENS).are_enough
