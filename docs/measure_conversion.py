# SPDX-License-Identifier: MIT
"""Measures what a conversion needs: time, memory of its own, size of the result.

`python docs/measure_conversion.py --output docs/measurements/conversion.json MODEL…` converts
each model to int4 (or --precision) in a process of its own and reads from the kernel how much
memory it took. Anonymous memory is what must be there; mapped files (VmHWM counts them too) are
page cache, which the kernel takes back when it needs to.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.board import read_board
from pipeline.manifest import now, read_bundle
from pipeline.settings import default_threads
from pipeline.storage import write_atomically
from pipeline.weights import WEIGHT_FILE

_POLL_S = 0.02


def measure(model: str, options: list[str], folder: Path) -> dict[str, Any]:
    """Converts one model.

    Args:
        model: As `convert` takes it.
        options: Further words for `convert`.
        folder: Where the bundle may be for a while.

    Raises:
        SystemExit: The conversion failed.
    """
    bundle = folder / "bundle"
    words = ["convert", model, "--output", str(bundle), *options]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *words])
    status = Path(f"/proc/{process.pid}/status")
    peaks = {"RssAnon": 0, "VmHWM": 0}
    while process.poll() is None:
        for line in _lines(status):
            key, _, value = line.partition(":")
            if key in peaks:
                peaks[key] = max(peaks[key], int(value.split()[0]))
        time.sleep(_POLL_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.monotonic() - began
    manifest = read_bundle(bundle)
    quantisation = manifest.quantisation
    row = {
        "model": model,
        "parameters": manifest.architecture.parameters,
        "precision": manifest.precision,
        "method": quantisation.method if quantisation else None,
        "calibration_tokens": (
            quantisation.calibration.tokens if quantisation and quantisation.calibration else 0
        ),
        "seconds": round(seconds, 1),
        "peak_anonymous_mb": round(peaks["RssAnon"] * 1024 / 1e6, 1),
        "peak_resident_mb": round(peaks["VmHWM"] * 1024 / 1e6, 1),
        "weight_bytes": manifest.files[WEIGHT_FILE].bytes,
    }
    shutil.rmtree(bundle)
    return row


def _lines(status: Path) -> list[str]:
    try:
        return status.read_text().splitlines()
    except OSError:  # it has just ended
        return []


def main() -> None:
    """Measures each model; earlier rows of the same model and method are replaced."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="as convert takes it")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the record")
    parser.add_argument("--convert", default="--precision int4", help="options of convert")
    parser.add_argument("--folder", type=Path, help="where there is room (default: /tmp)")
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    board = read_board()
    for model in arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            row = measure(model, shlex.split(arguments.convert), Path(folder))
        row["command"] = shlex.join(["python", *sys.argv])
        row["load_average"] = round(os.getloadavg()[0], 1)
        key = ("model", "precision", "method")
        rows = [one for one in rows if any(one[k] != row[k] for k in key)] + [row]
        document = {
            "subject": "conversion",
            "date": now()[:10],
            "machine": f"{default_threads()} threads of an {board.cpu or board.name}",
            "gpu": None,
            "versions": {"mamba-orin": __version__},
            "command": shlex.join(["python", *sys.argv]),
            "rows": rows,
        }
        write_atomically(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
        sys.stdout.write(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
