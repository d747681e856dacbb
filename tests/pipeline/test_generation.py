# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import load_engine
from pipeline.errors import EmptyPromptError, TokenRangeError, UsageError
from pipeline.generation import Sampler, Sampling, check_token_ids, generate
from pipeline.session import Session

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], dtype=np.float32))


def chosen(sampling: Sampling, draws: int = 400) -> set[int]:
    sampler = Sampler(sampling)
    return {sampler.choose(LOGITS) for _ in range(draws)}


def test_greedy_takes_the_most_likely_token() -> None:
    assert chosen(Sampling()) == {1}


def test_sampling_follows_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(counts / 20_000, np.exp(LOGITS), atol=0.015)


def test_low_temperature_sharpens_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=0.25, seed=0))
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(20_000)], minlength=5)
    expected = np.exp(LOGITS / 0.25)
    np.testing.assert_allclose(counts / 20_000, expected / expected.sum(), atol=0.015)


def test_top_k_keeps_the_k_most_likely() -> None:
    assert chosen(Sampling(temperature=1.0, top_k=2, seed=0)) == {1, 3}
    assert chosen(Sampling(temperature=1.0, top_k=1, seed=0)) == {1}
    assert chosen(Sampling(temperature=1.0, top_k=99, seed=0)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("top_p", "expected"), [(0.39, {1}), (0.5, {1, 3}), (0.75, {1, 3, 4}), (1.0, {0, 1, 2, 3, 4})]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(top_p: float, expected: set[int]) -> None:
    assert chosen(Sampling(temperature=1.0, top_p=top_p, seed=0)) == expected


@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=30),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1.0),
)
def test_any_setting_chooses_a_token_that_exists(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    token_id = Sampler(Sampling(temperature, top_k, top_p, seed=0)).choose(
        np.array(logits, dtype=np.float32)
    )
    assert 0 <= token_id < len(logits)
    if top_k:
        assert logits[token_id] >= sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_settings_out_of_range_are_refused_by_the_name_of_their_option(
    values: dict[str, float], option: str
) -> None:
    with pytest.raises(UsageError, match=option):
        Sampling(**values)  # type: ignore[arg-type]


def test_prompts_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(EmptyPromptError):
        check_token_ids([], 10)
    with pytest.raises(TokenRangeError, match="token id 10 at position 2"):
        check_token_ids([1, 9, 10], 10)


@pytest.fixture(scope="module")
def session(engine: Path) -> Session:
    return load_engine(engine, threads=1).session


def test_greedy_text_is_the_most_likely_token_each_time(session: Session) -> None:
    prompt = [5, 6, 7]
    produced = list(generate(session, prompt, 12, Sampling()))
    logits, _ = session.prefill(np.array([prompt + produced]), all_logits=True)
    assert produced == np.argmax(logits[0, 2:-1], axis=-1).tolist()


def test_text_ends_before_an_end_token(session: Session) -> None:
    whole = list(generate(session, [5, 6, 7], 12, Sampling()))
    end = whole[4]
    assert (
        list(generate(session, [5, 6, 7], 12, Sampling(), frozenset([end])))
        == (whole[: whole.index(end)])
    )


class CountingSession:
    """Passes calls on and counts the tokens that are read."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.architecture = inner.architecture
        self.backend = inner.backend
        self.read = 0

    def prefill(self, token_ids, state=None, *, all_logits=False):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        self.read += token_ids.size
        return self._inner.prefill(token_ids, state, all_logits=all_logits)

    def step(self, token_ids, state):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        self.read += token_ids.size
        return self._inner.step(token_ids, state)


def test_work_grows_with_the_number_of_tokens_and_not_with_its_square(session: Session) -> None:
    for new_tokens in (1, 10, 100):
        counting = CountingSession(session)
        produced = list(generate(counting, [1, 2, 3], new_tokens, Sampling()))
        assert len(produced) == new_tokens
        assert counting.read == 3 + new_tokens - 1


def test_tokens_arrive_one_by_one(session: Session) -> None:
    counting = CountingSession(session)
    stream: Iterator[int] = generate(counting, [1, 2, 3], 50, Sampling())
    list(islice(stream, 4))
    assert counting.read == 3 + 3
