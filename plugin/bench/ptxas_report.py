# SPDX-License-Identifier: MIT
"""Registers, shared memory and spills of every kernel, as ptxas states them, in one JSON file.

Needs nvcc and no GPU. Exits with 1 if any kernel spills, or if they do not link to one library.

    python plugin/bench/ptxas_report.py --output docs/measurements/ptxas.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1]
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def compile_report(source: Path, architecture: str, folder: Path) -> str:
    """Returns what ptxas says about one source file; its object is left in the folder."""
    command = [
        "nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas=-v", "-Werror=all-warnings",
        "-Xcompiler=-fPIC", *(f"-I{PLUGIN / name}" for name in ("include", "api", "kernels")),
        "-c", str(source), "-o", str(folder / f"{source.stem}.o"),
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def link_all(architecture: str, folder: Path) -> None:
    """Links the objects in a folder to a library in which no symbol is missing or twice there."""
    objects = sorted(str(path) for path in folder.glob("*.o"))
    command = ["nvcc", f"-arch={architecture}", "-shared", "-Xlinker", "-z,defs"]
    subprocess.run([*command, *objects, "-o", str(folder / "kernels.so")], check=True)


def readable(symbols: list[str]) -> list[str]:
    """Demangled names without namespace and argument list."""
    text = subprocess.run(
        ["c++filt", *symbols], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = [re.sub(r"^void |s6::|\(anonymous namespace\)::", "", line) for line in text]
    return [re.sub(r"\([^()]*\)$", "", name) for name in names]


def rows_of(report: str, source: str) -> list[dict[str, object]]:
    """One row per kernel of a ptxas report."""
    symbols, rows = [], []
    for line in report.splitlines():
        if match := KERNEL.search(line):
            symbols.append(match[1])
            rows.append({"kernel": "", "source": source, "architecture": match[2]})
        elif match := FRAME.search(line):
            rows[-1] |= {"spill_store_bytes": int(match[2]), "spill_load_bytes": int(match[3])}
        elif match := USED.search(line):
            rows[-1] |= {
                "registers": int(match[1]),
                "static_shared_bytes": int(match[2] or 0),
            }
    for row, name in zip(rows, readable(symbols) if symbols else [], strict=True):
        row["kernel"] = name
    return rows


def main() -> int:
    """Compiles every kernel source and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="sm_87")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        parser.error("nvcc is not on PATH")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        sources = [path for name in ("api", "kernels") for path in (PLUGIN / name).glob("*.c*")]
        for source in sorted(path for path in sources if path.suffix in {".cpp", ".cu"}):
            report = compile_report(source, arguments.architecture, Path(folder))
            rows += rows_of(report, source.name)
        link_all(arguments.architecture, Path(folder))
    version = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True)
    document = {
        "subject": "ptxas",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": "none: a compiler report",
        "gpu": arguments.architecture,
        "versions": {"nvcc": re.search(r"release ([\d.]+)", version.stdout)[1]},
        "command": "python plugin/bench/ptxas_report.py --output docs/measurements/ptxas.json",
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    spilling = [row for row in rows if row["spill_store_bytes"] or row["spill_load_bytes"]]
    sys.stdout.write(f"{len(rows)} kernels, {len(spilling)} spill\n")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
