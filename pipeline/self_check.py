# SPDX-License-Identifier: MIT
"""Whether a running model still gives the answer that it gave when its engine was built.

The engine's manifest holds a question with its answer. Asking it goes the way of every request,
through queue, slots and backend, so it finds what a mere "alive" does not: a worker that hangs, a
device that fails, memory that has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from pipeline.completions import to_api_error
from pipeline.generation import Sampling
from pipeline.generation_request import (
    Ended,
    Event,
    Failed,
    Progressed,
    QueueFullError,
    Request,
)
from pipeline.manifest import SelfTest
from pipeline.openai_api import ApiError
from pipeline.scheduler import Scheduler
from pipeline.text_assembly import TextAssembler, TokenRecord
from pipeline.tokenizer import Tokenizer

# Whoever may reach the port may ask; an answer counts this long, so that asking costs little.
_FRESH_S = 5.0
# After this the server is overloaded, or stuck if it has not done one turn meanwhile.
_PATIENCE_S = 5.0
# The same arithmetic on the same machine gives the same value; a device that fails does not
# give nearly the same.
_TOLERANCE = 0.05

Result = Literal["computed", "busy"]


class SelfCheck:
    """Asks a model the question of its manifest.

    Args:
        scheduler: Runs the model.
        tokenizer: The model's tokenizer.
        self_test: The question and its answer.
        patience_s: When not to wait any longer.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        self_test: SelfTest,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._self_test = self_test
        self._patience_s = patience_s
        self._clock = clock
        self._fresh_until = float("-inf")
        self._asking = asyncio.Lock()

    async def run(self) -> Result:
        """Asks, unless the last answer is still fresh; those who ask at once share an answer.

        Returns:
            "computed", or "busy" when others came first all the while and were served.

        Raises:
            ApiError: The answer is another, or there is none because the worker does not work.
        """
        async with self._asking:
            if self._clock() < self._fresh_until:
                return "computed"
            turns = self._scheduler.turns
            try:
                await asyncio.wait_for(self._ask(), self._patience_s)
            except (asyncio.TimeoutError, QueueFullError):
                await self._expect_a_turn_after(turns)
                return "busy"
            self._fresh_until = self._clock() + _FRESH_S
            return "computed"

    async def _ask(self) -> None:
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        request = Request(
            prompt_ids=self._self_test.token_ids,
            samplings=(Sampling(),),
            assembler=lambda: TextAssembler(self._tokenizer.stream(), ()),
            on_event=partial(_tell, loop, events),
            max_new_tokens=1,
            alternatives=1,
        )
        tokens: list[TokenRecord] = []
        try:
            self._scheduler.submit([request])
            while not isinstance(event := await events.get(), Ended):
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Progressed):
                    tokens += event.piece.tokens
        except QueueFullError:
            raise
        except Exception as error:
            raise to_api_error(error) from error
        finally:
            self._scheduler.cancel(request)
        self._compare(tokens)

    def _compare(self, tokens: list[TokenRecord]) -> None:
        expected = self._self_test
        if [token.token_id for token in tokens] == [expected.next_token_id]:
            logprob = tokens[0].logprob
            if logprob is not None and abs(logprob - expected.logprob) <= _TOLERANCE:
                return
        found = ", ".join(f"token {token.token_id} at {token.logprob}" for token in tokens)
        raise ApiError(
            503,
            "the model computes something else than when its engine was built: expected token "
            f"{expected.next_token_id} at {expected.logprob}, found {found or 'nothing'}",
            "self_check_failed",
        )

    async def _expect_a_turn_after(self, turns: int) -> None:
        end = self._clock() + self._patience_s
        while self._scheduler.turns == turns:
            if self._clock() > end:
                raise ApiError(503, "the worker that runs the model is stuck", "worker_stuck")
            await asyncio.sleep(0.01)


def _tell(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(events.put_nowait, event)
