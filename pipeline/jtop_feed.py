#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints what jetson-stats says as lines of JSON, until it is ended.

A program of its own, run by whatever Python has jetson-stats: the service and its client must
be of one version, which often lives in an environment of its own, and its licence (AGPL) stays
out of this package. Imports nothing of this package.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between lines")
    parser.add_argument("--socket", help="where the service listens, if not in its usual place")
    given = parser.parse_args()
    try:
        import jtop
        import jtop.service
    except ImportError as error:
        sys.stderr.write(f"jetson-stats is not installed: {error}\n")
        return 3
    if given.socket:
        # The client holds the path as a constant of its module, and takes no argument for it.
        jtop.service.JTOP_PIPE = given.socket
    try:
        with jtop.jtop(interval=given.interval) as client:
            while client.ok():
                line = json.dumps({"time_s": time.monotonic(), **facts(client)}, default=str)
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    except jtop.JtopException as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 4
    return 0


def facts(client: Any) -> dict[str, Any]:
    """What the service said last; a part it does not have is left out."""
    found: dict[str, Any] = {}
    for name in ("power", "temperature", "memory", "gpu"):
        try:
            found[name] = plain(getattr(client, name))
        except (AttributeError, KeyError):
            continue
    return found


def plain(value: Any) -> Any:
    """The client's own kinds of dictionaries as those that JSON knows."""
    if hasattr(value, "items"):
        return {str(key): plain(inner) for key, inner in value.items()}
    return value


if __name__ == "__main__":
    sys.exit(main())
