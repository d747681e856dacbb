# SPDX-License-Identifier: MIT
"""What the operator of a server chooses, and the rule that no open door faces the network.

MAMBA_ORIN_API_KEY   a key that clients must present, unless --api-key-file names some
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path

from pipeline.errors import UsageError

KEY_VARIABLE = "MAMBA_ORIN_API_KEY"
# Host headers that a browser on this machine sends to a loopback server.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class ApiKeys:
    """The keys that open the server; without any, everybody may enter.

    Args:
        keys: The keys. Only their hashes are kept.
    """

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        self._hashes = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accepts(self, key: bytes) -> bool:
        """Whether a key is one of them; takes equally long whichever it is."""
        given = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return any(matches)


def read_api_keys(path: Path | None) -> ApiKeys:
    """Keys from a file, one a line, or from MAMBA_ORIN_API_KEY.

    Raises:
        UsageError: The file cannot be read, or there is no key where one was promised.
    """
    if path is None:
        given = os.environ.get(KEY_VARIABLE)
        if given is not None and not given.strip():
            raise UsageError(f"{KEY_VARIABLE} is empty", fix="set it to a key or unset it")
        return ApiKeys((given.strip(),) if given else ())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read --api-key-file {path}: {error}", fix="give a text file, one key a line"
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(f"--api-key-file {path} holds no key", fix="write one key a line into it")
    return ApiKeys(keys)


@dataclass(frozen=True)
class ServerSettings:
    """All choices of `mamba-orin serve`.

    Attributes:
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        keys: Who may enter.
        model_name: Name of the model in requests; None takes the checkpoint's.
        states_folder: Where named states are kept; None takes `ENGINE-states`.
        max_states: The most named states.
        prefix_cache_bytes: The most bytes of states of prompt beginnings.
        max_queue: Requests that wait at most.
        max_queue_s: How long one waits at most, seconds.
        max_request_s: How long one takes at most, waiting included, seconds.
        max_prompt_tokens: The longest prompt.
        max_new_tokens: The longest answer, and what a chat gets that asks for no limit.
        max_body_bytes: The largest request body.
        max_body_s: How long a body may take to arrive, seconds.
        grace_s: How long answers may go on after SIGTERM, seconds.
        logs_prompts: Whether prompts go into the log.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: ApiKeys = field(default_factory=ApiKeys)
    model_name: str | None = None
    states_folder: Path | None = None
    max_states: int = 1000
    prefix_cache_bytes: int = 256_000_000
    max_queue: int = 64
    max_queue_s: float = 60.0
    max_request_s: float = 600.0
    max_prompt_tokens: int = 32_768
    max_new_tokens: int = 2048
    max_body_bytes: int = 4_000_000
    max_body_s: float = 30.0
    grace_s: float = 30.0
    logs_prompts: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.startswith("max_") and not value > 0:
                option = each.name.removesuffix("_s").replace("_", "-")
                raise UsageError(f"--{option} is {value}", fix="give a number above 0")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port is {self.port}", fix="give a port from 0 to 65535")
        if self.prefix_cache_bytes < 0 or not self.grace_s >= 0:
            raise UsageError(
                "--prefix-cache-mb and --grace-seconds cannot be negative", fix="use 0 for none"
            )
        if not self.keys and not _is_loopback(self.host):
            raise UsageError(
                f"--host {self.host} can be reached from the network, and there is no API key",
                fix=f"give --api-key-file FILE, set {KEY_VARIABLE}, or use --host 127.0.0.1",
            )


def listen(settings: ServerSettings) -> socket.socket:
    """Opens the socket to listen on.

    Raises:
        UsageError: The address cannot be used.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}",
            fix="choose another --port, or stop the program that uses it",
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may point anywhere, and elsewhere tomorrow
        return False
