# SPDX-License-Identifier: MIT
"""Puts answers into the shapes of the OpenAI API, whole or as the events of a stream.

A whole answer is the sum of its stream: both are made from the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.openai_api import (
    Alternative,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
)
from pipeline.text_assembly import Piece, TokenRecord
from pipeline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pydantic import BaseModel

Reason = Literal["stop", "length"]


class Rendering(Protocol):
    """How one kind of answer looks."""

    def opening(self, index: int) -> BaseModel | None:
        """The first event of one answer, if there is one before its text."""

    def part(self, index: int, piece: Piece, reason: Reason | None = None) -> BaseModel:
        """An event that adds to one answer; with a reason, it ends the answer."""

    def usage(self, usage: Usage) -> BaseModel:
        """The event with the usage, after all answers."""

    def whole(self, pieces: Sequence[Piece], reasons: Sequence[Reason], usage: Usage) -> BaseModel:
        """All answers at once; one sum of pieces and one reason each."""


class CompletionRendering:
    """Answers of /v1/completions.

    Args:
        answer_id: Identity of the answer.
        created: Seconds since 1970.
        model: Name of the model.
        tokenizer: Gives the text of single tokens.
        has_logprobs: Whether log-probabilities were asked for.
    """

    def __init__(
        self, answer_id: str, created: int, model: str, tokenizer: Tokenizer, has_logprobs: bool
    ) -> None:
        self._id = answer_id
        self._created = created
        self._model = model
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs

    def opening(self, _index: int) -> None:
        """See `Rendering.opening`."""

    def part(self, index: int, piece: Piece, reason: Reason | None = None) -> Completion:
        """See `Rendering.part`."""
        return self._body([self._choice(index, piece, reason)])

    def usage(self, usage: Usage) -> Completion:
        """See `Rendering.usage`."""
        return self._body([], usage)

    def whole(self, pieces: Sequence[Piece], reasons: Sequence[Reason], usage: Usage) -> Completion:
        """See `Rendering.whole`."""
        answers = zip(pieces, reasons, strict=True)
        choices = [
            self._choice(index, piece, reason) for index, (piece, reason) in enumerate(answers)
        ]
        return self._body(choices, usage)

    def _body(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _choice(self, index: int, piece: Piece, reason: Reason | None) -> CompletionChoice:
        logprobs = self._logprobs(piece.tokens) if self._has_logprobs else None
        return CompletionChoice(
            index=index, text=piece.text, logprobs=logprobs, finish_reason=reason
        )

    def _logprobs(self, tokens: Sequence[TokenRecord]) -> CompletionLogprobs:
        likeliest: list[dict[str, float]] = []
        for token in tokens:
            by_text: dict[str, float] = {}
            for other, logprob in token.alternatives:
                # Parts of characters look alike; the likeliest of them comes first.
                by_text.setdefault(self._tokenizer.decode([other]), logprob)
            likeliest.append(by_text)
        return CompletionLogprobs(
            tokens=[self._tokenizer.decode([token.token_id]) for token in tokens],
            token_logprobs=[token.logprob or 0.0 for token in tokens],
            top_logprobs=likeliest,
            text_offset=[token.offset for token in tokens],
        )


class ChatRendering:
    """Answers of /v1/chat/completions; arguments as of `CompletionRendering`."""

    def __init__(
        self, answer_id: str, created: int, model: str, tokenizer: Tokenizer, has_logprobs: bool
    ) -> None:
        self._id = answer_id
        self._created = created
        self._model = model
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs

    def opening(self, index: int) -> ChatChunk:
        """See `Rendering.opening`."""
        return self._chunk(
            [ChatDelta(index=index, delta=ChatMessage(role="assistant", content=""))]
        )

    def part(self, index: int, piece: Piece, reason: Reason | None = None) -> ChatChunk:
        """See `Rendering.part`."""
        message = ChatMessage(content=piece.text)
        logprobs = self._logprobs(piece.tokens) if self._has_logprobs else None
        return self._chunk(
            [ChatDelta(index=index, delta=message, logprobs=logprobs, finish_reason=reason)]
        )

    def usage(self, usage: Usage) -> ChatChunk:
        """See `Rendering.usage`."""
        return self._chunk([], usage)

    def whole(
        self, pieces: Sequence[Piece], reasons: Sequence[Reason], usage: Usage
    ) -> ChatCompletion:
        """See `Rendering.whole`."""
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(role="assistant", content=piece.text),
                logprobs=self._logprobs(piece.tokens) if self._has_logprobs else None,
                finish_reason=reason,
            )
            for index, (piece, reason) in enumerate(zip(pieces, reasons, strict=True))
        ]
        return ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _chunk(self, choices: list[ChatDelta], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _logprobs(self, tokens: Sequence[TokenRecord]) -> ChatLogprobs:
        content = []
        for token in tokens:
            likeliest = [self._alternative(*other) for other in token.alternatives]
            chosen = self._alternative(token.token_id, token.logprob or 0.0)
            content.append(ChatLogprob(**chosen.model_dump(), top_logprobs=likeliest))
        return ChatLogprobs(content=content)

    def _alternative(self, token_id: int, logprob: float) -> Alternative:
        text = self._tokenizer.decode([token_id])
        return Alternative(token=text, logprob=logprob, bytes=list(text.encode()))
