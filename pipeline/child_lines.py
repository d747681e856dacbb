# SPDX-License-Identifier: MIT
"""Lines of a program that runs beside this one, each with the moment of its arrival."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from pipeline.errors import TelemetryError

_LOOK_S = 0.1
_GRACE_S = 2.0
_LONGEST_LINE = 1 << 16


class ChildLines:
    """A running program whose lines are read until told to stop.

    Args:
        command: The program and its arguments.

    Raises:
        TelemetryError: It cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        # A file, because nobody would empty a pipe while the lines are read.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        self._used_s: float | None = None
        self._waiting: deque[tuple[float, str]] = deque()
        self._held = b""
        self._code = 0
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise TelemetryError(
                f"cannot start {command[0]}: {error.strerror}", fix=f"install {command[0]}"
            ) from error

    def lines(self, stop: threading.Event) -> Iterator[tuple[float, str]]:
        """Yields the moment and text of each line until `stop` is set.

        Raises:
            TelemetryError: The program ended by itself; says what it wrote last.
        """
        output = self._child.stdout
        assert output is not None
        while not stop.is_set():
            while self._waiting:
                yield self._waiting.popleft()
            ready, _, _ = select.select([output], [], [], _LOOK_S)
            if not ready:
                continue
            moment = time.monotonic()
            piece = os.read(output.fileno(), _LONGEST_LINE)
            if not piece:
                raise TelemetryError(self._last_words())
            *whole, held = (self._held + piece).split(b"\n")
            # Bytes that never become a line must not fill the memory.
            self._held = held[-_LONGEST_LINE:]
            self._waiting.extend((moment, line.decode("utf-8", errors="replace")) for line in whole)

    def close(self) -> float:
        """Ends the program; returns the processor seconds it has used."""
        if self._used_s is None:
            self._child.terminate()
            self._reap(_GRACE_S)
        if self._used_s is None:
            self._child.kill()
            self._reap(None)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._errors.close()
        return self._used_s or 0.0

    def _reap(self, seconds: float | None) -> None:
        """Waits for the end and notes what it cost, which `Popen.wait` does not tell."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._used_s is None:
            options = 0 if deadline is None else os.WNOHANG
            pid, status, usage = os.wait4(self._child.pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                self._child.returncode = self._code
                self._used_s = usage.ru_utime + usage.ru_stime
            elif deadline is not None and time.monotonic() > deadline:
                return
            else:
                time.sleep(0.01)

    def _last_words(self) -> str:
        self._reap(None)
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        last = f": {words[-1]}" if words else ""
        return f"{self._command[0]} ended with code {self._code}{last}"
