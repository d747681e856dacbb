# SPDX-License-Identifier: MIT
"""Continuous batching, with a gate in front of the model so that nothing depends on luck."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline.batch_rows import find_row_multiple
from pipeline.bundle import convert
from pipeline.engine import build, load_engine
from pipeline.errors import BackendError, EmptyPromptError, TokenRangeError, UsageError
from pipeline.generation import Sampling, generate
from pipeline.generation_request import (
    Begun,
    Ended,
    Event,
    Failed,
    Progressed,
    QueueFullError,
    RanTooLongError,
    Request,
    StoppedError,
    WaitedTooLongError,
)
from pipeline.manifest import Precision
from pipeline.metrics import Metrics
from pipeline.prefix_cache import PrefixCache
from pipeline.scheduler import Limits, Scheduler
from pipeline.session import Session, State
from pipeline.text_assembly import TextAssembler, TokenRecord
from pipeline.tokenizer import TextStream
from tests.checkpoints import RandomCheckpoint
from tests.pipeline.serving import PATIENCE_S, GatedSession

PIECE_TOKENS = 16
GREEDY = Sampling()


class Numbers:
    """A stream whose text is the token id and a blank."""

    def push(self, token_id: int) -> str:
        return f"{token_id} "


class Asked:
    """A request and what the scheduler tells of it."""

    def __init__(self, prompt_ids: Sequence[int], **options: Any) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stop = options.pop("stop", ())
        options.setdefault("samplings", (GREEDY,))
        options.setdefault("max_new_tokens", 12)
        self.request = Request(
            prompt_ids=prompt_ids,
            assembler=lambda: TextAssembler(cast("TextStream", Numbers()), stop),
            on_event=self._events.put,
            **options,
        )
        self.records: dict[int, list[TokenRecord]] = {}
        self.ended: dict[int, Ended] = {}
        self.reused_tokens = 0

    def next_event(self) -> Event:
        """The next event; what it says is noted."""
        event = self._events.get(timeout=PATIENCE_S)
        if isinstance(event, Begun):
            self.reused_tokens = event.reused_tokens
        elif isinstance(event, Progressed):
            self.records.setdefault(event.choice, []).extend(event.piece.tokens)
        elif isinstance(event, Ended):
            self.ended[event.choice] = event
        return event

    def result(self) -> Asked:
        """Waits until every answer has ended."""
        while len(self.ended) < len(self.request.samplings):
            event = self.next_event()
            if isinstance(event, Failed):
                raise event.error
        return self

    def ids(self, choice: int = 0) -> list[int]:
        """Tokens of an answer so far."""
        return [record.token_id for record in self.records.get(choice, [])]


@pytest.fixture(scope="module")
def session(engine: Path) -> Session:
    return load_engine(engine, threads=1).session


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Running:
    """A scheduler at work."""

    def __init__(self, session: Session, *, is_open: bool = True, **limits: Any) -> None:
        self.gate = GatedSession(session, is_open=is_open)
        self.clock = Clock()
        self.cache = PrefixCache(PIECE_TOKENS, limits.pop("budget_bytes", 10_000_000))
        chosen = Limits(**{"slots": 8, **limits})
        self.scheduler = Scheduler(self.gate, self.cache, chosen, Metrics(), self.clock)
        self.scheduler.start()

    def ask(self, prompt_ids: Sequence[int], **options: Any) -> Asked:
        asked = Asked(prompt_ids, **options)
        self.scheduler.submit([asked.request])
        return asked


@pytest.fixture
def running(session: Session) -> Iterator[Running]:
    yield from _running(session)


@pytest.fixture
def one_slot(session: Session) -> Iterator[Running]:
    """One slot, a queue of two, and a closed gate."""
    yield from _running(session, slots=1, queue=2, queue_s=10.0, request_s=100.0, is_open=False)


def _running(session: Session, **options: Any) -> Iterator[Running]:
    made = Running(session, **options)
    yield made
    made.gate.open()
    made.scheduler.stop()


def prompt(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 101, length)]


# --- the answer is that of the request alone -------------------------------------------------


def test_an_answer_is_that_of_generate(running: Running, session: Session) -> None:
    for length in (1, PIECE_TOKENS - 1, PIECE_TOKENS, PIECE_TOKENS + 1, 3 * PIECE_TOKENS):
        ids = prompt(length, length)
        asked = running.ask(ids, max_new_tokens=9).result()
        assert asked.ids() == list(generate(session, ids, 9, GREEDY))
        assert asked.ended[0].reason == "length"


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_answers_in_a_batch_equal_each_alone_to_the_last_bit(
    bundle: Path, checkpoint: RandomCheckpoint, tmp_path: Path, precision: Precision
) -> None:
    if precision != "fp32":
        bundle = tmp_path / "bundle"
        convert(checkpoint.path, bundle, precision)
    build(bundle, tmp_path / "engine")
    session = load_engine(tmp_path / "engine", threads=1).session
    multiple = find_row_multiple(session, 8)
    questions = [
        (
            prompt(seed, 3 + 11 * seed % 50),
            {
                "samplings": (Sampling(temperature=seed % 3 / 2, top_p=0.9, seed=seed),),
                "max_new_tokens": 15 + 7 * seed % 20,
                "alternatives": 3,
            },
        )
        for seed in range(20)
    ]
    alone = []
    for ids, options in questions:
        single = Running(session, budget_bytes=0, row_multiple=multiple)
        alone.append(single.ask(ids, **options).result().records)
        single.scheduler.stop()
    for together in _running(session, budget_bytes=0, row_multiple=multiple, is_open=False):
        asked = [together.ask(ids, **options) for ids, options in questions]
        together.gate.open()
        assert [each.result().records for each in asked] == alone
        assert max(rows for kind, rows in together.gate.calls if kind == "step") == 8


def test_several_answers_share_one_reading_of_the_prompt(running: Running) -> None:
    ids = prompt(1, 40)
    seeds = [Sampling(temperature=1.0, seed=seed) for seed in (3, 4, 5)]
    asked = running.ask(ids, samplings=seeds).result()
    assert sum(size for kind, size in running.gate.calls if kind == "prefill") == 40
    for choice, sampling in enumerate(seeds):
        single = running.ask(ids, samplings=(sampling,)).result()
        assert asked.ids(choice) == single.ids()


def test_end_tokens_and_stop_sequences_end_an_answer(running: Running) -> None:
    ids = prompt(2, 5)
    whole = running.ask(ids).result().ids()
    end = whole[3]
    ended = running.ask(ids, end_ids=frozenset([end])).result()
    assert ended.ids() == whole[: whole.index(end)]
    assert (ended.ended[0].reason, ended.ended[0].produced) == ("stop", whole.index(end))
    stopped = running.ask(ids, stop=(f"{whole[0]} {whole[1]} ",)).result()
    assert stopped.ids() == []
    assert (stopped.ended[0].reason, stopped.ended[0].produced) == ("stop", 2)


# --- who runs when ---------------------------------------------------------------------------


def test_a_request_joins_while_another_runs(session: Session) -> None:
    for running in _running(session, is_open=False):
        first = running.ask(prompt(1, 4), max_new_tokens=50)
        for expected in (("prefill", 4), ("step", 1), ("step", 1)):
            assert running.gate.next_call() == expected
            running.gate.let_pass()
        assert running.gate.next_call() == ("step", 1)
        second = running.ask(prompt(2, 4), max_new_tokens=3)
        running.gate.let_pass()
        for expected in (("prefill", 4), ("step", 2), ("step", 2), ("step", 1)):
            assert running.gate.next_call() == expected
            running.gate.let_pass()
        assert len(second.result().ids()) == 3
        assert not first.ended
        running.gate.open()
        assert len(first.result().ids()) == 50


def test_a_long_prompt_delays_a_running_answer_by_one_piece_at_a_time(session: Session) -> None:
    for running in _running(session, is_open=False):
        answer = running.ask(prompt(1, 4), max_new_tokens=60)
        assert running.gate.next_call() == ("prefill", 4)
        long = running.ask(prompt(2, 20 * PIECE_TOKENS), max_new_tokens=2)
        running.gate.open()
        long.result()
        answer.result()
        begin = running.gate.calls.index(("prefill", PIECE_TOKENS))
        pieces = [kind for kind, _ in running.gate.calls[begin : begin + 40]]
        assert pieces == ["prefill", "step"] * 20


def test_prompts_take_turns(session: Session) -> None:
    for running in _running(session, is_open=False):
        long = running.ask(prompt(1, 10 * PIECE_TOKENS), max_new_tokens=2)
        assert running.gate.next_call() == ("prefill", PIECE_TOKENS)
        short = running.ask(prompt(2, 3), max_new_tokens=2)
        running.gate.open()
        short.result()
        long.result()
        assert running.gate.calls.index(("prefill", 3)) == 2


def test_requests_are_admitted_in_order(one_slot: Running) -> None:
    asked = [one_slot.ask(prompt(seed, length), max_new_tokens=1) for seed, length in ((1, 3),)]
    assert one_slot.gate.next_call() == ("prefill", 3)
    asked += [one_slot.ask(prompt(seed, 3 + seed), max_new_tokens=1) for seed in (1, 2)]
    one_slot.gate.open()
    for each in asked:
        each.result()
    assert one_slot.gate.calls == [("prefill", 3), ("prefill", 4), ("prefill", 5)]


def test_who_gives_up_frees_the_slot_before_the_next_step(one_slot: Running) -> None:
    leaving = one_slot.ask(prompt(1, 3), max_new_tokens=100)
    assert one_slot.gate.next_call() == ("prefill", 3)
    one_slot.gate.let_pass()
    assert one_slot.gate.next_call() == ("step", 1)
    waiting = one_slot.ask(prompt(2, 5), max_new_tokens=2)
    one_slot.scheduler.cancel(leaving.request)
    one_slot.gate.let_pass()
    assert one_slot.gate.next_call() == ("prefill", 5)
    one_slot.gate.open()
    assert len(waiting.result().ids()) == 2
    assert one_slot.gate.calls == [("prefill", 3), ("step", 1), ("prefill", 5), ("step", 1)]


def test_who_gives_up_while_a_prompt_is_read_frees_the_slot(one_slot: Running) -> None:
    leaving = one_slot.ask(prompt(1, 9 * PIECE_TOKENS))
    assert one_slot.gate.next_call() == ("prefill", PIECE_TOKENS)
    waiting = one_slot.ask(prompt(2, 5), max_new_tokens=1)
    one_slot.scheduler.cancel(leaving.request)
    one_slot.gate.open()
    waiting.result()
    assert one_slot.gate.calls == [("prefill", PIECE_TOKENS), ("prefill", 5)]


def test_who_gives_up_in_the_queue_is_never_read(one_slot: Running) -> None:
    running = one_slot.ask(prompt(1, 3), max_new_tokens=1)
    assert one_slot.gate.next_call() == ("prefill", 3)
    leaving, waiting = one_slot.ask(prompt(2, 4)), one_slot.ask(prompt(3, 5), max_new_tokens=1)
    one_slot.scheduler.cancel(leaving.request)
    one_slot.gate.open()
    running.result()
    waiting.result()
    assert one_slot.gate.calls == [("prefill", 3), ("prefill", 5)]


# --- limits ----------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_return(one_slot: Running) -> None:
    one_slot.ask(prompt(1, 3))
    one_slot.gate.next_call()
    one_slot.ask(prompt(2, 3))
    both = [Asked(prompt(3, 3)).request, Asked(prompt(4, 3)).request]
    with pytest.raises(QueueFullError) as refused:
        one_slot.scheduler.submit(both)  # all or none
    assert refused.value.retry_after_s >= 1
    one_slot.ask(prompt(3, 3))
    with pytest.raises(QueueFullError):
        one_slot.ask(prompt(4, 3))


def test_who_waits_too_long_is_sent_away(one_slot: Running) -> None:
    running = one_slot.ask(prompt(1, 3), max_new_tokens=20)
    one_slot.gate.next_call()
    waiting = one_slot.ask(prompt(2, 3))
    one_slot.clock.now = 10.5
    one_slot.gate.open()
    with pytest.raises(WaitedTooLongError):
        waiting.result()
    assert len(running.result().ids()) == 20


def test_who_takes_too_long_is_ended(one_slot: Running) -> None:
    running = one_slot.ask(prompt(1, 3), max_new_tokens=20)
    one_slot.gate.next_call()
    one_slot.gate.let_pass()
    one_slot.gate.next_call()
    one_slot.clock.now = 100.5
    one_slot.gate.open()
    with pytest.raises(RanTooLongError):
        running.result()
    assert len(one_slot.ask(prompt(1, 3), max_new_tokens=2).result().ids()) == 2


def test_prompts_that_cannot_be_read_are_refused(running: Running) -> None:
    with pytest.raises(EmptyPromptError):
        running.ask([])
    with pytest.raises(TokenRangeError):
        running.ask([101])
    with pytest.raises(UsageError, match="9 answers"):
        running.ask([1], samplings=[GREEDY] * 9)


# --- faults ----------------------------------------------------------------------------------


def test_a_fault_while_reading_a_prompt_ends_that_request_alone(session: Session) -> None:
    for running in _running(session, is_open=False):
        answer = running.ask(prompt(1, 3), max_new_tokens=5)
        assert running.gate.next_call() == ("prefill", 3)
        running.gate.let_pass()
        assert running.gate.next_call() == ("step", 1)
        failing = running.ask(prompt(2, 4))
        running.gate.faults["prefill"] = BackendError("out of memory")
        running.gate.open()
        with pytest.raises(BackendError, match="out of memory"):
            failing.result()
        assert len(answer.result().ids()) == 5


def test_a_fault_in_a_step_ends_what_ran_and_nothing_else(one_slot: Running) -> None:
    failing = one_slot.ask(prompt(1, 3))
    one_slot.gate.next_call()
    waiting = one_slot.ask(prompt(2, 4), max_new_tokens=3)
    one_slot.gate.faults["step"] = BackendError("lost")
    one_slot.gate.open()
    with pytest.raises(BackendError, match="lost"):
        failing.result()
    assert len(waiting.result().ids()) == 3


def test_a_fault_of_the_scheduler_itself_does_not_silence_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(running.cache, "choose", lambda _: 1 / 0)
        failing = running.ask(prompt(1, 3))
        with pytest.raises(ZeroDivisionError):
            failing.result()
    assert len(running.ask(prompt(1, 3)).result().ids()) == 12


def test_stopping_tells_everybody(one_slot: Running) -> None:
    asked = [one_slot.ask(prompt(1, 3))]
    one_slot.gate.next_call()
    asked += [one_slot.ask(prompt(seed, 3)) for seed in (2, 3)]
    one_slot.scheduler.refuse_new()
    with pytest.raises(StoppedError):
        one_slot.ask(prompt(4, 3))
    one_slot.scheduler._stops = True
    one_slot.gate.open()
    one_slot.scheduler.stop()
    for each in asked:
        with pytest.raises(StoppedError):
            each.result()
    assert not one_slot.scheduler.is_alive


# --- states ----------------------------------------------------------------------------------


def test_a_beginning_that_was_read_before_is_not_read_again(running: Running) -> None:
    shared, length = prompt(1, 10 * PIECE_TOKENS), 10 * PIECE_TOKENS
    fresh = running.ask([*shared, 7, 8], alternatives=5).result()
    assert fresh.reused_tokens == 0
    before = sum(size for kind, size in running.gate.calls if kind == "prefill")
    again = running.ask([*shared, 7, 8], alternatives=5).result()
    assert again.reused_tokens == length
    assert sum(size for kind, size in running.gate.calls if kind == "prefill") == before + 2
    assert again.records == fresh.records  # log-probabilities too, to the last bit


def test_a_state_can_be_kept_and_continued(running: Running, session: Session) -> None:
    first = running.ask(prompt(1, 20), max_new_tokens=6, keep_state=True).result()
    kept = first.ended[0].state
    assert kept is not None
    _, expected = session.prefill(np.array([prompt(1, 20) + first.ids()]))
    np.testing.assert_allclose(kept.ssm, expected.ssm, atol=1e-4)
    np.testing.assert_allclose(kept.conv, expected.conv, atol=1e-4)

    before = kept.copy()
    onward = running.ask([5, 6], state=kept, root=b"kept").result()
    whole = running.ask([*prompt(1, 20), *first.ids(), 5, 6]).result()
    assert onward.ids() == whole.ids()
    assert (kept.ssm == before.ssm).all()
    assert (kept.conv == before.conv).all()


def test_a_kept_state_has_read_all_before_an_end_token(running: Running, session: Session) -> None:
    whole = running.ask(prompt(3, 9)).result().ids()
    end = whole[4]
    asked = running.ask(prompt(3, 9), end_ids=frozenset([end]), keep_state=True).result()
    kept = asked.ended[0].state
    assert kept is not None
    _, expected = session.prefill(np.array([prompt(3, 9) + asked.ids()]))
    np.testing.assert_allclose(kept.ssm, expected.ssm, atol=1e-4)


def test_a_prompt_can_be_read_for_its_state_alone(running: Running, session: Session) -> None:
    ids = prompt(4, 2 * PIECE_TOKENS + 3)
    asked = running.ask(ids, max_new_tokens=0, keep_state=True).result()
    kept = asked.ended[0].state
    assert kept is not None
    state: State | None = None
    for start in range(0, len(ids), PIECE_TOKENS):
        _, state = session.prefill(np.array([ids[start : start + PIECE_TOKENS]]), state)
    assert state is not None
    assert (kept.ssm == state.ssm).all()
    assert not [kind for kind, _ in running.gate.calls if kind == "step"]
