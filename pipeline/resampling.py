# SPDX-License-Identifier: MIT
"""How far a mean over the tokens of a text would move on another text of its kind.

Losses of neighbouring tokens resemble each other, so tokens cannot be drawn one by one: whole
stretches are drawn, with replacement (circular block bootstrap: Politis and Romano, 1992). Values
of several models on the same text are to be drawn with the same stretches: what makes a stretch
hard for one makes it hard for all, and cancels in their difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 128
"""Length of a stretch: a paragraph or two."""

REPLICATES = 2000
LEVEL_PERCENT = 95

# With fewer stretches than this the spread of the draws says nothing about the text.
_FEWEST_BLOCKS = 10
_SEED = 0

Floats = npt.NDArray[np.floating[Any]]
Interval = tuple[float, float]


class Draws:
    """The same random stretches for every series of one text.

    Args:
        length: Values of a series, one a token.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        blocks = -(-length // BLOCK_TOKENS)
        self.are_enough = blocks >= _FEWEST_BLOCKS
        generator = np.random.default_rng(_SEED)
        self._starts = generator.integers(0, max(1, length), (REPLICATES, blocks))

    def means(self, series: Floats) -> Floats:
        """The mean of a series (length,) in each draw, (REPLICATES,)."""
        around = np.concatenate([series, np.resize(series, BLOCK_TOKENS)])
        sums = np.concatenate([[0.0], np.cumsum(around, dtype=np.float64)])
        of_block = (sums[BLOCK_TOKENS:] - sums[:-BLOCK_TOKENS])[: self._length]
        means: Floats = of_block[self._starts].mean(axis=1) / BLOCK_TOKENS
        return means


def interval(values: Floats) -> Interval:
    """The middle LEVEL_PERCENT of some values."""
    tail = (100 - LEVEL_PERCENT) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
