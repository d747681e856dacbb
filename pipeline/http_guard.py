# SPDX-License-Identifier: MIT
"""What every HTTP request passes before the application sees it, and the line it leaves in the log.

Host, key, drain, and the body's size and patience are checked here, once for all routes, before
anything is parsed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipeline.metrics import Metrics
from pipeline.openai_api import ApiError
from pipeline.server_settings import LOOPBACK_NAMES, ServerSettings

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Where a route leaves what the log line shall say beyond method, path, status and duration.
LOG_FIELDS = "mamba_orin.log"

# The status that logs and metrics give to a request whose client left; nobody receives it.
CLIENT_LEFT = 499

_API_PREFIX = "/v1/"


class HttpGuard:
    """An ASGI application around another.

    Args:
        application: What to protect.
        settings: Keys and limits.
        metrics: Told of each answer.
        is_draining: Whether new requests are turned away.
    """

    def __init__(
        self,
        application: Application,
        settings: ServerSettings,
        metrics: Metrics,
        is_draining: Callable[[], bool],
    ) -> None:
        self._application = application
        self._settings = settings
        self._metrics = metrics
        self._is_draining = is_draining
        self.in_flight = 0
        metrics.watch("http_in_flight", "HTTP requests in progress", lambda: self.in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection event, as ASGI asks."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        begin = time.monotonic()
        status = 0
        request_id = uuid.uuid4().hex
        fields: dict[str, Any] = {}
        scope[LOG_FIELDS] = fields

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        self.in_flight += 1
        try:
            try:
                self._check_headers(scope)
                body = await asyncio.wait_for(self._read_body(receive), self._settings.max_body_s)
            except ApiError as error:
                await send_error(error, send_with_id)
                return
            except asyncio.TimeoutError:
                await send_error(
                    ApiError(408, "the request's body took too long to arrive", "body_timeout"),
                    send_with_id,
                )
                return
            if body is not None:
                await self._application(scope, _replay(body, receive), send_with_id)
        finally:
            self.in_flight -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(scope["method"], route, status or CLIENT_LEFT)
            log_event(
                logger,
                "request",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status or CLIENT_LEFT,
                duration_ms=round((time.monotonic() - begin) * 1e3, 1),
                **fields,
            )

    def _check_headers(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        settings = self._settings
        # A page in a browser may call a server on the same machine under a name of its own.
        if not settings.keys and _host_name(headers.get(b"host", b"")) not in LOOPBACK_NAMES:
            raise ApiError(
                403, "without an API key, only requests to this machine's own name are answered",
                "foreign_host",
            )  # fmt: skip
        if scope["path"].startswith(_API_PREFIX):
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if settings.keys and not (
                scheme.lower() == b"bearer" and settings.keys.accepts(key.strip())
            ):
                raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")
            if self._is_draining():
                raise ApiError(503, "the server is stopping", "stopping", retry_after_s=5)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > settings.max_body_bytes:
            raise self._too_large()

    async def _read_body(self, receive: Receive) -> bytes | None:
        """The whole body; None when the client left before its end."""
        parts = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._settings.max_body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        limit = self._settings.max_body_bytes
        return ApiError(413, f"the body is larger than {limit} bytes", "body_too_large")


async def send_error(error: ApiError, send: Send) -> None:
    """Answers with an error, outside of any web framework."""
    headers = {"content-type": "application/json", **error.headers()}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})


def log_event(log: logging.Logger, event: str, **fields: Any) -> None:
    """Logs one structured line; see `JsonLines` of `http_server`."""
    log.info(event, extra={"fields": fields})


def _host_name(header: bytes) -> str:
    """The host of a Host header without its port."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then whatever comes after it."""
    is_given = False

    async def next_message() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
