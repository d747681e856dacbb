# SPDX-License-Identifier: MIT
"""Times a prefill of 2048 tokens on the whole GPU, with the share of each kind of kernel.

Published shapes with random weights, batch 1, the state entered and left included, as a replayed
CUDA graph. Shares are by events inside a graph of its own, each of which adds about two
microseconds. Also times both ways of adding a block's output to the residual. Needs torch, the
extra `cuda`, cuBLAS, libs6.so and a GPU. Writes its file under docs/measurements itself. "w8a8" are
int8 weights with int8 activations in the two large products of a block.

    python plugin/bench/prefill_bench.py --output docs/measurements/prefill.json
    python plugin/bench/prefill_bench.py --precisions fp16 int8 w8a8 \
        --output docs/measurements/prefill_w8a8.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_clock import header

from pipeline.architecture import PUBLISHED, MambaArchitecture
from pipeline.cublas import Cublas, Product
from pipeline.cuda_driver import Event, Gpu, Stream, open_gpu
from pipeline.cuda_prefill import Prefill
from pipeline.cuda_stretch_state import state_sizes
from pipeline.cuda_weights import DeviceWeights, describe, plan_image
from pipeline.manifest import Activations
from pipeline.quantize import QuantisationChoice, choose_packings
from pipeline.s6_library import call
from pipeline.s6_prefill import AddRmsNormProblem
from pipeline.stored_tensors import plan_tensors
from pipeline.weights import plan_places

MODELS = ("mamba-130m", "mamba-370m", "mamba-1.4b", "mamba-2.8b")
PRECISIONS = ("fp16", "int8", "int4")
CHOICES = (*PRECISIONS, "w8a8")
TOKENS = 2048
BLOCK_MATRICES = ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight")
KINDS = {
    **dict.fromkeys(("in_proj", "x_proj", "dt_proj", "out_proj", "head"), "products"),
    "scan": "scan",
    "convolution": "convolution",
}


def view(pointer: int, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor on memory that is not torch's."""
    interface = {"data": (pointer, False), "typestr": dtype, "shape": shape, "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")


def random_weights(gpu: Gpu, architecture: MambaArchitecture, precision: Any) -> DeviceWeights:
    """Weights as they are at the start of training, made on the GPU."""
    packed = choose_packings(architecture, precision, QuantisationChoice())
    places = plan_places(plan_tensors(architecture, precision, packed))
    plan = plan_image(places, architecture)
    memory = gpu.allocate(plan.size, "the weights")
    torch.manual_seed(0)
    for name, place in places.items():
        values = view(memory.pointer + plan.offsets[name], place.dtype.str, place.shape)
        if place.dtype == np.int32:
            values.random_(-(2**31), 2**31 - 1)
        elif name.endswith(".scales"):
            bits = packed[name.replace("scales", "weight")].bits
            columns = architecture.weights()[name.replace("scales", "weight")].shape[1]
            values.fill_(columns**-0.5 / 2**bits)
        elif place.dtype == np.float16:
            values.normal_(0, 1.0 if "embedding" in name else 0.5 * place.shape[-1] ** -0.5)
        elif name.endswith(".A"):
            steps = torch.arange(1, architecture.d_state + 1, device="cuda", dtype=torch.float32)
            values.copy_(-steps[:, None].expand_as(values))
        elif name.endswith("dt_proj.bias"):
            values.uniform_(-6.9, -2.2)
        elif name.endswith("conv.weight"):
            values.normal_(0, 0.5)
        else:
            values.fill_(0.0 if name.endswith("conv.bias") else 1.0)
    torch.cuda.synchronize()
    return describe(memory, plan, places, architecture)


def milliseconds(gpu: Gpu, stream: Stream, work: Any, samples: int) -> tuple[float, float]:
    """Median of some runs, and (max - min) / median in percent."""
    begin, end = gpu.new_event(timed=True), gpu.new_event(timed=True)
    found = []
    for _ in range(samples):
        stream.record(begin)
        work()
        stream.record(end)
        end.wait()
        found.append(end.milliseconds_since(begin))
    middle = statistics.median(found)
    return middle, 100 * (max(found) - min(found)) / middle


def phases(gpu: Gpu, stream: Stream, prefill: Prefill) -> dict[str, float]:
    """Milliseconds of each phase, by its name, of one run."""
    events: list[tuple[str, Event]] = []

    def mark(name: str) -> None:
        events.append((name, gpu.new_event(timed=True)))
        stream.record_in_graph(events[-1][1])

    graph = stream.capture(lambda: prefill.enqueue(1, TOKENS, mark))
    for _ in range(3):
        stream.launch(graph)
    stream.finish()
    total: defaultdict[str, float] = defaultdict(float)
    for (name, begin), (_, end) in itertools.pairwise(events):
        total[name] += end.milliseconds_since(begin)
    return dict(total)


