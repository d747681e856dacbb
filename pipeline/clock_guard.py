# SPDX-License-Identifier: MIT
"""Puts power mode and clocks back, also when the benchmark that changed them was killed.

    python -m pipeline.clock_guard JOURNAL

waits until its standard input ends, which it does when its parent is gone for whatever reason,
and then undoes what the journal says, if it is still there. Uses the standard library alone, so
that waiting costs a small board little memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_TIMEOUT_S = 60


def restore(journal: Path) -> list[str]:
    """Undoes what a journal says and removes it.

    Args:
        journal: Written by `power_control` before it changed anything.

    Returns:
        What could not be put back; empty when all is as it was. The journal stays then.
    """
    try:
        noted: dict[str, Any] = json.loads(journal.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"{journal} cannot be read: {error}"]
    problems = []
    if noted.get("mode_id") is not None:
        # "no" declines the question whether to reboot; the mode that was active needs none.
        run([noted["nvpmodel"], "-m", str(noted["mode_id"])], answer="no\n")
        if active_mode(noted["nvpmodel"]) != noted["mode_name"]:
            problems.append(f"power mode {noted['mode_name']}: nvpmodel did not take it back")
    if noted.get("clocks_file"):
        code, words = run([noted["jetson_clocks"], "--restore", noted["clocks_file"]])
        if code:
            problems.append(f"clocks: {words}")
    elif noted.get("relock"):
        # Setting the mode has freed clocks that were locked before.
        code, words = run([noted["jetson_clocks"]])
        if code:
            problems.append(f"clocks: {words}")
    if not problems:
        journal.unlink(missing_ok=True)
        if noted.get("clocks_file"):
            Path(noted["clocks_file"]).unlink(missing_ok=True)
    return problems


def active_mode(nvpmodel: str) -> str | None:
    """Name of the active power mode; None when nvpmodel does not say."""
    _, words = run([nvpmodel, "-q"])
    for line in words.splitlines():
        if line.startswith("NV Power Mode:"):
            return line.partition(":")[2].strip()
    return None


def run(command: list[str], answer: str = "") -> tuple[int, str]:
    """Exit code and output of one of NVIDIA's tools."""
    try:
        done = subprocess.run(
            command, input=answer, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def main() -> int:
    """Entry point."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1):
            pass
    for problem in restore(Path(sys.argv[1])):
        sys.stderr.write(f"mamba-orin: not put back: {problem}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
