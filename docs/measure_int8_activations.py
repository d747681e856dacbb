# SPDX-License-Identifier: MIT
"""What int8 activations cost a model on a text: the kernels' arithmetic in the torch reference.

`python docs/measure_int8_activations.py FOLDER` reads the bundles fp16 and int8 of a folder of
`make quality`. The inputs of in_proj and out_proj become what their codes and scales stand
for; the product with dequantised weights is then that of the codes, but for float32's rounding.
Weights are int8 in all versions but the first. Beside the scales that the kernels use, groups of
128, stand one scale a token, and that after a Hadamard transform, which spreads an outlier over all
inputs (Quamba, arXiv:2410.13229, does it to what out_proj reads).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline import __version__
from pipeline.board import read_board
from pipeline.evaluation import Tokenwise, measured, read_tokenwise
from pipeline.int8_activations import GROUP, PRODUCTS, round_activations, widen_activations
from pipeline.manifest import now, read_bundle
from pipeline.quantize import Floats
from pipeline.resampling import Draws
from pipeline.storage import write_atomically
from pipeline.tokenizer import Tokenizer
from pipeline.torch_session import open_torch_session

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "models" / "demo" / "heldout.txt"
OUTPUT = ROOT / "docs" / "measurements" / "int8_activations.json"

Rounding = Callable[[Floats], Floats]


def by_groups(x: Floats) -> Floats:
    """Rows (tokens, columns) as the kernels round them."""
    return widen_activations(*round_activations(x, GROUP))


def by_tokens(x: Floats) -> Floats:
    """The same with one scale a row."""
    return widen_activations(*round_activations(x, x.shape[1]))


def by_tokens_rotated(x: Floats) -> Floats:
    """One scale a row, of the row's Hadamard transform; rotated back, as the weights would be."""
    return hadamard(by_tokens(hadamard(x)))


def hadamard(x: Floats) -> Floats:
    """Orthonormal, by blocks of the largest power of two that divides a row; its own inverse."""
    size = x.shape[1] & -x.shape[1]
    values, step = x.reshape(-1, size).copy(), 1
    while step < size:
        pairs = values.reshape(len(values), -1, 2, step)
        values = np.stack(
            [pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2
        )
        values = values.reshape(-1, size)
        step *= 2
    return (values / np.sqrt(np.float32(size))).reshape(x.shape)


class Version(NamedTuple):
    """One row: the bundle's name, and how the inputs of which products are rounded."""

    name: str
    bundle: str
    rounding: Rounding | None = None
    products: tuple[str, ...] = PRODUCTS


VERSIONS = (
    Version("fp16 weights", "fp16"),
    Version("int8 weights", "int8"),
    Version("groups of 128", "int8", by_groups),
    Version("one scale a token", "int8", by_tokens),
    Version("one scale a token, in_proj alone", "int8", by_tokens, PRODUCTS[:1]),
    Version("one scale a token, out_proj alone", "int8", by_tokens, PRODUCTS[1:]),
    Version("one scale a token after Hadamard", "int8", by_tokens_rotated),
)


class Spread:
    """How far the largest inputs of a product stand out, and what rounding them costs."""

    def __init__(self) -> None:
        self._peaks: list[Floats] = []
        self._errors: dict[str, float] = dict.fromkeys(("groups", "tokens", "rotated"), 0.0)
        self._square = 0.0

    def add(self, x: Floats) -> None:
        """Takes in some rows."""
        rms = np.sqrt((x**2).mean(axis=1))
        self._peaks.append(np.abs(x).max(axis=1)[rms > 0] / rms[rms > 0])
        self._square += float((x.astype(np.float64) ** 2).sum())
        for name, rounding in zip(
            self._errors, (by_groups, by_tokens, by_tokens_rotated), strict=True
        ):
            self._errors[name] += float(((rounding(x) - x).astype(np.float64) ** 2).sum())

    def row(self) -> dict[str, float]:
        """Largest magnitude of a token over its root mean square; error over signal, percent."""
        peaks = np.concatenate(self._peaks)
        return {
            "peak_median": round(float(np.median(peaks)), 1),
            "peak_99_percent": round(float(np.percentile(peaks, 99)), 1),
            "peak_largest": round(float(peaks.max()), 1),
            **{
                f"error_{name}_pct": round(100 * float(np.sqrt(error / self._square)), 3)
                for name, error in self._errors.items()
            },
        }


def _rounded(rounding: Rounding, _name: str, x: Floats) -> Floats:
    return rounding(x)


def _watched(spreads: dict[str, Spread], name: str, x: Floats) -> Floats:
    spreads[name].add(x)
    return x


def measure(folder: Path, ids: npt.NDArray[np.int64]) -> tuple[list[Any], dict[str, Any]]:
    """Rows of all versions, and how far each product's inputs spread."""
    count = ids.shape[1] - 1
    draws = Draws(count)
    vocab_size = read_bundle(folder / VERSIONS[0].bundle).architecture.vocab_size
    expected = np.empty((count, vocab_size), np.float32)
    spreads = {name: Spread() for name in PRODUCTS}
    baseline: Tokenwise | None = None
    rows = []
    for version in VERSIONS:
        bundle = folder / version.bundle
        session = open_torch_session(bundle, read_bundle(bundle).architecture)
        if version.rounding is not None:
            session.replace_inputs(partial(_rounded, version.rounding), version.products)
        elif baseline is None:
            session.replace_inputs(partial(_watched, spreads))
        found = read_tokenwise(session, ids, expected, is_reference=baseline is None)
        row: dict[str, Any] = {
            "name": version.name,
            "perplexity": round(float(np.exp(found.losses.mean())), 4),
        }
        if baseline is None:
            baseline = found
        else:
            assert found.divergences is not None
            assert found.agreements is not None
            change = measured(
                found.losses - baseline.losses, draws, lambda mean: 100 * np.expm1(mean)
            )
            row |= {
                "perplexity_change_percent": {
                    key: None if value is None else round(value, 3)
                    for key, value in change.model_dump().items()
                },
                "kl_nats": float(f"{found.divergences.mean():.3g}"),
                "top1_percent": round(100 * float(found.agreements.mean()), 2),
            }
        rows.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    return rows, {name: spread.row() for name, spread in spreads.items()}


def main() -> int:
    """Measures the models in some folders and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = []
    for folder in arguments.folders:
        manifest = read_bundle(folder / "fp16")
        token_ids = Tokenizer(folder / "fp16").encode(arguments.text.read_text())
        ids = np.array([token_ids[: arguments.max_tokens]], dtype=np.int64)
        rows, inputs = measure(folder, ids)
        models.append(
            {
                "model": manifest.source["name"],
                "parameters": manifest.architecture.parameters,
                "tokens": ids.shape[1],
                "inputs": inputs,
                "rows": rows,
            }
        )
    document = {
        "subject": "int8_activations",
        "date": now()[:10],
        "machine": f"{arguments.threads} thread of an {read_board().cpu or platform.processor()}",
        "gpu": None,
        "versions": {"mamba-orin": __version__, "torch": torch.__version__},
        "command": " ".join(["python docs/measure_int8_activations.py", *sys.argv[1:]]),
        "rows": models,
    }
    write_atomically(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
