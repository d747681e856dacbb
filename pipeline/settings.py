# SPDX-License-Identifier: MIT
"""Choices a user makes once, and how long work tells how far it is.

Environment variables have the prefix MAMBA_ORIN_:

MAMBA_ORIN_THREADS     CPU threads; default: the cores this process may use
MAMBA_ORIN_BOARD_ROOT  where `bench` finds the board's /proc, /sys, /etc and /var; default: /
MAMBA_ORIN_SERVE_*     each option of `serve`, as MAMBA_ORIN_SERVE_MAX_QUEUE for --max-queue
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UsageError

# Long work calls this with what is done and what there is to do, in bytes or tokens.
Progress = Callable[[int, int], None]


def no_progress(_done: int, _total: int) -> None:
    """Tells nobody."""


def default_threads() -> int:
    """CPU threads to use unless the command line says otherwise.

    Raises:
        UsageError: MAMBA_ORIN_THREADS is not a positive whole number.
    """
    given = os.environ.get("MAMBA_ORIN_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0))
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(
            f"MAMBA_ORIN_THREADS is {given!r}", fix="set it to a positive whole number or unset it"
        )
    return int(given)


def board_root() -> Path:
    """Root of the file tree in which the board's own files are seen, as in some containers."""
    return Path(os.environ.get("MAMBA_ORIN_BOARD_ROOT", "/"))


def cache_folder() -> Path:
    """Where to keep what may be lost: $MAMBA_ORIN_CACHE, or the user's cache (XDG)."""
    given = os.environ.get("MAMBA_ORIN_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mamba-orin"


def take_defaults_from_environment(parser: argparse.ArgumentParser, prefix: str) -> None:
    """Lets a variable stand for each argument of a command, as is usual in containers.

    What is said on the command line wins. A value is checked as it would be there; where the
    variable of a switch is neither 0 nor 1, the parsed arguments have a UsageError as `refused`.

    Args:
        parser: The command.
        prefix: What the names of its variables begin with.
    """
    for action in parser._actions:  # argparse has no public list of a command's arguments
        name = prefix + action.dest.upper()
        given = os.environ.get(name)
        if given is None or isinstance(action, argparse._HelpAction):
            continue
        if action.nargs == 0:
            action.default = given == "1"
            if given not in {"0", "1"}:
                error = UsageError(f"{name} is {given!r}", fix="set it to 0 or 1, or unset it")
                parser.set_defaults(refused=error)
            continue
        if not action.option_strings:
            action.nargs, action.required = "?", False
        action.default = given
