# SPDX-License-Identifier: MIT
"""What is asked of the scheduler, and what it tells of an answer while it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.generation import Sampling
from pipeline.session import State
from pipeline.text_assembly import Piece, TextAssembler


class QueueFullError(Exception):
    """More requests wait than the queue holds.

    Args:
        retry_after_s: When it is worth trying again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


class StoppedError(Exception):
    """The scheduler takes no requests any more, or gave this one up while stopping."""


class WaitedTooLongError(QueueFullError):
    """A request stood in the queue for longer than it may."""


class RanTooLongError(Exception):
    """A request took longer than it may."""


@dataclass(frozen=True)
class Begun:
    """The prompt is about to be read; `reused_tokens` of it are covered by a kept state."""

    reused_tokens: int


@dataclass(frozen=True)
class Progressed:
    """An answer got longer.

    Attributes:
        choice: Which answer of the request.
        piece: Text and tokens that became certain.
    """

    choice: int
    piece: Piece


@dataclass(frozen=True)
class Ended:
    """An answer is complete.

    Attributes:
        choice: Which answer of the request.
        reason: "stop" or "length".
        produced: Tokens that were produced, those of a stop sequence included.
        state: When `keep_state` was asked for, the state after the prompt and these tokens.
    """

    choice: int
    reason: str
    produced: int
    state: State | None


@dataclass(frozen=True)
class Failed:
    """The request ends without an answer; nothing follows."""

    error: Exception


Event = Begun | Progressed | Ended | Failed


@dataclass(eq=False)
class Request:
    """A prompt and the answers it shall get.

    Attributes:
        prompt_ids: The prompt, at least one token.
        samplings: How to choose tokens, one entry an answer.
        assembler: Makes the assembler of one answer.
        on_event: Told what happens, from the worker thread; must not block or raise.
        max_new_tokens: The most tokens of an answer; 0 only reads the prompt.
        end_ids: Tokens that end an answer; they are not part of it.
        alternatives: How many likely tokens to tell at each place; None tells no
            log-probability at all.
        state: What was read before the prompt; never modified.
        root: Identifies `state` in the prefix cache; empty without one.
        keep_state: Whether `Ended` shall hold the state.
        is_cancelled: Set by the scheduler when it is given up.
        arrived: Set by the scheduler, when it was submitted.
        running: Set by the scheduler, how many answers have not ended.
    """

    prompt_ids: Sequence[int]
    samplings: Sequence[Sampling]
    assembler: Callable[[], TextAssembler]
    on_event: Callable[[Event], None]
    max_new_tokens: int
    end_ids: frozenset[int] = frozenset()
    alternatives: int | None = None
    state: State | None = None
    root: bytes = b""
    keep_state: bool = False
    is_cancelled: bool = field(default=False, init=False)
    arrived: float = field(default=0.0, init=False)
    running: int = field(default=0, init=False)
