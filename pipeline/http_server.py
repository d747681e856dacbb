# SPDX-License-Identifier: MIT
"""Runs the application in uvicorn: address, log, and an end that lets answers finish.

The first SIGTERM or SIGINT turns new requests away with 503 and lets those in progress go on
for the grace time; the second ends at once. The only module that imports uvicorn.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from pipeline.engine import load_engine
from pipeline.http_guard import log_event
from pipeline.manifest import now
from pipeline.serve import Server, create_server
from pipeline.server_settings import ServerSettings, listen

logger = logging.getLogger(__name__)

# Connections have this long to close once their answers are complete.
_CLOSE_S = 5


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and the fields of `http_guard.log_event`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = {
            "time": now(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def run_server(folder: Path, threads: int | None, settings: ServerSettings) -> None:
    """Loads an engine and serves it until a signal ends it.

    Args:
        folder: A folder written by `build`.
        threads: CPU threads; None takes `settings.default_threads`.
        settings: See `ServerSettings`.

    Raises:
        ArtifactError: The engine cannot be used.
        UsageError: It has no tokenizer, or the address cannot be used.
    """
    _log_as_json()
    server = create_server(load_engine(folder, threads), settings)
    with listen(settings) as socket:
        host, port = socket.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        server.scheduler.start()
        try:
            log_event(logger, "listening", url=f"http://{name}:{port}", model=server.model_name)
            _DrainingServer(server, settings.grace_s).run(sockets=[socket])
        finally:
            server.scheduler.stop()
            log_event(logger, "stopped")


class _DrainingServer(uvicorn.Server):
    """uvicorn, but for its end."""

    def __init__(
        self, server: Server, grace_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(
            uvicorn.Config(
                server.application,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSE_S,
            )
        )
        self._server = server
        self._grace_s = grace_s
        self._clock = clock
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begins to drain, or ends at once when told so twice."""
        if self._draining_since is not None:
            self.should_exit = self.force_exit = True
            return
        self._draining_since = self._clock()
        self._server.scheduler.refuse_new()
        log_event(
            logger,
            "draining",
            signal=signal.Signals(sig).name,
            in_flight=self._server.application.in_flight,
            grace_s=self._grace_s,
        )

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; returns whether to end."""
        if self._draining_since is not None and not self.should_exit:
            is_idle = self._server.application.in_flight == 0
            if is_idle or self._clock() - self._draining_since > self._grace_s:
                self.should_exit = True
                # Whoever still waits is told so before the connection closes.
                await asyncio.to_thread(self._server.scheduler.stop)
        return await super().on_tick(counter)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Its "started" and "stopped" say again what ours say; its errors are kept.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
