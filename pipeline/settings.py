# SPDX-License-Identifier: MIT
"""Choices a user makes once, and how long work tells how far it is.

Environment variables have the prefix MAMBA_ORIN_:

MAMBA_ORIN_THREADS   CPU threads; default: the cores this process may use
"""

from __future__ import annotations

import os
from collections.abc import Callable

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
