# SPDX-License-Identifier: MIT
from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.batch_rows import find_row_multiple
from pipeline.engine import load_engine
from pipeline.session import Floats, Session, State, TokenIds


class Grouped:
    """A model whose kernels take rows in groups and treat the rest of a batch otherwise."""

    backend = "grouped"

    def __init__(self, inner: Session, group: int) -> None:
        self._inner = inner
        self._group = group
        self.architecture = inner.architecture

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        return self._inner.prefill(token_ids, state, all_logits=all_logits)

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        logits, after = self._inner.step(token_ids, state)
        logits[len(token_ids) // self._group * self._group :] += 1e-6
        return logits, after


@pytest.fixture(scope="module")
def session(engine: Path) -> Session:
    return load_engine(engine, threads=1).session


@pytest.mark.parametrize(("group", "expected"), [(1, 1), (2, 2), (3, 1), (4, 4), (8, 8)])
def test_batches_are_filled_up_to_whole_groups(session: Session, group: int, expected: int) -> None:
    assert find_row_multiple(Grouped(session, group), 8) == expected


def test_where_nothing_helps_the_log_says_so(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_row_multiple(Grouped(session, 1), 1) == 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert find_row_multiple(Grouped(session, 3), 4) == 1
    assert "depend on how many run at once" in caplog.text


def test_a_row_that_sees_its_neighbours_is_noticed(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaking(Grouped):
        def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
            logits, after = self._inner.step(token_ids, state)
            logits += 1e-6 * token_ids.sum()
            return logits, after

    assert find_row_multiple(Leaking(session, 1), 8) == 1
    assert "depend on how many run at once" in caplog.text
