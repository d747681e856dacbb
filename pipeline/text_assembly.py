# SPDX-License-Identifier: MIT
"""From tokens to text that may be given out: whole characters, and nothing of a stop sequence.

A stop sequence may begin in one token and end in another, so text that could still become one
is held back until the next token decides. What is given out never has to be taken back, which
is why a streamed answer and a whole one are the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.tokenizer import TextStream


@dataclass(frozen=True)
class TokenRecord:
    """One produced token, with what the model thought of it.

    Attributes:
        token_id: The token.
        offset: Where its text begins in the answer, in characters.
        logprob: Its natural log-probability before temperature; None when not asked for.
        alternatives: The most likely tokens at this place with their log-probabilities, the
            likeliest first.
    """

    token_id: int
    offset: int = 0
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass
class Piece:
    """What one token made certain.

    Attributes:
        text: Text to give out, possibly empty.
        tokens: The tokens whose text has begun to be given out.
        is_stopped: Whether a stop sequence ended the text.
    """

    text: str = ""
    tokens: list[TokenRecord] = field(default_factory=list)
    is_stopped: bool = False


class TextAssembler:
    """Assembles one answer.

    Args:
        stream: Decoder of this answer's tokens.
        stop: Texts that end the answer; neither they nor what follows is given out.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str] = ()) -> None:
        self._stream = stream
        self._stop = tuple(stop)
        self._held = ""
        self._given = 0
        self._waiting: list[TokenRecord] = []

    def push(self, record: TokenRecord) -> Piece:
        """Takes one token; its offset is filled in here."""
        offset = self._given + len(self._held)
        self._waiting.append(
            TokenRecord(record.token_id, offset, record.logprob, record.alternatives)
        )
        self._held += self._stream.push(record.token_id)
        ends = [found for stop in self._stop if (found := self._held.find(stop)) >= 0]
        if ends:
            return self._release(min(ends), is_stopped=True)
        return self._release(len(self._held) - self._possible_stop())

    def finish(self) -> Piece:
        """What was held back, once no further token will come."""
        piece = self._release(len(self._held))
        piece.tokens += self._waiting
        self._waiting = []
        return piece

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that a stop sequence begins with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0

    def _release(self, length: int, *, is_stopped: bool = False) -> Piece:
        text, self._held = self._held[:length], self._held[length:]
        self._given += length
        tokens = [record for record in self._waiting if record.offset < self._given]
        self._waiting = self._waiting[len(tokens) :]
        return Piece(text, tokens, is_stopped)
