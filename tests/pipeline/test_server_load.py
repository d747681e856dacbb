# SPDX-License-Identifier: MIT
"""The scenario "server" on a real engine: every request is answered and timed from its arrival."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench import benchmark_folder
from pipeline.records import BenchSettings


def test_requests_that_arrive_by_chance_are_all_answered(demo_engine: Path) -> None:
    settings = BenchSettings(
        scenario="server",
        request_rate_per_s=200.0,
        sequence_length=4,
        new_tokens=5,
        iterations=12,
        minimum_iterations=12,
        noise_percent=1e-9,
        threads=1,
        telemetry="none",
    )
    record = benchmark_folder(demo_engine, settings)
    served = record.served
    assert served is not None
    assert (served.requests, served.failed) == (12, 0)
    assert served.most_at_once >= 1
    assert record.timings.first_token.count == 12
    assert [len(row) for row in record.timings.decode_samples_ms] == [5] * 12
    assert served.tokens_per_second == pytest.approx(12 * 6 / served.seconds)
    # Arrivals are seeded: the mean of eleven exponential pauses is what it is.
    assert served.offered_rate_per_s > 0
    # Waiting for others is part of a first token, so none comes before its prompt was read.
    assert all(ms > 0 for ms in record.timings.first_token_samples_ms)
