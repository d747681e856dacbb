# SPDX-License-Identifier: MIT
"""Times the decode step on the whole GPU and on 8 multiprocessors, greedy choice included.

Shapes of the published models with random weights; batch 1 and 8. Each token's choice is the next
one's input, inside one replayed CUDA graph. The streaming read measured in the same run is the
bound. Needs torch, cupy, cuda-python, libs6.so and a GPU. Writes docs/measurements/decode.json
itself.

    python plugin/bench/decode_bench.py --output docs/measurements/decode.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_clock import header, stream_read_gbps, whole_and_proxy
from random_model import RandomModel

from pipeline.architecture import PUBLISHED
from pipeline.s6_decode import DecodeProblem, decode

MODELS = ("mamba-130m", "mamba-370m", "mamba-1.4b", "mamba-2.8b")
PRECISIONS = ("fp16", "int8", "int4")
TOKENS_OF_GRAPH = 16


def time_tokens(
    problem: DecodeProblem, stream: torch.cuda.Stream, seconds: float
) -> tuple[float, float, float]:
    """Milliseconds a token (median of graphs), spread in percent, host microseconds a token."""
    with torch.cuda.stream(stream):
        decode(problem, stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(TOKENS_OF_GRAPH):
                decode(problem, stream.cuda_stream)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        samples, host = [], []
        begin = time.perf_counter()
        while len(samples) < 5 or time.perf_counter() - begin < seconds:
            start.record(stream)
            before = time.perf_counter()
            graph.replay()
            host.append((time.perf_counter() - before) / TOKENS_OF_GRAPH * 1e6)
            stop.record(stream)
            stream.synchronize()
            samples.append(start.elapsed_time(stop) / TOKENS_OF_GRAPH)
    samples = samples[1:]
    middle = statistics.median(samples)
    spread = 100 * (max(samples) - min(samples)) / middle
    return middle, spread, statistics.median(host)


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measures every shape and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    streams = whole_and_proxy()
    stream_read = {sms: stream_read_gbps(stream) for sms, (stream, _) in streams.items()}
    say(f"streaming read, GB/s by SMs: { ({k: round(v) for k, v in stream_read.items()}) }")
    rows = []
    for name in arguments.models:
        for precision in arguments.precisions:
            model = RandomModel(PUBLISHED[name], precision)
            for batch in arguments.batches:
                for sms, (stream, _) in streams.items():
                    buffers: dict[str, torch.Tensor] = {}
                    problem = model.problem(batch, sms, buffers)
                    torch.cuda.synchronize()
                    ms, spread, host = time_tokens(problem, stream, arguments.seconds)
                    gbps = model.weight_bytes / ms / 1e6
                    rows.append(
                        {
                            "model": name,
                            "precision": precision,
                            "batch": batch,
                            "sms": sms,
                            "ms_per_token": round(ms, 4),
                            "spread_pct": round(spread, 1),
                            "weight_bytes": model.weight_bytes,
                            "read_gbps": round(gbps, 1),
                            "stream_read_gbps": round(stream_read[sms], 1),
                            "launches_per_layer": round(1 / model.architecture.n_layer, 4),
                            "host_us_per_token": round(host, 2),
                        }
                    )
                    say(
                        f"{name:11} {precision:5} b={batch} {sms:3} SMs {ms:8.4f} ms "
                        f"±{spread:4.1f}% {gbps:6.0f} GB/s "
                        f"({100 * gbps / stream_read[sms]:.0f} %) host {host:.1f} us"
                    )
            del model, buffers
            torch.cuda.empty_cache()
    if arguments.output:
        command = "python plugin/bench/decode_bench.py --output docs/measurements/decode.json"
        document = header("decode", command) | {"rows": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
