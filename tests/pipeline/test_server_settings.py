# SPDX-License-Identifier: MIT
from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.server_settings import (
    KEY_VARIABLE,
    ApiKeys,
    ServerSettings,
    listen,
    read_api_keys,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert not ServerSettings(host=host).keys


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "board.local", ""])
def test_an_address_that_the_network_reaches_needs_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="there is no API key"):
        ServerSettings(host=host)
    ServerSettings(host=host, keys=ApiKeys(("secret",)))


def test_only_the_keys_themselves_are_accepted() -> None:
    keys = ApiKeys(("first", "second"))
    assert keys.accepts(b"first")
    assert keys.accepts(b"second")
    for wrong in (b"", b"firs", b"first ", b"FIRST", b"third", b"\xff"):
        assert not keys.accepts(wrong)


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert not read_api_keys(None)
    monkeypatch.setenv(KEY_VARIABLE, "from environment\n")
    assert read_api_keys(None).accepts(b"from environment")
    path = tmp_path / "keys"
    path.write_text("one\n\n  two  \n")
    keys = read_api_keys(path)
    assert keys.accepts(b"one")
    assert keys.accepts(b"two")
    assert not keys.accepts(b"from environment")


def test_a_promised_key_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="cannot read --api-key-file"):
        read_api_keys(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        read_api_keys(tmp_path / "empty")
    monkeypatch.setenv(KEY_VARIABLE, " ")
    with pytest.raises(UsageError, match="is empty"):
        read_api_keys(None)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"max_queue": 0}, "--max-queue"),
        ({"max_prompt_tokens": -1}, "--max-prompt-tokens"),
        ({"max_request_s": float("nan")}, "--max-request"),
        ({"port": 65536}, "--port"),
        ({"prefix_cache_bytes": -1}, "--prefix-cache-mb"),
        ({"grace_s": -1.0}, "--grace-seconds"),
    ],
)
def test_settings_out_of_range_are_refused_by_the_name_of_their_option(
    values: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError, match=option):
        ServerSettings(**values)


def test_a_port_in_use_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen(ServerSettings(port=port))
