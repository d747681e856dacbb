# SPDX-License-Identifier: MIT
"""Continuous batching: many answers share each step of one model.

One worker thread owns the session. It repeats: drop what was cancelled, admit from the queue
into free slots, read one piece of one waiting prompt, then one step for all running answers.
So a new request joins while others run, a long prompt delays a running answer by one piece at
a time, and prompts take turns. Who gave up frees his slot before the next piece or step.

A slot is one row of the batch. The rows of a batch do not see each other, each answer has its
own random numbers, batches are filled up to sizes that do not matter (see `batch_rows`), and
prompts are read alone, in pieces that begin at fixed places: an answer does not depend on its
company.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.errors import UsageError
from pipeline.generation import Sampler, check_token_ids
from pipeline.generation_request import (
    Begun,
    Ended,
    Failed,
    Progressed,
    QueueFullError,
    RanTooLongError,
    Request,
    StoppedError,
    WaitedTooLongError,
)
from pipeline.metrics import Metrics
from pipeline.prefix_cache import PrefixCache
from pipeline.session import Floats, Session, State
from pipeline.text_assembly import TextAssembler, TokenRecord

logger = logging.getLogger(__name__)

# A new duration counts this much in the running mean that Retry-After is computed from.
_MEAN_SHARE = 0.2
_LONGEST_RETRY_S = 60


@dataclass(eq=False)
class _Prompt:
    """A prompt that is being read; it holds the slots that its answers will take."""

    request: Request
    keys: list[bytes]
    kept: frozenset[bytes]
    position: int
    state: State | None


@dataclass(eq=False)
class _Row:
    """One running answer, one row of the batch."""

    request: Request
    choice: int
    sampler: Sampler
    assembler: TextAssembler
    token_id: int = 0
    produced: int = 0
    last_token_at: float = 0.0
    # An answer that is complete but for its state, which has yet to read the last token.
    closing: str | None = None


@dataclass(frozen=True)
class Limits:
    """How much the scheduler takes on.

    Attributes:
        slots: Answers that run at once.
        row_multiple: Batches are filled up to multiples of this; `slots` is one.
        queue: Requests that wait at most.
        queue_s: How long one waits at most, seconds.
        request_s: How long one takes at most, waiting included, seconds.
    """

    slots: int
    row_multiple: int = 1
    queue: int = 64
    queue_s: float = 60.0
    request_s: float = 600.0


class Scheduler:
    """Runs requests on one session; every public method may be called from any thread.

    Attributes:
        turns: How often the worker has gone round; it stands still when idle or stuck.

    Args:
        session: The model; nobody else may use it meanwhile.
        cache: Kept beginnings of prompts; its pieces are those that prompts are read in.
        limits: See `Limits`.
        metrics: Told what happens.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        session: Session,
        cache: PrefixCache,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.turns = 0
        self._session = session
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        self._queue: deque[Request] = deque()
        self._prompts: deque[_Prompt] = deque()
        self._rows: list[_Row] = []
        self._state: State | None = None
        self._mean_request_s = 1.0
        self._accepts = True
        self._stops = False
        self._wakeup = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        metrics.watch("queue_depth", "Requests that wait for a slot", lambda: len(self._queue))
        metrics.watch("active_slots", "Slots in use", self._used_slots)
        metrics.watch("slots", "Answers that can run at once", lambda: limits.slots)
        metrics.watch("prefix_cache_bytes", "Bytes of kept states", lambda: cache.used_bytes)
        metrics.watch("prefix_cache_states", "Number of kept states", lambda: len(cache))

    @property
    def is_alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    @property
    def is_accepting(self) -> bool:
        """Whether new requests are taken."""
        return self._accepts

    def start(self) -> None:
        """Starts the worker."""
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Puts requests into the queue, all or none.

        Raises:
            PromptError: A prompt cannot be read.
            UsageError: A request wants more answers than there are slots.
            QueueFullError: They do not fit.
            StoppedError: The scheduler is stopping.
        """
        for request in requests:
            check_token_ids(request.prompt_ids, self._session.architecture.vocab_size)
            if len(request.samplings) > self.limits.slots:
                raise UsageError(
                    f"{len(request.samplings)} answers to one prompt; at most "
                    f"{self.limits.slots} run at once",
                    fix="ask for fewer, or build the engine with a larger --max-batch",
                )
        with self._wakeup:
            if not self._accepts:
                raise StoppedError("the server is stopping")
            if len(self._queue) + len(requests) > self.limits.queue:
                raise QueueFullError(self._retry_after_s())
            for request in requests:
                request.arrived = self._clock()
                self._queue.append(request)
            self._wakeup.notify()

    def cancel(self, request: Request) -> None:
        """Gives a request up; it gets no further event worth waiting for."""
        with self._wakeup:
            request.is_cancelled = True
            self._wakeup.notify()

    def refuse_new(self) -> None:
        """From now on nothing is taken; what was taken goes on."""
        self._accepts = False

    def stop(self) -> None:
        """Gives up all requests and ends the worker; returns when it has ended."""
        with self._wakeup:
            self._accepts = False
            self._stops = True
            self._wakeup.notify()
        self._thread.join()

    # --- the worker ------------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            try:
                self._drop_cancelled_and_late()
                self._admit()
                self._read_piece()
                self._step()
                self.turns += 1
            except Exception as error:  # a fault of ours must not silence the server for good
                self._fail_all(error)
        self._fail_all(StoppedError("the server stopped before the answer was complete"))

    def _wait(self) -> bool:
        """Sleeps until there is work; returns whether to go on."""
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._stops or self._queue or self._prompts or self._rows)
            return not self._stops

    def _fail_all(self, error: Exception) -> None:
        for request in self._all_requests():
            self._fail(request, error)

    def _all_requests(self) -> list[Request]:
        """Every request that is not done, once."""
        requests = [prompt.request for prompt in self._prompts]
        requests += [row.request for row in self._rows]
        with self._wakeup:
            requests += self._queue
        return list(dict.fromkeys(requests))

    def _used_slots(self) -> int:
        reserved = sum(len(prompt.request.samplings) for prompt in tuple(self._prompts))
        return reserved + len(self._rows)

    def _retry_after_s(self) -> int:
        waiting = self._mean_request_s * (len(self._queue) + 1) / self.limits.slots
        return min(max(1, math.ceil(waiting)), _LONGEST_RETRY_S)

    def _drop_cancelled_and_late(self) -> None:
        now = self._clock()
        with self._wakeup:
            queued = set(self._queue)
        for request in self._all_requests():
            age = now - request.arrived
            if request.is_cancelled:
                self._remove(request)
                self._metrics.completed("cancelled")
            elif request in queued and age > self.limits.queue_s:
                self._fail(request, WaitedTooLongError(self._retry_after_s()))
            elif age > self.limits.request_s:
                self._fail(request, RanTooLongError(f"longer than {self.limits.request_s:g} s"))

    def _admit(self) -> None:
        """Moves requests from the queue to slots, in order: none overtakes another."""
        while True:
            with self._wakeup:
                if not self._queue:
                    return
                request = self._queue[0]
                if self._used_slots() + len(request.samplings) > self.limits.slots:
                    return
                self._queue.popleft()
            try:
                self._begin(request)
            except Exception as error:
                self._fail(request, error)

    def _begin(self, request: Request) -> None:
        keys = self._cache.keys(request.prompt_ids, request.root)
        count, state = self._cache.find(keys)
        position = count * self._cache.piece_tokens
        kept = self._cache.choose(keys)
        self._prompts.append(_Prompt(request, keys, kept, position, state or request.state))
        self._metrics.prompt_begun(len(request.prompt_ids), position)
        request.on_event(Begun(position))

    def _read_piece(self) -> None:
        """Reads one piece of the prompt whose turn it is."""
        if not self._prompts:
            return
        prompt = self._prompts.popleft()
        try:
            logits, state = self._read_next(prompt)
            if prompt.position < len(prompt.request.prompt_ids):
                self._prompts.append(prompt)
            else:
                self._begin_answers(prompt.request, logits, state)
        except Exception as error:  # whatever the backend throws ends this request alone
            self._fail(prompt.request, error)

    def _read_next(self, prompt: _Prompt) -> tuple[Floats, State]:
        """Reads a prompt's next piece; returns logits (vocab,) and state after it."""
        token_ids = prompt.request.prompt_ids
        end = min(prompt.position + self._cache.piece_tokens, len(token_ids))
        piece = np.array([token_ids[prompt.position : end]], dtype=np.int64)
        logits, state = self._session.prefill(piece, prompt.state)
        if end < len(token_ids):
            key = prompt.keys[end // self._cache.piece_tokens - 1]
            if key in prompt.kept:
                self._cache.put(key, state)
        prompt.position, prompt.state = end, state
        return logits[0], state

    def _begin_answers(self, request: Request, logits: Floats, state: State) -> None:
        if request.max_new_tokens == 0:
            kept = state.copy() if request.keep_state else None
            request.on_event(Ended(0, "length", 0, kept))
            self._metrics.completed("length")
            return
        request.running = len(request.samplings)
        rows = []
        for choice, sampling in enumerate(request.samplings):
            row = _Row(request, choice, Sampler(sampling), request.assembler())
            if self._take(row, logits, state.copy):
                rows.append(row)
        self._change_batch(list(range(len(self._rows))), rows, state)

    def _step(self) -> None:
        """One token for every running answer."""
        if self._state is None:
            return
        token_ids = np.zeros(self._state.batch, dtype=np.int64)
        token_ids[: len(self._rows)] = [row.token_id for row in self._rows]
        try:
            logits, state = self._session.step(token_ids, self._state)
        except Exception as error:  # the states are lost, and with them every answer
            for request in dict.fromkeys(row.request for row in self._rows):
                self._fail(request, error)
            return
        self._state = state
        staying = []
        for index, row in enumerate(self._rows):
            if row.closing is not None:
                self._end(row, row.closing, _row_of(state, index))
            elif self._take(row, logits[index], partial(_row_of, state, index)):
                staying.append(index)
        self._change_batch(staying)

    def _take(self, row: _Row, logits: Floats, state: Callable[[], State]) -> bool:
        """Chooses an answer's next token; returns whether the answer needs another step.

        Args:
            row: The answer.
            logits: (vocab,) float32, after what the state has read.
            state: Gives a copy of the answer's state.
        """
        request = row.request
        token_id = row.sampler.choose(logits)
        if token_id in request.end_ids:
            self._flush(row)
            self._end(row, "stop", state() if request.keep_state else None)
            return False
        self._observe(row)
        row.token_id = token_id
        row.produced += 1
        piece = row.assembler.push(_record(token_id, logits, request.alternatives))
        if piece.text or piece.tokens:
            request.on_event(Progressed(row.choice, piece))
        is_last = row.produced == request.max_new_tokens
        if not (piece.is_stopped or is_last):
            return True
        if not piece.is_stopped:
            self._flush(row)
        reason = "stop" if piece.is_stopped else "length"
        if request.keep_state:
            row.closing = reason
            return True
        self._end(row, reason, None)
        return False

    def _observe(self, row: _Row) -> None:
        now = self._clock()
        if row.produced:
            self._metrics.next_token(now - row.last_token_at)
        else:
            self._metrics.first_token(now - row.request.arrived)
        row.last_token_at = now

    def _flush(self, row: _Row) -> None:
        piece = row.assembler.finish()
        if piece.text or piece.tokens:
            row.request.on_event(Progressed(row.choice, piece))

    def _end(self, row: _Row, reason: str, state: State | None) -> None:
        request = row.request
        request.running -= 1
        if not request.running:
            took = self._clock() - request.arrived
            self._mean_request_s += _MEAN_SHARE * (took - self._mean_request_s)
        self._metrics.completed(reason)
        request.on_event(Ended(row.choice, reason, row.produced, state))

    def _change_batch(
        self, staying: list[int], joining: Sequence[_Row] = (), state: State | None = None
    ) -> None:
        """Builds the batch anew from some of its rows and from rows that start at one state."""
        if len(staying) == len(self._rows) and not joining:
            return
        conv, ssm = [], []
        if self._state is not None and staying:
            conv.append(self._state.conv[:, staying])
            ssm.append(self._state.ssm[:, staying])
        if state is not None:
            conv += [state.conv] * len(joining)
            ssm += [state.ssm] * len(joining)
        self._rows = [*(self._rows[index] for index in staying), *joining]
        filling = State.zeros(
            self._session.architecture, -len(self._rows) % self.limits.row_multiple
        )
        conv.append(filling.conv)
        ssm.append(filling.ssm)
        self._state = (
            State(np.concatenate(conv, axis=1), np.concatenate(ssm, axis=1)) if self._rows else None
        )

    def _remove(self, request: Request) -> None:
        """Takes a request out of wherever it is."""
        with self._wakeup:
            if request in self._queue:
                self._queue.remove(request)
        self._prompts = deque(prompt for prompt in self._prompts if prompt.request is not request)
        self._change_batch(
            [index for index, row in enumerate(self._rows) if row.request is not request]
        )

    def _fail(self, request: Request, error: Exception) -> None:
        self._remove(request)
        is_ours = isinstance(error, QueueFullError | RanTooLongError | StoppedError)
        if not is_ours:
            logger.error("a request failed: %s", error, exc_info=error)
        self._metrics.completed("timeout" if isinstance(error, RanTooLongError) else "error")
        request.on_event(Failed(error))


def _row_of(state: State, index: int) -> State:
    """An independent copy of one row of a batch."""
    rows = slice(index, index + 1)
    return State(conv=state.conv[:, rows].copy(), ssm=state.ssm[:, rows].copy())


def _record(token_id: int, logits: Floats, alternatives: int | None) -> TokenRecord:
    if alternatives is None:
        return TokenRecord(token_id)
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    # Equal log-probabilities keep the order of their ids, so an answer repeats.
    best = np.argsort(-values, kind="stable")[:alternatives]
    return TokenRecord(
        token_id,
        logprob=float(values[token_id]),
        alternatives=tuple((int(other), float(values[other])) for other in best),
    )
