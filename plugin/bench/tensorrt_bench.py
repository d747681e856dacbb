# SPDX-License-Identifier: MIT
r"""Builds TensorRT engines, checks them against the torch reference and times them beside `cuda`.

    python plugin/bench/tensorrt_bench.py BUNDLE… --references FOLDER \
        --output docs/measurements/tensorrt.json

FOLDER holds NAME.npz of `reference_scores.py` for each bundle's folder name; a bundle without one
is timed only. Batch 1. Times are of whole calls, host included: a greedy continuation by
`decode_tokens`, and a prefill of 2048 tokens. Also times one token of an fp16 bundle's own step
graph in plain TensorRT layers, no operator of ours in it, which takes long to build (`--plain
BUNDLE…` says for which). Needs TensorRT, libs6.so, libs6_plugin.so, the extra `cuda`, cuBLAS and a
GPU; no torch.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reference_scores import log_softmax

from pipeline import __version__, engine
from pipeline.architecture import MambaArchitecture
from pipeline.cuda_driver import Gpu, open_gpu
from pipeline.manifest import now, read_bundle
from pipeline.plain_layers_session import PlainLayersSession
from pipeline.session import DecodesAhead, Session
from pipeline.storage import write_atomically
from pipeline.tensorrt_runtime import VERSION
from pipeline.tensorrt_session import TensorRtSession

PREFILL_TOKENS, DECODED_TOKENS = 2048, 200
REPEATS = 7
# Log-probabilities nearer than this are a tie, which rounding may decide either way.
TIE = 1e-3
MEGABYTE = 1e6


class Peak:
    """Memory of the GPU that has been taken since it was made.

    Attributes:
        megabytes: The most that was seen.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._before = gpu, gpu.free_bytes()[0]
        self.megabytes = 0.0

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        """Looks every few milliseconds."""
        over = threading.Event()

        def watch() -> None:
            self._gpu.use_here()
            while not over.wait(0.005):
                self.megabytes = max(self.megabytes, self.taken())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def taken(self) -> float:
        """Megabytes at this moment."""
        return (self._before - self._gpu.free_bytes()[0]) / MEGABYTE


def host_peak_megabytes() -> float:
    """The most memory this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    raise AssertionError("Linux says VmHWM")


def milliseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Median and spread (half of the range, in percent) of some calls after two to warm up."""
    times = []
    for number in range(2 + REPEATS):
        begin = time.perf_counter()
        call()
        if number >= 2:
            times.append((time.perf_counter() - begin) * 1e3)
    median = statistics.median(times)
    return median, 50 * (max(times) - min(times)) / median


def continued(session: Session, ids: np.ndarray, count: int) -> list[int]:
    """The greedy continuation."""
    assert isinstance(session, DecodesAhead)
    logits, state = session.prefill(ids)
    return list(session.decode_tokens(logits[0], state, count))


def speed(session: Session) -> dict[str, float]:
    """Milliseconds of a token and of a prefill."""
    vocab = session.architecture.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab, (1, PREFILL_TOKENS), dtype=np.int64)
    one = ids[:, :1]
    long, long_spread = milliseconds(lambda: continued(session, one, DECODED_TOKENS))
    short, _ = milliseconds(lambda: continued(session, one, 1))
    prefill, prefill_spread = milliseconds(lambda: session.prefill(ids))
    return {
        "ms_per_token": round((long - short) / (DECODED_TOKENS - 1), 4),
        "spread_pct": round(long_spread, 2),
        "prefill_ms": round(prefill, 3),
        "prefill_spread_pct": round(prefill_spread, 2),
    }


def parity(session: Session, reference: Path) -> dict[str, Any]:
    """How a session compares with the reference."""
    known = np.load(reference)
    logits, _ = session.prefill(known["ids"], all_logits=True)
    worst = float(np.abs(log_softmax(logits[0]) - known["logprobs"]).max())
    found = continued(session, known["ids"], len(known["greedy"]))
    ties = np.flatnonzero(known["gaps"] < TIE)
    clear = int(ties[0]) if len(ties) else len(found)
    same = int(np.cumprod(np.array(found) == known["greedy"]).sum())
    return {
        "logprob_error": round(worst, 5),
        "same_tokens": same,
        "tokens_to_first_tie": clear,
        "tokens_agree": same >= clear,
    }


