# SPDX-License-Identifier: MIT
"""What the sampler's cost is computed from; the cost itself is a benchmark's matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.sampler_cost import measure_cost
from pipeline.samplers import open_sampler
from pipeline.session import Floats, TokenIds
from tests.pipeline.board_sensors import nano_sensors


class CountingSession:
    """A model of four tokens that is at once done, and counts its steps."""

    def __init__(self) -> None:
        self.steps = 0

    def prefill(self, token_ids: TokenIds) -> tuple[Floats, None]:
        """Logits that have no meaning."""
        return np.zeros((len(token_ids), 4), np.float32), None

    def step(self, token_ids: TokenIds, state: None) -> tuple[Floats, None]:
        """Logits that have no meaning."""
        del state
        self.steps += 1
        return np.zeros((len(token_ids), 4), np.float32), None


def test_costs_of_hurried_readings_are_told_for_the_usual_ones(tmp_path: Path) -> None:
    root = nano_sensors(tmp_path)
    usual = open_sampler("sysfs", root=root)
    usual.close()
    session = CountingSession()
    row = measure_cost(session, "sysfs", root, pairs=5, tokens=300, seed=1, times_as_often=20)  # type: ignore[arg-type]
    assert session.steps == 300 + 5 * 2 * 300, "a warm-up, then each pair with and without"
    assert row["interval_s"] == pytest.approx(usual.interval_s / 20)
    assert row["readings"] >= 5, "each block with the sampler begins with a reading"
    changes = row["changes_percent"]
    assert len(changes) == 5
    assert row["effect_percent"] == pytest.approx(np.median(changes) / 20, abs=1e-4)
    assert min(changes) / 20 - 1e-4 <= row["effect_low_percent"] <= row["effect_percent"]
    assert row["effect_percent"] <= row["effect_high_percent"] <= max(changes) / 20 + 1e-4


@pytest.mark.parametrize("zero", ["pairs", "tokens", "times_as_often"])
def test_counts_that_are_not_positive_are_refused(tmp_path: Path, zero: str) -> None:
    counts = {"pairs": 1, "tokens": 1, "times_as_often": 1, zero: 0}
    with pytest.raises(UsageError, match="pairs of"):
        measure_cost(CountingSession(), "none", tmp_path, seed=1, **counts)  # type: ignore[arg-type]


def test_a_source_that_sets_its_own_pace_is_not_hurried(tmp_path: Path) -> None:
    session = CountingSession()
    with pytest.raises(UsageError, match="none sets its own pace"):
        measure_cost(session, "none", tmp_path, pairs=1, tokens=1, seed=1, times_as_often=20)  # type: ignore[arg-type]
