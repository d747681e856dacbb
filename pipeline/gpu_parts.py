# SPDX-License-Identifier: MIT
"""What a session on the GPU is put together from, whatever computes: a reader and a stepper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.cuda_stretch_state import StretchState


@dataclass(frozen=True)
class LogitsPart:
    """Logits after some tokens of one text.

    Attributes:
        text: Number of the text.
        first: First of the tokens, counted from the beginning of the stretch.
        rows: How many tokens.
        address: Of (rows, vocab) float32 on the GPU.
    """

    text: int
    first: int
    rows: int
    address: int


class StateAddresses(Protocol):
    """A state of a few texts on the GPU; see `cuda_state.StateBuffer`."""

    batch: int
    conv: int
    ssm: int


class Reader(Protocol):
    """Reads stretches of text; work is enqueued on one stream and nothing waits.

    Attributes:
        token_ids: Address of (b, l) int32, the stretch to read.
        logits: Address of (b, vocab) float32, those after the end of the last stretch.
        state: What the next stretch goes on from.
    """

    token_ids: int
    logits: int
    state: StretchState

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Memory it holds, states apart, by what it is for."""

    def most_length(self, batch: int, *, all_logits: bool) -> int:
        """Most tokens of each of `batch` texts in one stretch."""

    def read(self, batch: int, length: int) -> None:
        """Enqueues a stretch (batch, length), with the logits (batch, vocab) after its end."""

    def read_with_logits(self, batch: int, length: int) -> Iterator[LogitsPart]:
        """Enqueues a stretch with the logits after every token, part by part.

        A part's logits lie where it says until the next is asked for.
        """


class Stepper(Protocol):
    """Reads one token of each of a few texts; work is enqueued on one stream.

    Attributes:
        refusal: Why there is no kernel for a whole token, which then goes the way of a prefill
            and chooses nothing; None when there is.
        most_texts: Texts that it takes at once.
    """

    refusal: str | None
    most_texts: int

    @property
    def workspace_bytes(self) -> int:
        """Memory it holds so far."""

    def enqueue(
        self,
        buffer: StateAddresses,
        token_ids: int,
        logits: int | None,
        next_ids: int | None = None,
    ) -> None:
        """Enqueues one token of each text.

        Args:
            buffer: The state, read and written.
            token_ids: Address of (b,) int32.
            logits: Address of (b, vocab) float32, written; None where they are not wanted.
            next_ids: Address of (b,) int32, the most likely tokens, written unless `refusal`;
                may be token_ids.
        """
