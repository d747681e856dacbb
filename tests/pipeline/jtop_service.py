# SPDX-License-Identifier: MIT
"""Stand-in for jtop.service: the wire of the real one, and a board that draws ever more power.

    python jtop_service.py SOCKET

It answers as the service does: the first message of a client names an interval, the answer says
what board this is; from then on data comes at that pace, as long as clients give signs of life.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from multiprocessing.managers import SyncManager
from typing import Any

import jtop
from jtop.core.common import get_key

messages: queue.Queue[dict[str, Any]] = queue.Queue()
data: dict[str, Any] = {}
fresh = threading.Event()
begun = threading.Event()
interval_s = 1.0


class Service(SyncManager):
    """What the client connects to."""


Service.register("get_queue", callable=lambda: messages)
Service.register("sync_data", callable=lambda: data)
Service.register("sync_event", callable=lambda: fresh)


def tick(number: int) -> dict[str, Any]:
    """What a Nano says, in the shapes of version 7."""

    def rail(milliwatts: int) -> dict[str, Any]:
        current = milliwatts // 5
        return {"volt": 5000, "curr": current, "power": milliwatts, "avg": 0, "online": True}

    return {
        "uptime": 100.0 + number,
        "cpu": {"total": {}, "cpu": []},
        "gpu": {
            "ga10b": {
                "type": "integrated",
                "status": {"load": 62.5},
                "freq": {"governor": "nvhost", "cur": 612000, "max": 1020000, "min": 306000},
                "power_control": "auto",
            }
        },
        "processes": [],
        "mem": {
            "RAM": {"tot": 7800000, "used": 1400000, "free": 6000000},
            "SWAP": {"tot": 12000000, "used": 0, "cached": 0, "table": {}},
            "EMC": {"cur": 2133000, "max": 3199000, "min": 204000, "val": 12, "online": True},
        },
        "engines": {},
        "temperature": {
            "tj": {"temp": 50.5, "online": True},
            "cv0": {"temp": -256, "online": False},
        },
        "power": {
            "rail": {"VDD_CPU_GPU_CV": rail(520), "VDD_SOC": rail(1445)},
            "tot": {"name": "VDD_IN", **rail(4500 + 100 * number)},
        },
        "fan": {},
    }


def answer() -> None:
    """Reads control messages as the service does."""
    global interval_s  # noqa: PLW0603 - one service a process, as the real one
    while True:
        message = messages.get()
        if "init" in message:
            messages.put(message)
            time.sleep(0.005)  # for the client whose answer it is
        elif "interval" in message:
            interval_s = message["interval"]
            init = {
                "version": jtop.__version__,
                "board": {"hardware": {"Module": "stand-in"}, "cpu": {}},
                "interval": interval_s,
                "memory": "",
                "fan": {},
                "jc": False,
            }
            messages.put({"init": init})
            begun.set()


def publish() -> None:
    """Gives new data at the pace of the first client."""
    begun.wait()
    number = 0
    while True:
        data.update(tick(number))
        fresh.set()
        number += 1
        time.sleep(interval_s)


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    service = Service(address=sys.argv[1], authkey=get_key().encode())
    server = service.get_server()
    threading.Thread(target=answer, daemon=True).start()
    threading.Thread(target=publish, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
