# SPDX-License-Identifier: MIT
"""Runs the GPU tests and compute-sanitizer, and keeps what they found as data.

The racecheck runs on the library that the preset `sanitize` builds: there warps wait for each other
by barriers that racecheck follows (docs/lab_note_scan.md).

python plugin/bench/scan_checks.py --sanitize-library plugin/build/sanitize/libs6.so \
    --output docs/measurements/scan_checks.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gpu_clock import header  # noqa: E402 - found beside this file

PYTEST = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
#: Small problems of every kernel: a sanitizer slows each access a hundredfold.
SANITIZED = (
    "base or variant or sms or ragged or d40 or l17 or step or n17 or fp32-n40 or split_sequence_is"
)


def run_tests() -> list[dict[str, object]]:
    """One row per test, with the errors it recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        subprocess.run(
            [
                *PYTEST,
                "-W",
                "default",
                "-o",
                "junit_family=xunit1",
                f"--junitxml={report}",
                "-m",
                "gpu",
                "tests/plugin",
            ],
            check=False,
            cwd=ROOT,
        )
        rows = []
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            skipped = case.find("skipped")
            failed = case.find("failure") is not None or case.find("error") is not None
            rows.append(
                {
                    "check": f"{case.get('classname')}::{case.get('name')}",
                    "result": "failed"
                    if failed
                    else "skipped"
                    if skipped is not None
                    else "passed",
                    **({"reason": skipped.get("message")} if skipped is not None else {}),
                    **{p.get("name"): float(p.get("value")) for p in case.iter("property")},
                }
            )
    return rows


def run_sanitizer(tool: str, library: Path | None) -> dict[str, object]:
    """compute-sanitizer over small problems of every kernel of a library, or of the usual one."""
    command = [
        "compute-sanitizer", "--tool", tool, "--kernel-name", "kns=s6", "--error-exitcode", "9",
        *PYTEST, "-W", "default", "-k", SANITIZED,
        "tests/plugin/test_scan_gpu.py", "tests/plugin/test_conv_gpu.py",
    ]  # fmt: skip
    chosen = {} if library is None else {"MAMBA_ORIN_S6_LIBRARY": str(library.resolve())}
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **chosen},
    )
    output = done.stdout + done.stderr
    summary = re.findall(r"=+ (ERROR SUMMARY.*|RACECHECK SUMMARY.*)", output)
    tests = re.findall(r"\d+ passed.*", output)
    failed = done.returncode != 0
    found = re.findall(r"=+ (?:Error|Warning): .*", output)
    return {
        "check": f"compute-sanitizer {tool}",
        "result": "failed" if failed else "passed",
        "summary": summary[-1] if summary else output[-400:],
        "tests": tests[-1] if tests else "",
        **({"found": sorted(set(found))[:20]} if failed else {}),
    }


def main() -> int:
    """Runs everything and writes the file; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sanitize-library", type=Path, required=True, help="for the racecheck")
    arguments = parser.parse_args()
    rows = run_tests()
    runs = {"memcheck": None, "racecheck": arguments.sanitize_library}
    with ThreadPoolExecutor() as pool:
        rows += pool.map(run_sanitizer, runs, runs.values())
    document = header(
        "scan_checks",
        "python plugin/bench/scan_checks.py --sanitize-library plugin/build/sanitize/libs6.so "
        "--output docs/measurements/scan_checks.json",
    )
    document["rows"] = rows
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    for line in rows[-2:]:
        sys.stdout.write(f"{line}\n")
    failed = [line for line in rows if line["result"] == "failed"]
    sys.stdout.write(f"{len(rows)} checks, {len(failed)} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
