# SPDX-License-Identifier: MIT
"""The container's health: its server computes, now, what the engine computed when it was built.

Prints the server's words and exits with 0 or 1, as Docker's HEALTHCHECK asks.
"""

import os
import sys
import urllib.error
import urllib.request

# The server itself gives up within 10 s; Docker after 15.
_PATIENCE_S = 12


def main() -> int:
    """Asks the server of this container."""
    port = os.environ.get("MAMBA_ORIN_SERVE_PORT", "8000")
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/healthz/model", timeout=_PATIENCE_S
        ) as answer:
            print(answer.read().decode())
        return 0
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode(errors='replace')}")
    except OSError as error:
        print(f"no answer: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
