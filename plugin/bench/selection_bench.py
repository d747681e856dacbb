# SPDX-License-Identifier: MIT
"""Times s6_selection beside the two cuBLAS products that it replaces, as torch runs them.

Shapes of the models that it takes, on the whole GPU and on 8 multiprocessors. Needs torch,
cuda-python, libs6.so and a GPU.

    python plugin/bench/selection_bench.py --output docs/measurements/selection.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_clock import header, time_us, whole_and_proxy

from pipeline.s6_library import call
from pipeline.s6_selection import STATE, SelectionProblem

#: Channels and rank of the shipped model and of mamba-130m.
SHAPES = ((512, 16), (1536, 48))
LENGTHS = (64, 512, 2048)
# Blocks of a model, so that weights come from memory as they do there.
BLOCKS = 24


class Block(NamedTuple):
    """Matrices of one block of a model."""

    x_proj: torch.Tensor
    dt_proj: torch.Tensor


def compare(blocks: list[Block], tokens: int, stream: torch.cuda.Stream) -> dict[str, float]:
    """Microseconds a block of both, and their spreads."""
    d, rank = blocks[0].dt_proj.shape
    u = torch.randn(tokens, d, device="cuda").half()
    delta, B, C = torch.empty_like(u), *u.new_empty(2, tokens, STATE)
    mixed = u.new_empty(tokens, rank + 2 * STATE)

    def fused(block: int) -> None:
        problem = SelectionProblem(
            tokens=tokens,
            d=d,
            r=rank,
            n=STATE,
            u=u.data_ptr(),
            x_proj=blocks[block].x_proj.data_ptr(),
            dt_proj=blocks[block].dt_proj.data_ptr(),
            delta=delta.data_ptr(),
            B=B.data_ptr(),
            C=C.data_ptr(),
        )
        call("s6_selection", problem, torch.cuda.current_stream().cuda_stream)

    def products(block: int) -> None:
        torch.mm(u, blocks[block].x_proj.T, out=mixed)
        torch.mm(mixed[:, :rank], blocks[block].dt_proj.T, out=delta)

    ours, spread = time_us(fused, stream, len(blocks))
    theirs, their_spread = time_us(products, stream, len(blocks))
    return {
        "selection_us": round(ours, 2),
        "spread_pct": round(spread, 1),
        "products_us": round(theirs, 2),
        "products_spread_pct": round(their_spread, 1),
    }


def random_block(d: int, rank: int) -> Block:
    """A block whose products are of order 1."""
    x_proj = torch.randn(rank + 2 * STATE, d, device="cuda") * d**-0.5
    return Block(x_proj.half(), (torch.randn(d, rank, device="cuda") * rank**-0.5).half())


def main() -> None:
    """Prints and writes rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    streams = whole_and_proxy()
    rows = []
    for d, rank in SHAPES:
        blocks = [random_block(d, rank) for _ in range(BLOCKS)]
        for tokens in LENGTHS:
            for sms, (stream, _) in streams.items():
                row = {"d": d, "r": rank, "tokens": tokens, "sms": sms}
                rows.append(row | compare(blocks, tokens, stream))
                sys.stderr.write(f"{rows[-1]}\n")
    if arguments.output:
        command = "python plugin/bench/selection_bench.py --output docs/measurements/selection.json"
        document = header("selection", command) | {"rows": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
