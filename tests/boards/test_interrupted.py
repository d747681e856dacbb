# SPDX-License-Identifier: MIT
"""A run that is killed at any task, and started again, ends in the same state.

Where it is killed is every task that changes something on a fresh board. A board goes through
several such ends one after the other, and at every second one it loses its power as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.boards.engine import Engine
from tests.boards.fleet import Fleet, Run
from tests.boards.simulated import Board

pytestmark = pytest.mark.boards

REFERENCE = Board("reference")
# So many boards share the tasks, two at a time.
BOARDS = [Board(f"cut-off-{number}") for number in range(1, 11)]
# Seconds after a task has begun: at once, on the way to the board, while it works there.
DELAYS_S = (0.0, 0.4, 0.9)


@dataclass
class Ends:
    """What came out."""

    fleet: Fleet
    tasks: list[str]
    reached: dict[str, bool]
    finished: Run
    again: Run


@pytest.fixture(scope="module")
def ends(engine: Engine) -> Iterator[Ends]:
    at_once = {"provision_batches": ["100%"]}
    names = [board.name for board in BOARDS]
    with Fleet(engine, [REFERENCE, *BOARDS]) as fleet:
        whole = fleet.play("provision.yml", limit=[REFERENCE.name], tag="reference")
        assert whole.code == 0, whole.output[-2000:]
        tasks = whole.changed(REFERENCE.name)
        reached: dict[str, bool] = {}

        def cut_off(number: int) -> None:
            for index in range(number, len(tasks), len(names)):
                reached[tasks[index]] = fleet.kill_at(
                    names[number], tasks[index], DELAYS_S[index % len(DELAYS_S)]
                )
                if index % 2:
                    fleet.cut_power(names[number])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(cut_off, range(len(names))))
        finished = fleet.play("provision.yml", variables=at_once, limit=names, tag="finished")
        again = fleet.play("provision.yml", variables=at_once, limit=names, tag="finished-again")
        yield Ends(fleet, tasks, reached, finished, again)


def test_every_task_that_changes_something_was_reached(ends: Ends) -> None:
    assert len(ends.tasks) > 40
    assert [task for task in ends.tasks if not ends.reached.get(task)] == []


@pytest.mark.parametrize("name", [board.name for board in BOARDS])
def test_the_next_run_finishes_what_was_cut_off(ends: Ends, name: str) -> None:
    assert not ends.finished.reason(name), ends.finished.reason(name)
    assert not ends.finished.boards[name]["unreachable"]
    assert ends.again.changed(name) == []


@pytest.mark.parametrize("name", [board.name for board in BOARDS])
def test_the_end_is_the_same(ends: Ends, name: str) -> None:
    assert ends.fleet.snapshot(name) == ends.fleet.snapshot(REFERENCE.name)
