# SPDX-License-Identifier: MIT
"""Sizes of the published shapes in every precision, from the plan of their weight files.

`python docs/measure_sizes.py` writes docs/measurements/sizes.json. Nothing is converted: the plan
that `convert` writes a file by says how long it will be, to the byte.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.architecture import PUBLISHED
from pipeline.manifest import now
from pipeline.quantize import QuantisationChoice, choose_packings
from pipeline.roofline import state_bytes
from pipeline.storage import write_atomically
from pipeline.stored_tensors import plan_tensors
from pipeline.weights import plan_places

OUTPUT = Path(__file__).parent / "measurements" / "sizes.json"

# Matrices in 16 bits, in 8 with one scale a row, in 4 with one a group of 128, embedding and head
# included, all else in 16 bits: what these shapes come to in the formats that others ship.
OTHERS_MB = {
    "mamba-130m": (258.3, 130.4, 67.9),
    "mamba-370m": (743.0, 374.6, 195.0),
    "mamba-790m": (1586.4, 797.8, 414.1),
    "mamba-1.4b": (2744.4, 1378.3, 714.4),
    "mamba-2.8b": (5536.7, 2778.5, 1438.9),
}
# Name of a row, precision and what else is chosen, column of the table above.
VERSIONS: tuple[tuple[str, Any, QuantisationChoice, int], ...] = (
    ("fp16", "fp16", QuantisationChoice(), 0),
    ("int8", "int8", QuantisationChoice(), 1),
    ("int4", "int4", QuantisationChoice(), 2),
    ("int4, groups of 128", "int4", QuantisationChoice(group_size=128), 2),
    ("int4, embedding too", "int4", QuantisationChoice("int4", "int4"), 2),
)


def row(model: str, name: str, precision: Any, choice: QuantisationChoice, column: int) -> Any:
    """Sizes of one version of one model."""
    architecture = PUBLISHED[model]
    packed = choose_packings(architecture, precision, choice)
    plan = plan_tensors(architecture, precision, packed)
    places = plan_places(plan)
    file_bytes = max(place.offset + place.length for place in places.values())
    in_memory = sum(place.length for place in places.values())
    matrices = [n for n, weight in architecture.weights().items() if weight.kind == "matrix"]
    scales = [n.removesuffix("weight") + "scales" for n in packed]
    return {
        "model": model,
        "version": name,
        "precision": precision,
        "parameters": architecture.parameters,
        "file_bytes": file_bytes,
        "matrix_bytes": sum(places[n].length for n in [*matrices, *scales]),
        "vector_bytes": in_memory - sum(places[n].length for n in [*matrices, *scales]),
        "state_bytes": state_bytes(architecture),
        "device_bytes": in_memory + state_bytes(architecture),
        "others_mb": OTHERS_MB[model][column],
    }


def main() -> None:
    """Computes and writes them all."""
    document = {
        "subject": "sizes",
        "date": now()[:10],
        "machine": "computed from the plan of the weight file; no machine has a part in it",
        "gpu": None,
        "versions": {"mamba-orin": __version__},
        "command": "python docs/measure_sizes.py",
        "rows": [row(model, *version) for model in OTHERS_MB for version in VERSIONS],
    }
    write_atomically(OUTPUT, (json.dumps(document, indent=1) + "\n").encode())
    sys.stdout.write(f"{OUTPUT}\n")


if __name__ == "__main__":
    main()
