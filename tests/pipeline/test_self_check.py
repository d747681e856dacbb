# SPDX-License-Identifier: MIT
"""A model that computes, one that computes something else, one that is busy, and one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine import load_engine
from pipeline.errors import BackendError
from pipeline.generation import Sampling
from pipeline.generation_request import Request
from pipeline.manifest import SelfTest
from pipeline.metrics import Metrics
from pipeline.openai_api import ApiError
from pipeline.prefix_cache import PrefixCache
from pipeline.scheduler import Limits, Scheduler
from pipeline.self_check import SelfCheck
from pipeline.session import Floats, Session, State, TokenIds
from pipeline.text_assembly import TextAssembler
from pipeline.tokenizer import Tokenizer
from tests.pipeline.serving import GatedSession, loopback_server


class Model:
    """A running model with a gate in front, and the question of its manifest."""

    def __init__(self, engine: Path, clock: list[float]) -> None:
        loaded = load_engine(engine, threads=1)
        assert loaded.tokenizer is not None
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.self_test: SelfTest = loaded.manifest.self_test
        self.gate = GatedSession(loaded.session)
        self.clock = clock
        self.scheduler = Scheduler(self.gate, PrefixCache(128, 0), Limits(1, queue=2), Metrics())
        self.scheduler.start()

    def check(self, **options: float) -> SelfCheck:
        """A check that is told the time."""
        return SelfCheck(
            self.scheduler, self.tokenizer, self.self_test, clock=lambda: self.clock[0], **options
        )

    def occupy(self, tokens: int) -> Request:
        """Takes the only slot."""
        request = Request(
            prompt_ids=[5, 6],
            samplings=(Sampling(),),
            assembler=lambda: TextAssembler(self.tokenizer.stream(), ()),
            on_event=lambda _: None,
            max_new_tokens=tokens,
        )
        self.scheduler.submit([request])
        return request


@pytest.fixture
def model(demo_engine: Path) -> Iterator[Model]:
    running = Model(demo_engine, [0.0])
    yield running
    running.gate.open()
    running.scheduler.stop()


def test_a_model_that_computes_is_asked_once_in_a_while(model: Model) -> None:
    check = model.check()
    assert asyncio.run(check.run()) == "computed"
    assert asyncio.run(check.run()) == "computed"
    assert [kind for kind, _ in model.gate.calls] == ["prefill"]
    model.clock[0] = 5.1
    assert asyncio.run(check.run()) == "computed"
    assert [kind for kind, _ in model.gate.calls] == ["prefill", "prefill"]


def test_those_who_ask_at_once_share_an_answer(model: Model) -> None:
    async def ask_often() -> list[str]:
        check = model.check()
        return list(await asyncio.gather(*(check.run() for _ in range(20))))

    assert asyncio.run(ask_often()) == ["computed"] * 20
    assert len(model.gate.calls) == 1


class WrongSession:
    """A device that multiplies a little wrong."""

    def __init__(self, inner: Session, factor: float) -> None:
        self._inner = inner
        self._factor = np.float32(factor)
        self.architecture = inner.architecture
        self.backend = inner.backend

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        logits, after = self._inner.prefill(token_ids, state, all_logits=all_logits)
        return logits * self._factor, after

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        return self._inner.step(token_ids, state)


@pytest.mark.parametrize(("factor", "found"), [(-1.0, "token"), (1.1, "at -"), (np.nan, "found")])
def test_a_model_that_computes_something_else_is_found_out(
    model: Model, factor: float, found: str
) -> None:
    wrong = WrongSession(model.gate, factor)
    scheduler = Scheduler(wrong, PrefixCache(128, 0), Limits(1), Metrics())
    scheduler.start()
    try:
        check = SelfCheck(scheduler, model.tokenizer, model.self_test)
        with pytest.raises(ApiError, match=found) as caught:
            asyncio.run(check.run())
        assert (caught.value.status, caught.value.code) == (503, "self_check_failed")
    finally:
        scheduler.stop()


def test_a_backend_that_fails_is_told(model: Model) -> None:
    model.gate.faults["prefill"] = BackendError("the device is gone", fix="")
    with pytest.raises(ApiError, match="its log says why"):
        asyncio.run(model.check().run())


def test_a_server_that_only_serves_others_is_well(model: Model) -> None:
    model.gate.close()
    model.occupy(tokens=10_000)
    model.gate.next_call()

    async def ask_while_others_are_served() -> str:
        asked = asyncio.create_task(model.check(patience_s=0.05).run())
        while not asked.done():
            model.gate.let_pass()
            await asyncio.sleep(0.001)
        return await asked

    assert asyncio.run(ask_while_others_are_served()) == "busy"


def test_a_worker_that_hangs_is_found_out(model: Model) -> None:
    model.gate.close()
    model.occupy(tokens=10)
    model.gate.next_call()

    async def ask() -> None:
        check = model.check(patience_s=0.05)
        asked = asyncio.create_task(check.run())
        while not asked.done():
            model.clock[0] += 0.01
            await asyncio.sleep(0.001)
        await asked

    with pytest.raises(ApiError, match="is stuck") as caught:
        asyncio.run(ask())
    assert (caught.value.status, caught.value.code) == (503, "worker_stuck")


def test_it_is_asked_over_http_without_a_key(demo_engine: Path) -> None:
    with loopback_server(demo_engine) as server:
        answer = server.client.get("/healthz/model")
        assert (answer.status_code, answer.json()["model"]) == (200, "computed")
        server.server.scheduler.stop()
        assert server.client.get("/healthz/model").status_code == 503


def test_many_ask_over_http_at_once(demo_engine: Path) -> None:
    with loopback_server(demo_engine) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.client.get("/healthz/model"), range(16)))
        assert {answer.status_code for answer in answers} == {200}
        assert sum(kind == "prefill" for kind, _ in server.gate.calls) == 1


def test_the_answer_of_another_model_is_not_taken(model: Model) -> None:
    other = model.self_test.model_copy(update={"next_token_id": 0})
    with pytest.raises(ApiError, match="expected token 0 at"):
        asyncio.run(SelfCheck(model.scheduler, model.tokenizer, other).run())
