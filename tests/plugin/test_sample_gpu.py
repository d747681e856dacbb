# SPDX-License-Identifier: MIT
"""Sampling on a GPU against the rule in include/s6/sample.h, written out in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.s6_library import call
from pipeline.s6_prefill import SampleProblem
from tests.plugin import oracle

pytestmark = pytest.mark.gpu

ONE = 2.0**40
WORD = 2**32
# A draw this near to the border between two tokens may go either way: exp is rounded differently.
BORDER = 1e-5


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a row is sampled."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1


def philox(counter, key):
    """Philox4x32-10 in Python's whole numbers."""
    words, keys = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            second // WORD ^ words[1] ^ keys[0],
            second % WORD,
            first // WORD ^ words[3] ^ keys[1],
            first % WORD,
        ]
        keys = [(keys[0] + 0x9E3779B9) % WORD, (keys[1] + 0xBB67AE85) % WORD]
    return words


def uniform(seed, draws):
    """The random number of a draw, from 0 up to 1."""
    words = philox((draws % WORD, draws // WORD, 0, 0), (seed % WORD, seed // WORD))
    return (words[1] * WORD + words[0]) / 2**64


def kept(logits, rule):
    """Tokens that may be drawn, the most likely first, and their weights."""
    order = np.argsort(-logits, kind="stable")
    if rule.top_k:
        order = order[: rule.top_k]
    scaled = (logits[order].astype(np.float64) - logits[order[0]]) / np.float32(rule.temperature)
    weights = np.floor(np.exp(scaled) * ONE)
    if rule.top_p < 1:
        reached = np.cumsum(weights) >= float(np.float32(rule.top_p)) * weights.sum()
        count = int(np.argmax(reached)) + 1
        order, weights = order[:count], weights[:count]
    return order, weights


def possible(order, weights, seed, draws):
    """The token of a draw; two where the draw falls onto the border between them."""
    ends = np.cumsum(weights)
    ends /= ends[-1]
    at = uniform(seed, draws)
    return {
        int(order[min(np.searchsorted(ends, at + shift, side="right"), len(order) - 1)])
        for shift in (-BORDER, 0, BORDER)
    }


def sample(torch, logits, rules, times=1, first_draw=0):
    """Draws `times` tokens of each row; returns them (times, b)."""
    b, vocab = logits.shape
    device = torch.from_numpy(np.ascontiguousarray(logits)).cuda()

    def column(name, dtype):
        values = np.array([getattr(rule, name) for rule in rules], dtype)
        return torch.from_numpy(values).cuda()

    temperature, top_p = column("temperature", np.float32), column("top_p", np.float32)
    top_k, seed = column("top_k", np.int32), column("seed", np.int64)
    draws = torch.full((b,), first_draw, dtype=torch.int64, device="cuda")
    ids = torch.full((times, b), -1, dtype=torch.int32, device="cuda")
    for turn in range(times):
        problem = SampleProblem(
            b=b,
            vocab=vocab,
            logits=device.data_ptr(),
            temperature=temperature.data_ptr(),
            top_k=top_k.data_ptr(),
            top_p=top_p.data_ptr(),
            seed=seed.data_ptr(),
            draws=draws.data_ptr(),
            next_ids=ids[turn].data_ptr(),
        )
        call("s6_sample", problem, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert draws.tolist() == [first_draw + times] * b
    return ids.cpu().numpy()


def shapes_of_logits():
    """Rows of logits that stress one thing each."""
    generator = np.random.default_rng(6)
    normal = generator.normal(scale=3, size=50277).astype(np.float32)
    ties = np.round(normal)
    few = np.full(50277, -np.inf, np.float32)
    few[[5, 77, 50276]] = [1.0, 2.0, 1.5]
    outlier = normal.copy()
    outlier[123] = 1e30
    return {
        "normal": normal,
        "ties": ties,
        "all equal": np.zeros(50277, np.float32),
        "both zeros": np.where(generator.random(5000) < 0.5, 0.0, -0.0).astype(np.float32),
        "few finite": few,
        "an outlier": outlier,
        "three": np.array([0.1, -4.0, 0.1], np.float32),
        "one": np.array([-7.0], np.float32),
        "flat": generator.normal(scale=1e-3, size=65024).astype(np.float32),
        "far below": np.where(np.arange(3000) < 2, 0.0, -1e4).astype(np.float32),
    }


LOGITS = shapes_of_logits()
RULES = {
    "plain": Rule(),
    "cold": Rule(temperature=0.05),
    "hot": Rule(temperature=8.0),
    "top-1": Rule(top_k=1),
    "top-40": Rule(top_k=40),
    "top-2000": Rule(top_k=2000),
    "all": Rule(top_k=10**6),
    "nucleus": Rule(top_p=0.9),
    "small nucleus": Rule(top_p=1e-6),
    "nearly all": Rule(top_p=0.999),
    "both": Rule(temperature=0.7, top_k=100, top_p=0.8),
}


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("rule", RULES)
def test_each_draw_is_the_token_of_the_rule(shape, rule):
    """Sixteen draws with eight seeds, beginning past the first 2^32."""
    torch = oracle.require_gpu()
    logits = np.stack([LOGITS[shape]] * 8)
    rules = [dataclasses.replace(RULES[rule], seed=seed * 2**40 + 7) for seed in range(8)]
    first = 2**32 - 8
    found = sample(torch, logits, rules, times=16, first_draw=first)
    order, weights = kept(LOGITS[shape], RULES[rule])
    for turn, row in enumerate(found):
        for token, row_rule in zip(row, rules, strict=True):
            assert int(token) in possible(order, weights, row_rule.seed, first + turn)


def test_temperature_zero_takes_the_most_likely_and_of_equals_the_first():
    """Also where nothing is finite or something is not a number."""
    torch = oracle.require_gpu()
    rows = np.zeros((4, 1000), np.float32)
    rows[0, [10, 700]] = 5.0
    rows[1] = -np.inf
    rows[2, 3], rows[2, 9] = np.nan, 1.0
    rows[3, 44] = np.inf
    found = sample(torch, rows, [Rule(temperature=0.0)] * 4)
    assert found[0].tolist() == [10, 0, 9, 44]


def test_rows_with_rules_of_their_own():
    """A batch of different rules equals each row alone."""
    torch = oracle.require_gpu()
    rules = [Rule(temperature=0.0), Rule(top_k=5), Rule(top_p=0.5, seed=9), Rule(temperature=2.0)]
    logits = np.stack([LOGITS["normal"], LOGITS["ties"], LOGITS["flat"][:50277], LOGITS["normal"]])
    together = sample(torch, logits, rules, times=5)
    for row, rule in enumerate(rules):
        alone = sample(torch, logits[row : row + 1], [rule], times=5)
        assert together[:, row].tolist() == alone[:, 0].tolist()


def test_draws_follow_the_distribution():
    """Chi-square over 20 tokens and 8192 draws; the seed is fixed, so this cannot fail by luck."""
    torch = oracle.require_gpu()
    logits = np.random.default_rng(8).normal(size=(1, 20)).astype(np.float32)
    rule = Rule(temperature=1.3, top_k=15, seed=4)
    found = sample(torch, logits, [rule], times=8192)[:, 0]
    order, weights = kept(logits[0], rule)
    counts = np.bincount(found, minlength=20)
    assert set(np.flatnonzero(counts)) <= set(order.tolist())
    expected = weights / weights.sum() * len(found)
    statistic = float(((counts[order] - expected) ** 2 / expected).sum())
    # 99.9 % of correct generators stay below this with 14 degrees of freedom.
    assert statistic < 36.12
