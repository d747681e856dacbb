# SPDX-License-Identifier: MIT
"""Work that comes again becomes one call, and never runs twice for one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pipeline.cuda_driver import Stream
from pipeline.cuda_repeats import Repeats


class RecordedStream:
    """Writes down what reaches the GPU; while it captures, nothing does."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.launches = 0
        self._is_capturing = False

    def enqueue(self, name: str) -> None:
        if not self._is_capturing:
            self.done.append(name)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        self._is_capturing = True
        enqueue()
        self._is_capturing = False
        return self.done[-1]

    def launch(self, graph: Any) -> None:
        self.launches += 1
        self.done.append(graph)


def runner() -> tuple[RecordedStream, Repeats, Callable[[str], None]]:
    stream = RecordedStream()
    repeats = Repeats(cast("Stream", stream))
    return stream, repeats, lambda name: repeats.run(name, lambda: stream.enqueue(name))


def test_every_order_runs_once_and_from_the_third_time_on_by_its_graph() -> None:
    stream, _, run = runner()
    for _ in range(5):
        run("a")
    assert stream.done == ["a"] * 5
    assert stream.launches == 3


def test_what_comes_once_is_not_recorded() -> None:
    stream, _, run = runner()
    for number in range(20):
        run(str(number))
    run("19")
    assert stream.launches == 0
    run("19")
    assert stream.launches == 1


def test_only_the_latest_kinds_of_work_are_kept() -> None:
    stream, _, run = runner()
    for name in ("a", "a", "a", *"bcdefghi", "a"):
        run(name)
    assert stream.launches == 1
    assert stream.done[-1] == "a"


def test_after_addresses_have_changed_no_old_graph_runs() -> None:
    stream, repeats, run = runner()
    for _ in range(3):
        run("a")
    repeats.forget()
    run("a")
    assert stream.launches == 1
    assert stream.done == ["a"] * 4