def plain_step(bundle: Path, architecture: MambaArchitecture) -> dict[str, float]:
    """Time of one token in plain layers."""
    begin = time.perf_counter()
    session = PlainLayersSession(bundle, architecture)
    build_s = time.perf_counter() - begin
    tokens, token_id = 50, np.ones(1, np.int64)

    def decode() -> None:
        for _ in range(tokens):
            session.enqueue(token_id)
        session.finish()

    found, spread = milliseconds(decode)
    return {
        "ms_per_token": round(found / tokens, 4), "spread_pct": round(spread, 2),
        "build_s": round(build_s, 1), "plan_mb": round(session.plan_bytes / MEGABYTE, 2),
    }  # fmt: skip


def prefill_layers(session: TensorRtSession) -> dict[str, float]:
    """Milliseconds of each kind of layer in a prefill by TensorRT's profiler, of all blocks.

    The profiler keeps layers from overlapping, so their sum is more than a prefill takes.
    """
    session.reader.layer_times(1, PREFILL_TOKENS)
    found: defaultdict[str, float] = defaultdict(float)
    for name, ms in session.reader.layer_times(1, PREFILL_TOKENS):
        found[re.sub(r"layers\.\d+\.|_\d+\b", "", name)] += ms
    return {name: round(ms, 4) for name, ms in sorted(found.items(), key=lambda one: -one[1])}


def rows_of(
    bundle: Path,
    references: Path | None,
    plain: list[Path] | None,
    folder: Path,
    gpu: Gpu,
) -> list[dict[str, Any]]:
    """Rows of one bundle: the engine, the `cuda` session, plain layers where asked for."""
    manifest = read_bundle(bundle)
    common = {"model": bundle.name, "precision": manifest.precision, "batch": 1}
    rows = []
    for backend in ("tensorrt", "cuda"):
        row: dict[str, Any] = {**common, "backend": backend}
        begin = time.perf_counter()
        with Peak(gpu).watched() as peak:
            engine.build(bundle, folder / backend, backend)
        row["build_s"] = round(time.perf_counter() - begin, 1)
        row["build_gpu_mb"] = round(peak.megabytes)
        row["build_host_mb"] = round(host_peak_megabytes())
        if backend == "tensorrt":
            plans = sum(path.stat().st_size for path in (folder / backend).glob("*.plan"))
            row["plan_mb"] = round(plans / MEGABYTE, 2)
        taken = Peak(gpu)
        session = engine.load_engine(folder / backend).session
        row |= speed(session)
        row["session_gpu_mb"] = round(taken.taken())
        reference = None if references is None else references / f"{bundle.name}.npz"
        if reference is not None and reference.is_file():
            row |= parity(session, reference)
        if isinstance(session, TensorRtSession):
            row["prefill_layers_ms"] = prefill_layers(session)
        rows.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        del session
    if manifest.precision == "fp16" if plain is None else bundle in plain:
        rows.append(
            {
                **common,
                "backend": "tensorrt, plain layers",
                **plain_step(bundle, manifest.architecture),
            }
        )
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
    return rows


def main() -> None:
    """Measures each bundle; what is done is kept if a later one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--references", type=Path)
    parser.add_argument(
        "--plain", nargs="*", type=Path, help="plain layers of these alone (of all in fp16)"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    gpu = open_gpu()
    rows: list[dict[str, Any]] = []
    for bundle in arguments.bundles:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(bundle, arguments.references, arguments.plain, Path(folder), gpu)
        document = {
            "subject": "tensorrt",
            "date": now()[:10],
            "machine": f"{gpu.facts.name}, whole GPU",
            "gpu": gpu.facts.name,
            "versions": {"mamba-orin": __version__, "tensorrt": VERSION, "cuda": gpu.facts.driver},
            "command": shlex.join(["python", "plugin/bench/tensorrt_bench.py", *sys.argv[1:]]),
            "rows": rows,
        }
        write_atomically(arguments.output, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
