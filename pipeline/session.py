# SPDX-License-Identifier: MIT
"""What every backend offers: a model that reads tokens and carries a state.

A session owns the weights and nothing else; the state belongs to the caller. A Mamba's whole
memory of a text is one `State` of a few megabytes, whatever the text's length, so copying one
is how a prefix is saved, forked or restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipeline.architecture import MambaArchitecture

TokenIds = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass
class State:
    """Everything a Mamba remembers of `batch` texts.

    Attributes:
        conv: (layer, b, k-1, d) float32, the last inputs of each convolution, oldest first.
        ssm: (layer, b, n, d) float32, the recurrent state h.
    """

    conv: Floats
    ssm: Floats

    @classmethod
    def zeros(cls, architecture: MambaArchitecture, batch: int) -> State:
        """The state before the first token."""
        return cls(
            conv=np.zeros(architecture.conv_state_shape(batch), dtype=np.float32),
            ssm=np.zeros(architecture.ssm_state_shape(batch), dtype=np.float32),
        )

    @property
    def batch(self) -> int:
        """Number of texts this state remembers."""
        return int(self.ssm.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.conv.nbytes + self.ssm.nbytes

    def copy(self) -> State:
        """An independent copy, to fork or to restore from."""
        return State(conv=self.conv.copy(), ssm=self.ssm.copy())


class Session(Protocol):
    """A loaded model on one backend."""

    @property
    def architecture(self) -> MambaArchitecture:
        """Sizes of the loaded model."""

    @property
    def backend(self) -> str:
        """Name of the backend: "onnxruntime", "torch", "cuda" or "tensorrt"."""

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        """Reads a stretch of text at once.

        Args:
            token_ids: (b, l) int64, l >= 1.
            state: What came before; None for the beginning of a text. Never modified.
            all_logits: Whether to return the logits after every token instead of the last.

        Returns:
            Logits, (b, vocab) or with `all_logits` (b, l, vocab) float32, and the state after
            the last token.
        """

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        """Reads one token of each text.

        Args:
            token_ids: (b,) int64.
            state: What came before; its buffers may be reused, so use the returned one.

        Returns:
            Logits (b, vocab) float32 and the state after the token.
        """


@runtime_checkable
class DecodesAhead(Protocol):
    """A session that goes on by itself, without the host between one token and the next."""

    def decode_tokens(
        self,
        logits: Floats,
        state: State,
        count: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Continues one text.

        Args:
            logits: (vocab,) float32, after what the state has read.
            state: What came before; given up to the session.
            count: Tokens to produce.
            temperature: 0 always takes the most likely token.
            top_k: Keep only the k most likely tokens; 0 keeps all.
            top_p: Keep the smallest set of most likely tokens whose probabilities reach p.
            seed: Makes a sampled text repeatable on this backend.

        Yields:
            Token ids, each as soon as the host has it; more may be under way.
        """
