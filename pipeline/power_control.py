# SPDX-License-Identifier: MIT
"""Holds a Jetson's power mode and clocks still for a benchmark, and puts them back.

Before anything is changed a journal is written and a guard is started, a process of its own that
puts everything back when this one is gone, killed included. A journal that a power cut has left
behind is undone at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal

from pipeline import clock_guard
from pipeline.board import power_mode_ids, read_board
from pipeline.errors import BoardError
from pipeline.power_records import Pinned
from pipeline.records import Board
from pipeline.storage import write_atomically

_JOURNAL = "var/lib/mamba-orin/benchmark-restore.json"
_STORED_CLOCKS = "var/lib/mamba-orin/benchmark-clocks.conf"


class HeldStill:
    """A board whose mode and clocks are held while the `with` block runs.

    Args:
        board: The machine.
        power_mode: Name of the mode to set; None leaves the active one.
        clocks: "lock" insists, "auto" locks when it may, "leave" does not.
        root: Root of the file tree.

    Attributes:
        why_nothing: Why there is nothing to hold; None on a Jetson.
    """

    def __init__(
        self,
        board: Board,
        power_mode: str | None = None,
        clocks: Literal["auto", "lock", "leave"] = "auto",
        root: Path = Path("/"),
    ) -> None:
        self.why_nothing = None if board.jetson else "this machine is no Jetson"
        self._jetson = board.jetson
        self._mode = power_mode
        self._clocks: Literal["auto", "lock", "leave"] = clocks
        self._root = root
        self._journal = root / _JOURNAL
        self._stored = root / _STORED_CLOCKS
        self._guard: subprocess.Popen[bytes] | None = None
        self._did: Literal["locked", "locked before", "left"] = "left"
        self._before: str | None = None
        self._restored: bool | None = None

    def __enter__(self) -> HeldStill:
        if self._jetson is None:
            if self._mode or self._clocks == "lock":
                raise BoardError(
                    "this machine has no power modes or clocks to hold: it is no Jetson",
                    fix="leave --power-mode and --clocks lock out",
                )
            return self
        self._undo_older()
        self._before = self._jetson.power_mode
        was_locked = bool(self._jetson.clocks_locked)
        if was_locked:
            self._did = "locked before"
        changes_mode = self._mode is not None and self._mode != self._before
        locks = self._clocks != "leave" and (changes_mode or not was_locked)
        if not (changes_mode or locks):
            return self
        if not self._may(changes_mode):
            return self
        try:
            self._change(changes_mode, locks, was_locked)
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put_back()

    @property
    def pinned(self) -> Pinned | None:
        """What was done; complete after the block. None on what is no Jetson."""
        if self._jetson is None:
            return None
        values = {
            "power_mode_before": self._before,
            "power_mode": self._mode or self._before,
            "restored": self._restored,
        }
        reasons = {
            "power_mode_before": "nvpmodel has stored no active mode",
            "power_mode": "nvpmodel has stored no active mode",
            "restored": "nothing was changed",
        }
        missing = {field: reasons[field] for field, value in values.items() if value is None}
        return Pinned.model_validate({**values, "clocks": self._did, "missing": missing})

    def _may(self, changes_mode: bool) -> bool:
        """Whether this user and machine can; refuses what was insisted on and cannot be."""
        lacking = [tool for tool in ("nvpmodel", "jetson_clocks") if not shutil.which(tool)]
        reason, fix = "", ""
        if lacking:
            reason, fix = f"{' and '.join(lacking)} not found", "install Jetson Linux's tools"
        elif os.geteuid() != 0:
            reason, fix = "only root may change them", "run it with sudo"
        if reason and (changes_mode or self._clocks == "lock"):
            raise BoardError(f"power mode and clocks cannot be held: {reason}", fix=fix)
        return not reason

    def _undo_older(self) -> None:
        """What an earlier benchmark has left is no state to measure in or to put back."""
        if not self._journal.exists():
            return
        for problem in clock_guard.restore(self._journal):
            raise BoardError(
                f"an earlier benchmark's changes cannot be undone: {problem}",
                fix=f"set power mode and clocks yourself, then remove {self._journal}",
            )
        self._jetson = read_board(self._root).jetson or self._jetson

    def _change(self, changes_mode: bool, locks: bool, was_locked: bool) -> None:
        nvpmodel, jetson_clocks = shutil.which("nvpmodel"), shutil.which("jetson_clocks")
        assert nvpmodel is not None
        assert jetson_clocks is not None
        modes = power_mode_ids(self._root)
        if changes_mode and self._mode not in modes:
            raise BoardError(
                f"this board has no power mode {self._mode!r}",
                fix=f"choose from {', '.join(modes)}",
            )
        if self._before is None and changes_mode:
            raise BoardError(
                "the active power mode is unknown, so it could not be put back",
                fix="set any mode once with nvpmodel -m",
            )
        if not was_locked:
            # A store of locked clocks would make its restore useless.
            self._stored.parent.mkdir(parents=True, exist_ok=True)
            self._demand([jetson_clocks, "--store", str(self._stored)])
        note = {
            "nvpmodel": nvpmodel,
            "jetson_clocks": jetson_clocks,
            "mode_id": modes[self._before or ""] if changes_mode else None,
            "mode_name": self._before,
            "clocks_file": None if was_locked else str(self._stored),
            "relock": was_locked and changes_mode,
        }
        write_atomically(self._journal, json.dumps(note).encode())
        self._restored = False
        self._start_guard()
        if changes_mode:
            # "no" declines the question whether to reboot now.
            clock_guard.run([nvpmodel, "-m", str(modes[self._mode or ""])], answer="no\n")
            if clock_guard.active_mode(nvpmodel) != self._mode:
                raise BoardError(
                    f"nvpmodel did not take the power mode {self._mode}: it needs a reboot",
                    fix="set it with `ansible-playbook provision.yml`, which reboots, and measure "
                    "then without --power-mode",
                )
            self._did = "left"
        if locks:
            self._demand([jetson_clocks])
            self._did = "locked"

    def _demand(self, command: list[str]) -> None:
        code, words = clock_guard.run(command)
        if code:
            raise BoardError(f"{' '.join(command)} failed: {words}", fix="run it by hand to see")

    def _start_guard(self) -> None:
        # Of its own session, so that a Ctrl-C at the terminal does not reach it.
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "pipeline.clock_guard", str(self._journal)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _put_back(self) -> None:
        if self._restored is None:
            return
        self._restored = not clock_guard.restore(self._journal)
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
