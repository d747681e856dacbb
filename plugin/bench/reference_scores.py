# SPDX-License-Identifier: MIT
"""What the torch reference says about a bundle, for a process that has no torch to compare with.

    python plugin/bench/reference_scores.py BUNDLE --output reference.npz

Holds token ids with the log-probabilities after each, and a greedy continuation with the distance
between its two likeliest tokens at each step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.manifest import read_bundle

PROMPT_TOKENS = 64
GREEDY_TOKENS = 200


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of probabilities, in double precision."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def main() -> None:
    """Writes the file."""
    from pipeline.torch_session import open_torch_session  # whoever compares has no torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    architecture = read_bundle(arguments.bundle).architecture
    session = open_torch_session(arguments.bundle, architecture)
    random = np.random.default_rng(0)
    ids = random.integers(0, architecture.vocab_size, (1, PROMPT_TOKENS), dtype=np.int64)
    logits, state = session.prefill(ids, all_logits=True)
    greedy, gaps = [], []
    last = logits[:, -1]
    for _ in range(GREEDY_TOKENS):
        second, first = np.sort(log_softmax(last)[0])[-2:]
        greedy.append(int(last[0].argmax()))
        gaps.append(first - second)
        last, state = session.step(np.array([greedy[-1]]), state)
    np.savez(
        arguments.output, ids=ids, logprobs=log_softmax(logits[0]).astype(np.float32),
        greedy=np.array(greedy), gaps=np.array(gaps),
    )  # fmt: skip


if __name__ == "__main__":
    main()
