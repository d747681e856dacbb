# SPDX-License-Identifier: MIT
"""Continues a text, one token at a time, on any backend."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import EmptyPromptError, TokenRangeError, UsageError
from pipeline.session import DecodesAhead, Floats, Session, State, TokenIds


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
        temperature: 0 always takes the most likely token; 1 follows the model's distribution.
        top_k: Keep only the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose probabilities reach p.
        seed: Makes a sampled text repeatable; None draws a fresh one.

    Raises:
        UsageError: A value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, is_valid, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not is_valid:
                option = name.replace("_", "-")
                raise UsageError(
                    f"--{option} is {getattr(self, name)}", fix=f"--{option} must be {wanted}"
                )


class Sampler:
    """Chooses tokens; holds the random numbers of one text."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Floats) -> int:
        """Picks a token id from the logits (vocab,) float32."""
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(np.argmax(logits))
        # Tokens from the most likely down; equal logits keep their order, so a seed repeats.
        order = np.argsort(-logits, kind="stable")
        if sampling.top_k:
            order = order[: sampling.top_k]
        scaled = logits[order].astype(np.float64) / sampling.temperature
        weights = np.exp(scaled - scaled[0])
        cumulative = np.cumsum(weights) / weights.sum()
        # The token that crosses p is kept, so there is always one.
        kept = int(np.searchsorted(cumulative, sampling.top_p)) + 1
        threshold = self._random.random() * cumulative[min(kept, len(order)) - 1]
        return int(order[np.searchsorted(cumulative, threshold, side="right")])


def check_token_ids(token_ids: Sequence[int], vocab_size: int) -> TokenIds:
    """Turns a prompt into the (1, l) int64 array that sessions read.

    Raises:
        EmptyPromptError: There is no token.
        TokenRangeError: An id is not in the vocabulary.
    """
    if not token_ids:
        raise EmptyPromptError(
            "the prompt is empty: there is no token to start from",
            fix="give a --prompt with at least one character",
        )
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise TokenRangeError(
                f"token id {token_id} at position {position} is outside the vocabulary "
                f"(0 to {vocab_size - 1})",
                fix="make the ids with the tokenizer that belongs to this model",
            )
    return np.array([token_ids], dtype=np.int64)


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    end_ids: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """Continues a prompt.

    The cost of a token does not depend on how many came before it.

    Args:
        session: The loaded model.
        prompt_ids: The prompt.
        max_new_tokens: The most tokens to produce.
        sampling: How to choose them.
        end_ids: Tokens that end the text; they are not given out.

    Yields:
        Token ids, each as soon as it is chosen.

    Raises:
        EmptyPromptError, TokenRangeError: The prompt cannot be used.
        UsageError: `max_new_tokens` is below 1.
    """
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}", fix="ask for 1 token or more")
    sampler = Sampler(sampling)
    prompt = check_token_ids(prompt_ids, session.architecture.vocab_size)
    logits, state = session.prefill(prompt)
    if isinstance(session, DecodesAhead):
        yield from _continue_ahead(session, sampling, logits, state, max_new_tokens, end_ids)
    else:
        yield from _continue(session, sampler, logits, state, max_new_tokens, end_ids)


def _continue_ahead(
    session: DecodesAhead,
    sampling: Sampling,
    logits: Floats,
    state: State,
    max_new_tokens: int,
    end_ids: frozenset[int],
) -> Iterator[int]:
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    tokens = session.decode_tokens(
        logits[0],
        state,
        max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=seed,
    )
    yield from itertools.takewhile(lambda token_id: token_id not in end_ids, tokens)


def _continue(
    session: Session,
    sampler: Sampler,
    logits: Floats,
    state: State,
    max_new_tokens: int,
    end_ids: frozenset[int],
) -> Iterator[int]:
    for produced in range(1, max_new_tokens + 1):
        token_id = sampler.choose(logits[0])
        if token_id in end_ids:
            return
        yield token_id
        if produced < max_new_tokens:
            logits, state = session.step(np.array([token_id], dtype=np.int64), state)
