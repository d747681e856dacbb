# SPDX-License-Identifier: MIT
"""Provisions thirty simulated boards in one run and writes what it took.

python -m tests.boards.measure_fleet --boards 30 --output docs/measurements/provisioning.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.board import read_board
from pipeline.storage import write_atomically
from tests.boards.engine import started_engine
from tests.boards.fleet import NETWORK, Fleet, Run
from tests.boards.image import work_directory
from tests.boards.simulated import Board

# What cannot be provisioned, each for another reason.
BAD = (
    Board("bad-broken-release", l4t="36.4.7"),
    Board("bad-foreign-disk", disk="foreign"),
    Board("bad-connection", drops_connection=True),
)
# Of every ten good boards.
KINDS: tuple[dict[str, Any], ...] = (
    {"sku": "0005"},
    {"sku": "0003"},
    {"sku": "0005", "l4t": "39.2.1"},
    {"sku": "0005", "disk": "ours"},
    {"sku": "0004"},
    {"sku": "0003", "l4t": "39.2.0"},
    {"sku": "0005", "disk": "root"},
    {"sku": "0004", "l4t": "39.2.1"},
    {"sku": "0003", "l4t": "36.4.3"},
    {"sku": "0005", "l4t": "36.5.2"},
)


def boards(count: int) -> list[Board]:
    """Good boards of all kinds, and the bad ones among them."""
    good = [
        Board(f"board-{number:02d}", **KINDS[number % len(KINDS)])
        for number in range(1, count - len(BAD) + 1)
    ]
    return [*good[:5], *BAD, *good[5:]]


def row(phase: str, run: Run, forks: int) -> dict[str, Any]:
    """What one run took and did."""
    bad = {
        name: run.reason(name) or board["unreachable"]["reason"]
        for name, board in run.boards.items()
        if board["failed"] or board["unreachable"]
    }
    changed = [len(run.changed(name)) for name in run.boards if name not in bad]
    return {
        "phase": phase,
        "boards": len(run.boards),
        "forks": forks,
        "seconds": round(run.seconds, 1),
        "controller_peak_mib": run.peak_mib,
        "boards_done": len(changed),
        "boards_changed": sum(count > 0 for count in changed),
        "changed_tasks_median": statistics.median(changed),
        "boards_not_done": bad,
    }


def check(run: Run, fleet: Fleet) -> None:
    """The bad boards did not stop the others, and the end of the output names each with its reason.

    Raises:
        SystemExit: That is not so; the message says what was found.
    """
    table = run.output[run.output.index("BOARDS ***") :]
    for name in fleet.boards:
        failed = bool(run.reason(name) or run.boards[name]["unreachable"])
        if failed != name.startswith("bad-"):
            raise SystemExit(f"{name}: {run.reason(name) or 'did not fail'}")
        if failed and f"\n{name}: " not in table:
            raise SystemExit(f"the summary does not say why {name} failed")


def check_again(first: Run, second: Run) -> None:
    """Nothing changed on the boards that were done.

    Raises:
        SystemExit: Something did; the message says what.
    """
    for name, board in first.boards.items():
        is_done = not board["failed"] and not board["unreachable"]
        if is_done and (second.changed(name) or second.reason(name)):
            raise SystemExit(f"{name}, again: {second.changed(name)} {second.reason(name)}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=30, help="how many, three bad ones included")
    parser.add_argument("--forks", type=int, default=15, help="boards worked on at a time")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    given = parser.parse_args()
    at_once = {"provision_batches": ["100%"]}
    load_before = round(os.getloadavg()[0], 2)
    with (
        started_engine(work_directory(), [NETWORK]) as engine,
        Fleet(engine, boards(given.boards)) as fleet,
    ):
        rows, runs = [], []
        for phase in ("first run", "second run"):
            run = fleet.play(
                "provision.yml",
                "--forks",
                str(given.forks),
                variables=at_once,
                tag="measure",
                sample_s=1,
            )
            runs.append(run)
            if phase == "first run":
                check(run, fleet)
                # Somebody goes there and turns ssh on again: this board alone is left to change.
                fleet.run_in("bad-connection", "systemctl start ssh.service")
            else:
                check_again(*runs)
            rows.append(row(phase, run, given.forks))
            # After each phase: the first is worth having when the second is cut off.
            write_atomically(
                given.output, (json.dumps(document(rows, load_before), indent=1) + "\n").encode()
            )
    return 0


def document(rows: list[dict[str, Any]], load_before: float) -> dict[str, Any]:
    """The measurement as it is kept."""
    machine = read_board()
    return {
        "subject": "provisioning",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{machine.cores} cores of an {machine.cpu}, which the simulated boards share "
        "with the controller",
        "load_before": load_before,
        "gpu": None,
        "versions": {"ansible-core": version("ansible-core")},
        "command": shlex.join(["python", "-m", "tests.boards.measure_fleet", *sys.argv[1:]]),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
