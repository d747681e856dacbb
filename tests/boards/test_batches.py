# SPDX-License-Identifier: MIT
"""Rolling through a fleet: a canary, then growing batches, and no other after one that failed."""

from __future__ import annotations

import pytest

from tests.boards.engine import Engine
from tests.boards.fleet import Fleet
from tests.boards.simulated import Board

pytestmark = pytest.mark.boards

BOARDS = (
    Board("board-1"),
    Board("board-2", is_jetson=False),
    Board("board-3"),
    Board("board-4"),
)


def test_after_a_batch_with_a_failure_no_other_begins(engine: Engine) -> None:
    with Fleet(engine, BOARDS) as fleet:
        run = fleet.play("provision.yml", "--tags", "board_facts", tag="batches")
    assert run.code != 0
    assert run.changed("board-1")
    assert "no Jetson Orin Nano" in run.reason("board-2")
    for name in ("board-3", "board-4"):
        assert not run.boards[name]["begun"]
        assert run.changed(name) == []
        assert f"{name}  ?" in run.output
    assert run.output.count("not begun") == 2


def test_a_batch_is_finished_by_the_boards_that_can(engine: Engine) -> None:
    with Fleet(engine, BOARDS) as fleet:
        batches = {"provision_batches": ["100%"]}
        run = fleet.play(
            "provision.yml", "--tags", "board_facts", variables=batches, tag="one-batch"
        )
    assert run.code != 0
    assert "no Jetson Orin Nano" in run.reason("board-2")
    assert all(run.changed(name) for name in ("board-1", "board-3", "board-4"))
