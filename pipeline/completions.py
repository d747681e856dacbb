# SPDX-License-Identifier: MIT
"""From an API request to the scheduler and back: prompts, states, limits, events, errors.

Lives on the event loop; whatever takes long (tokenizing, reading and writing states) goes to a
thread, and the model has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

from pipeline.answers import Reason
from pipeline.chat_template import ChatTemplate
from pipeline.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    DiskFullError,
    EngineMismatchError,
    PipelineError,
    PromptError,
    UsageError,
)
from pipeline.generation import Sampling
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
from pipeline.loaded_file import LoadedFile
from pipeline.openai_api import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    PromptDetails,
    StateRequest,
    Usage,
)
from pipeline.scheduler import Scheduler
from pipeline.server_settings import ServerSettings
from pipeline.states import NamedState, StateInfo, StateStore
from pipeline.text_assembly import Piece, TextAssembler
from pipeline.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# A server that stops is replaced by its supervisor or a neighbour within about this time.
_RETRY_AFTER_STOP_S = 5


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Part:
    """One answer got longer, or ended.

    Attributes:
        index: Which answer of the HTTP request.
        piece: What was added.
        reason: Why it ended; None while it goes on.
    """

    index: int
    piece: Piece
    reason: Reason | None = None


@dataclass(eq=False)
class Answer:
    """The answers to one HTTP request while they are made.

    Attributes:
        requests: One request to the scheduler for each prompt.
        store: Where a state is saved.
        save_state: The name to save it under.
        tokens_before: Tokens that the state it began from had read.
        saved: What was saved.
        cached_tokens: Prompt tokens that kept states covered.
        produced_tokens: Tokens that were produced, of answers that have ended.
    """

    store: StateStore
    save_state: str | None = None
    overwrite: bool = True
    tokens_before: int = 0
    requests: list[Request] = field(default_factory=list)
    saved: StateInfo | None = None
    cached_tokens: int = 0
    produced_tokens: int = 0
    _events: asyncio.Queue[tuple[int, Event]] = field(default_factory=asyncio.Queue)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.prompt_ids) for request in self.requests)

    @property
    def choices(self) -> int:
        """Number of answers."""
        return sum(len(request.samplings) for request in self.requests)

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.produced_tokens,
            total_tokens=self.prompt_tokens + self.produced_tokens,
            prompt_tokens_details=PromptDetails(cached_tokens=self.cached_tokens),
        )

    def tell(self, loop: asyncio.AbstractEventLoop, prompt: int, event: Event) -> None:
        """Takes an event from the scheduler's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(self._events.put_nowait, (prompt, event))

    def abandon(self, scheduler: Scheduler) -> None:
        """The client has gone: its slots are free, and who reads `parts` gets ClientGoneError."""
        for request in self.requests:
            scheduler.cancel(request)
        self._events.put_nowait((0, Failed(ClientGoneError())))

    async def parts(self, scheduler: Scheduler) -> AsyncGenerator[Part, None]:
        """What is added to the answers, until all have ended.

        However this ends, the scheduler is free of the requests afterwards.

        Raises:
            ApiError: The request failed.
            ClientGoneError: See `abandon`.
        """
        remaining = self.choices
        try:
            while remaining:
                prompt, event = await self._events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Begun):
                    self.cached_tokens += event.reused_tokens
                    continue
                index = prompt * len(self.requests[0].samplings) + event.choice
                if isinstance(event, Progressed):
                    yield Part(index, event.piece)
                    continue
                remaining -= 1
                self.produced_tokens += event.produced
                await self._save(event)
                yield Part(index, Piece(), "stop" if event.reason == "stop" else "length")
        except (ClientGoneError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            raise to_api_error(error) from error
        finally:
            for request in self.requests:
                scheduler.cancel(request)

    async def _save(self, event: Ended) -> None:
        if self.save_state is None or event.state is None:
            return
        tokens = self.tokens_before + self.prompt_tokens + event.produced
        self.saved = await asyncio.to_thread(
            self.store.save, self.save_state, event.state, tokens, overwrite=self.overwrite
        )


class Completions:
    """Begins answers.

    Args:
        tokenizer: The model's tokenizer.
        template: Its chat template, if it has one.
        scheduler: Runs the model.
        store: The named states.
        weights: The weight file that the model was loaded from.
        model_name: The name that requests must give.
        settings: Limits.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        scheduler: Scheduler,
        store: StateStore,
        weights: LoadedFile,
        model_name: str,
        settings: ServerSettings,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._scheduler = scheduler
        self._store = store
        self._weights = weights
        self._model_name = model_name
        self._settings = settings

    async def complete(self, body: CompletionRequest) -> Answer:
        """Begins the answers to /v1/completions.

        Raises:
            ApiError: The request cannot be taken.
        """
        prompts = [await self._encode(prompt) for prompt in body.prompts]
        return await self._begin(body, prompts, body.max_tokens, body.logprobs)

    async def chat(self, body: ChatRequest) -> Answer:
        """Begins the answers to /v1/chat/completions.

        Raises:
            ApiError: The request cannot be taken.
        """
        if self._template is None:
            raise ApiError(
                400,
                f"the model '{self._model_name}' has no chat template; use /v1/completions",
                "no_chat_template",
            )
        messages = [
            {"role": message.role, "content": message.text}
            | ({} if message.name is None else {"name": message.name})
            for message in body.messages
        ]
        try:
            prompt = await asyncio.to_thread(self._template.render, messages)
        except PromptError as error:
            raise to_api_error(error) from error
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
        limit = body.max_completion_tokens or body.max_tokens
        return await self._begin(body, [await self._encode(prompt)], limit, alternatives)

    async def read(self, body: StateRequest) -> Answer:
        """Begins to read a prompt for its state.

        Raises:
            ApiError: The request cannot be taken.
        """
        prompt = await self._encode(body.prompt)
        start = await self._start(body.state)
        answer = Answer(self._store, body.name, body.overwrite)
        self._submit(answer, start, [prompt], (Sampling(),), max_new_tokens=0)
        return answer

    async def _begin(
        self,
        body: CompletionRequest | ChatRequest,
        prompts: list[list[int]],
        max_tokens: int | None,
        alternatives: int | None,
    ) -> Answer:
        if body.model != self._model_name:
            raise ApiError(
                404,
                f"the model '{body.model}' is not here; this server has '{self._model_name}'",
                "model_not_found",
                "model",
            )
        limit = self._settings.max_new_tokens
        if max_tokens is not None and max_tokens > limit:
            raise ApiError(
                400, f"{max_tokens} tokens asked for; at most {limit} are given", "too_many_tokens"
            )
        start = await self._start(body.state)
        answer = Answer(self._store, body.save_state)
        self._submit(
            answer,
            start,
            prompts,
            _samplings(body),
            max_new_tokens=max_tokens or limit,
            stop=body.stops,
            alternatives=alternatives,
        )
        return answer

    async def _encode(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt = await asyncio.to_thread(self._tokenizer.encode, prompt)
        if not prompt:
            raise ApiError(400, "the prompt is empty: there is no token to start from", "empty")
        if len(prompt) > self._settings.max_prompt_tokens:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens; at most "
                f"{self._settings.max_prompt_tokens} are read",
                "context_length_exceeded",
            )
        return prompt

    async def _start(self, name: str | None) -> NamedState | None:
        if name is None:
            return None
        try:
            return await asyncio.to_thread(self._store.load, name)
        except PipelineError as error:
            raise to_api_error(error) from error

    def _submit(
        self,
        answer: Answer,
        start: NamedState | None,
        prompts: list[list[int]],
        samplings: tuple[Sampling, ...],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        alternatives: int | None = None,
    ) -> None:
        if self._weights.change() == "overwritten":
            raise ApiError(
                503,
                "the weight file was written into while it was in use, so answers cannot be "
                "trusted; the server must be restarted",
                "weights_overwritten",
            )
        loop = asyncio.get_running_loop()
        answer.tokens_before = start.info.tokens if start else 0
        answer.requests = [
            Request(
                prompt_ids=prompt,
                samplings=samplings,
                assembler=lambda: TextAssembler(self._tokenizer.stream(), stop),
                on_event=partial(answer.tell, loop, number),
                max_new_tokens=max_new_tokens,
                end_ids=self._tokenizer.end_ids,
                alternatives=alternatives,
                state=start.state if start else None,
                root=bytes.fromhex(start.info.content_sha256) if start else b"",
                keep_state=answer.save_state is not None,
            )
            for number, prompt in enumerate(prompts)
        ]
        try:
            self._scheduler.submit(answer.requests)
        except (PipelineError, QueueFullError, StoppedError) as error:
            raise to_api_error(error) from error


def _samplings(body: CompletionRequest | ChatRequest) -> tuple[Sampling, ...]:
    """One for each answer to a prompt; with a seed, the next answer has the next seed."""
    first = body.seed
    return tuple(
        Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=None if first is None else first + choice,
        )
        for choice in range(body.n or 1)
    )


# HTTP status and code of errors that are a client's, or at least not a fault of ours.
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (WaitedTooLongError, 429, "queue_timeout"),
    (QueueFullError, 429, "queue_full"),
    (RanTooLongError, 408, "request_timeout"),
    (StoppedError, 503, "stopping"),
    (PromptError, 400, "invalid_prompt"),
    (UsageError, 400, "invalid_value"),
    (ArtifactNotFoundError, 404, "state_not_found"),
    (EngineMismatchError, 409, "state_of_another_model"),
    (ArtifactCorruptError, 409, "state_damaged"),
    (DiskFullError, 507, "insufficient_storage"),
)


def to_api_error(error: Exception) -> ApiError:
    """The answer that tells a client of an error."""
    if isinstance(error, ApiError):
        return error
    message = str(error)
    if isinstance(error, PipelineError) and error.fix:
        message += f" ({error.fix})"
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            retry = _RETRY_AFTER_STOP_S if kind is StoppedError else None
            if isinstance(error, QueueFullError):
                retry = error.retry_after_s
            return ApiError(status, message, code, retry_after_s=retry)
    logger.error("unexpected: %s", error, exc_info=error)
    return ApiError(500, "the server failed; its log says why", "internal_error")