def residual_ms(gpu: Gpu, stream: Stream, weights: DeviceWeights, *, folded: bool) -> float:
    """out_proj and the next block's norm: added by the product, or by the norm."""
    cublas = Cublas(gpu, stream)
    matrix = weights.matrices["out_proj.weight"]
    m, d, layers = matrix.rows, matrix.columns, 8
    x, y = (gpu.allocate(4 * m * TOKENS, "a residual") for _ in range(2))
    inner = gpu.allocate(2 * d * TOKENS, "activations")
    delta = gpu.allocate(2 * m * TOKENS, "activations")
    for memory in (x, y, inner, delta):
        stream.clear(memory.pointer, memory.size)
    norm = AddRmsNormProblem(
        rows=TOKENS,
        m=m,
        eps=1e-5,
        x=x.pointer,
        delta=None if folded else delta.pointer,
        weight=weights.vectors["final_norm"].data,
        sum=None if folded else x.pointer,
        y=y.pointer,
    )

    def enqueue() -> None:
        for layer in range(layers):
            product = Product(
                weight=matrix.data + layer * matrix.layer_bytes,
                rows=m,
                columns=d,
                x=inner.pointer,
                x_row=d,
                tokens=TOKENS,
                y=x.pointer if folded else delta.pointer,
                y_row=m,
                wide=folded,
                add=folded,
            )
            cublas.enqueue(product)
            call("s6_add_rms_norm", norm, stream.handle)

    enqueue()
    graph = stream.capture(enqueue)
    return milliseconds(gpu, stream, lambda: stream.launch(graph), 9)[0] / layers


def time_prefill(
    gpu: Gpu, stream: Stream, prefill: Prefill, architecture: MambaArchitecture, samples: int
) -> tuple[float, float]:
    """Milliseconds from the beginning of a text to its state and last logits, and the spread."""
    ids = np.random.default_rng(0).integers(0, architecture.vocab_size, TOKENS, dtype=np.int32)
    stream.write(prefill.token_ids, ids)
    sizes = state_sizes(architecture, 1)
    conv, ssm = gpu.allocate(sizes.conv, "a state"), gpu.allocate(sizes.ssm, "a state")

    def run() -> None:
        prefill.state.enter(1, None, None)
        prefill.read(1, TOKENS)
        prefill.state.leave(1, conv.pointer, ssm.pointer)

    for _ in range(4):
        run()
    found = milliseconds(gpu, stream, run, samples)
    logits = view(prefill.logits, "<f4", (architecture.vocab_size,))
    if not bool(torch.isfinite(logits).all()):
        raise SystemExit("the logits are not finite")
    return found


def measure(
    gpu: Gpu, stream: Stream, name: str, precision: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One row of the file."""
    architecture = PUBLISHED[name]
    activations: Activations | None = "int8" if precision == "w8a8" else None
    torch.cuda.empty_cache()
    free_before, _ = gpu.free_bytes()
    weights = random_weights(gpu, architecture, "int8" if precision == "w8a8" else precision)
    torch.cuda.empty_cache()
    prefill = Prefill(gpu, stream, architecture, weights, TOKENS, activations)
    ms, spread = time_prefill(gpu, stream, prefill, architecture, arguments.samples)
    free_after, _ = gpu.free_bytes()
    in_phases = phases(gpu, stream, prefill)
    kinds: defaultdict[str, float] = defaultdict(float)
    for phase, of_phase in in_phases.items():
        kinds[KINDS.get(phase, "rest")] += of_phase
    blocks = sum(weights.matrices[key].half_bytes // 2 for key in BLOCK_MATRICES)
    flops = 2 * blocks * architecture.n_layer * TOKENS
    row = {
        "model": name,
        "precision": precision,
        "tokens": TOKENS,
        "batch": 1,
        "sms": gpu.facts.multiprocessors,
        "prefill_ms": round(ms, 3),
        "spread_pct": round(spread, 1),
        "product_tflops": round(1e-9 * flops / kinds["products"], 1),
        **{
            f"{kind}_pct": round(100 * kinds[kind] / sum(kinds.values()), 1)
            for kind in ("products", "scan", "convolution", "rest")
        },
        "phase_us_per_layer": {
            phase: round(1e3 * of_phase / architecture.n_layer, 2)
            for phase, of_phase in in_phases.items()
        },
        "weight_mb": round(weights.memory.size / 1e6, 1),
        "activation_mb": round(prefill.activation_bytes / 1e6, 1),
        "unpacked_mb": round(prefill.weights.scratch_bytes / 1e6, 1),
        "cublas_mb": round(prefill.cublas.workspace_bytes / 1e6, 1),
        "peak_device_mb": round((free_before - free_after) / 1e6, 1),
    }
    if precision == "fp16":
        for folded in (True, False):
            us = 1e3 * residual_ms(gpu, stream, weights, folded=folded)
            row[f"residual_{'folded' if folded else 'separate'}_us"] = round(us, 2)
    return row


def main() -> int:
    """Measures everything, prints a line each, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=CHOICES, default=PRECISIONS)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.zeros(1, device="cuda")  # torch and the session share the primary context
    gpu = open_gpu()
    stream = gpu.new_stream()
    rows = []
    for name in arguments.models:
        for precision in arguments.precisions:
            rows.append(measure(gpu, stream, name, precision, arguments))
            sys.stdout.write(
                "{model:11} {precision:5} {prefill_ms:8.3f} ms ±{spread_pct:.1f}%  products "
                "{products_pct}% ({product_tflops} TFLOP/s) scan {scan_pct}% convolution "
                "{convolution_pct}% rest {rest_pct}%  peak {peak_device_mb} MB\n".format(**rows[-1])
            )
            sys.stdout.write(f"            {rows[-1]['phase_us_per_layer']}\n")
            sys.stdout.flush()
    if arguments.output:
        name, chosen = arguments.output.stem, ""
        if arguments.precisions != PRECISIONS:
            chosen = f" --precisions {' '.join(arguments.precisions)}"
        document = header(
            name,
            f"python plugin/bench/prefill_bench.py{chosen} --output docs/measurements/{name}.json",
        )
        document["versions"]["cublas"] = Cublas(gpu, stream).version
        document["rows"] = rows
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
