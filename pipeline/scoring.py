# SPDX-License-Identifier: MIT
"""How likely a model finds a text: log-probability of each token, and perplexity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pipeline.generation import check_token_ids
from pipeline.session import Floats, Session, State, TokenIds
from pipeline.settings import Progress, no_progress

# Logits of this many tokens are held at once: 51 MB at a vocabulary of 50 thousand.
_PIECE_TOKENS = 256


class Score(BaseModel):
    """Log-probabilities of a text.

    Attributes:
        tokens: The token ids.
        logprobs: Natural log-probability of each token given those before it; the first has
            none.
        perplexity: exp(-mean of the log-probabilities); None for a single token.
    """

    model_config = ConfigDict(frozen=True)

    tokens: list[int]
    logprobs: list[float | None]
    perplexity: float | None


def score(
    session: Session,
    token_ids: Sequence[int],
    progress: Progress = no_progress,
) -> Score:
    """Scores a text of any length in bounded memory.

    Raises:
        EmptyPromptError, TokenRangeError: The text cannot be used.
    """
    ids = check_token_ids(token_ids, session.architecture.vocab_size)
    length = ids.shape[1]
    logprobs: list[float] = []
    state: State | None = None
    for start in range(0, length - 1, _PIECE_TOKENS):
        inputs = ids[:, start : min(start + _PIECE_TOKENS, length - 1)]
        targets = ids[0, start + 1 : start + 1 + inputs.shape[1]]
        logits, state = session.prefill(inputs, state, all_logits=True)
        logprobs += _log_softmax_at(logits[0], targets).tolist()
        progress(start + inputs.shape[1] + 1, length)
    perplexity = float(np.exp(-np.mean(logprobs))) if logprobs else None
    return Score(tokens=ids[0].tolist(), logprobs=[None, *logprobs], perplexity=perplexity)


def _log_softmax_at(logits: Floats, targets: TokenIds) -> npt.NDArray[np.float64]:
    """Log softmax of (l, vocab) at one id a row, in float64."""
    largest = logits.max(axis=1, keepdims=True)
    total = np.exp((logits - largest).astype(np.float64)).sum(axis=1)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return np.asarray(chosen - largest[:, 0] - np.log(total), dtype=np.float64)
