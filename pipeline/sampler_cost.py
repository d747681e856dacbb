# SPDX-License-Identifier: MIT
"""What reading the sensors costs: its share of a core, and what it adds to a token.

    python -m pipeline.sampler_cost ENGINE --output docs/measurements/sampler.json

Short blocks of tokens are decoded in turn with and without the sampler, in an order that a
coin decides, so that whatever else the machine does meets both alike. The effect is the median
over pairs of neighbouring blocks; its interval comes from resampling the pairs.

Ten readings a second cost less than a machine's own unrest, which no sensible number of pairs
averages away. So readings may come several times as often as usual, each doing what it always
does; their cost is then divided by that number, as is the interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import __version__
from pipeline.board import read_board
from pipeline.errors import UsageError
from pipeline.samplers import CHOICES, open_sampler
from pipeline.session import Session, State, TokenIds
from pipeline.storage import write_atomically
from pipeline.telemetry import Recorder, Sampler

_RESAMPLES = 4000
_INTERVAL_PERCENT = 95


def measure_cost(
    session: Session,
    source: str,
    root: Path,
    pairs: int,
    tokens: int,
    seed: int,
    times_as_often: int = 1,
) -> dict[str, Any]:
    """One row of the measurement: costs of the usual readings, times and changes as measured.

    Args:
        session: The model.
        source: One of `samplers.CHOICES`.
        root: Root of the file tree that is read.
        pairs: Pairs of blocks, one with and one without the sampler.
        tokens: Tokens of a block.
        seed: Of the order and of the resampling.
        times_as_often: Readings for each usual one; more than one where the source can be hurried.

    Raises:
        UsageError: The source sets its own pace, or a count is not positive.
    """
    if min(pairs, tokens, times_as_often) < 1:
        raise UsageError(
            f"{pairs} pairs of {tokens} tokens, read {times_as_often} times as often",
            fix="give whole numbers from 1 on",
        )
    generator = np.random.default_rng(seed)
    logits, state = session.prefill(np.ones((1, 16), np.int64))
    token_ids = logits.argmax(axis=-1)
    state, token_ids = _decode(session, state, token_ids, tokens)[1:]
    changes, cpu_s, wall_s, readings, with_ms, without_ms = [], 0.0, 0.0, 0, [], []
    interval_s = 0.0
    for _ in range(pairs):
        times: dict[bool, float] = {}
        for is_read in generator.permutation([True, False]).tolist():
            if is_read:
                with Recorder(_hurried(source, root, times_as_often)) as recorder:
                    times[True], state, token_ids = _decode(session, state, token_ids, tokens)
                recording = recorder.stop()
                interval_s = recording.interval_s
                cpu_s, wall_s = cpu_s + recording.cpu_s, wall_s + recording.wall_s
                readings += max(map(len, recording.values.values()), default=0)
            else:
                times[False], state, token_ids = _decode(session, state, token_ids, tokens)
        changes.append(100 * (times[True] / times[False] - 1))
        with_ms.append(1e3 * times[True] / tokens)
        without_ms.append(1e3 * times[False] / tokens)
    effects = np.asarray(changes) / times_as_often
    low, high = _interval(effects, generator)
    return {
        "source": source,
        "interval_s": interval_s,
        "times_as_often": times_as_often,
        "pairs": pairs,
        "tokens": tokens,
        "readings": readings,
        "cpu_percent": 100 * cpu_s / wall_s / times_as_often,
        "ms_per_token_with": float(np.median(with_ms)),
        "ms_per_token_without": float(np.median(without_ms)),
        "effect_percent": float(np.median(effects)),
        "effect_low_percent": low,
        "effect_high_percent": high,
        "changes_percent": [round(change, 4) for change in changes],
    }


def _hurried(source: str, root: Path, times_as_often: int) -> Sampler:
    sampler = open_sampler(source, root=root)
    if times_as_often > 1 and not hasattr(sampler, "read"):
        sampler.close()
        raise UsageError(
            f"{sampler.source} sets its own pace and cannot be hurried",
            fix="leave --times-as-often away",
        )
    sampler.interval_s /= times_as_often
    return sampler


def _decode(
    session: Session, state: State, token_ids: TokenIds, count: int
) -> tuple[float, State, TokenIds]:
    start = time.perf_counter()
    for _ in range(count):
        logits, state = session.step(token_ids, state)
        token_ids = logits.argmax(axis=-1)
    return time.perf_counter() - start, state, token_ids


def _interval(
    effects: npt.NDArray[np.float64], generator: np.random.Generator
) -> tuple[float, float]:
    """Where the median lies in 95 of 100 resamplings."""
    picks = generator.integers(0, len(effects), (_RESAMPLES, len(effects)))
    medians = np.median(effects[picks], axis=1)
    beyond = (100 - _INTERVAL_PERCENT) / 2
    return float(np.percentile(medians, beyond)), float(np.percentile(medians, 100 - beyond))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--telemetry", choices=CHOICES, default="auto")
    parser.add_argument("--root", type=Path, default=Path("/"), help="of the sensors' file tree")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=100, help="of a block")
    parser.add_argument(
        "--times-as-often", type=int, default=1, help="readings for each usual one (default: 1)"
    )
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    from pipeline.engine import load_engine

    engine = load_engine(given.engine, given.threads)
    row = measure_cost(
        engine.session,
        given.telemetry,
        given.root,
        given.pairs,
        given.tokens,
        seed=0,
        times_as_often=given.times_as_often,
    )
    board = read_board()
    here = given.root == Path("/")
    document = {
        "subject": "sampler",
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "machine": f"{board.cores} cores of {board.cpu}",
        "gpu": ", ".join(gpu.name for gpu in board.gpus) or None,
        "sensors": "this machine's" if here else "a recorded board's files, not its chips",
        "versions": {"mamba-orin": __version__, "python": platform.python_version()},
        "command": shlex.join(["python", "-m", "pipeline.sampler_cost", *sys.argv[1:]]),
        "rows": [{"model": engine.manifest.model_name, "backend": engine.session.backend, **row}],
    }
    write_atomically(given.output, (json.dumps(document, indent=1) + "\n").encode())
    sys.stdout.write(
        f"{row['source']}: {row['cpu_percent']:.2f} % of a core; a token takes "
        f"{row['effect_percent']:+.2f} % ({row['effect_low_percent']:+.2f} to "
        f"{row['effect_high_percent']:+.2f}) longer, of {row['ms_per_token_without']:.3f} ms "
        f"(read {row['times_as_often']} times as often, and divided)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
