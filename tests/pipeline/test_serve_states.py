# SPDX-License-Identifier: MIT
"""Named states and kept beginnings, over HTTP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.pipeline.serving import LoopbackServer, assert_refused, loopback_server

if TYPE_CHECKING:
    import httpx

PROMPT = "It was a truth"
LONG_TEXT = (Path(__file__).parents[2] / "models" / "demo" / "heldout.txt").read_text()


@pytest.fixture(scope="module")
def server(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    with loopback_server(demo_engine, states_folder=tmp_path_factory.mktemp("states")) as running:
        yield running


def make_state(server: LoopbackServer, name: str, **options: Any) -> httpx.Response:
    return server.client.post("/v1/states", json={"name": name, **options})


def test_a_state_continues_as_its_prompt_would(server: LoopbackServer) -> None:
    made = make_state(server, "opening", prompt=PROMPT)
    assert made.status_code == 201
    assert made.json()["tokens"] == 4
    whole = server.text(PROMPT + " universally", max_tokens=30)
    for _ in range(2):  # continuing changes nothing
        assert server.text(" universally", state="opening", max_tokens=30) == whole
    assert server.client.get("/v1/states/opening").json() == made.json()


def test_a_state_can_be_forked_and_carried_on(server: LoopbackServer) -> None:
    make_state(server, "root", prompt="Emma was")
    first = server.text(" very", state="root", save_state="branch", max_tokens=10)
    onward = server.text(" and", state="branch", max_tokens=10)
    assert onward == server.text(f"Emma was very{first} and", max_tokens=10)
    before = server.client.get("/v1/states/root").json()
    server.text(" not", state="root", save_state="root", max_tokens=3)
    after = server.client.get("/v1/states/root").json()
    assert after["content_sha256"] != before["content_sha256"]
    names = [state["name"] for state in server.client.get("/v1/states").json()["data"]]
    assert {"root", "branch"} <= set(names)


def test_a_state_can_start_from_another(server: LoopbackServer) -> None:
    make_state(server, "one", prompt="Emma")
    make_state(server, "two", prompt=" was", state="one")
    assert server.client.get("/v1/states/two").json()["tokens"] == 2
    assert server.text(" very", state="two", max_tokens=9) == server.text(
        "Emma was very", max_tokens=9
    )


def test_names_that_are_taken_or_unknown_are_refused(server: LoopbackServer) -> None:
    make_state(server, "taken", prompt="Emma")
    assert_refused(make_state(server, "taken", prompt="Emma"), 409, "'taken' already")
    assert make_state(server, "taken", prompt="Emma was", overwrite=True).json()["tokens"] == 2
    assert server.client.delete("/v1/states/taken").json()["deleted"]
    for answer in (
        server.client.get("/v1/states/taken"),
        server.client.delete("/v1/states/taken"),
        server.complete(PROMPT, state="taken"),
        make_state(server, "new", prompt="Emma", state="taken"),
    ):
        assert_refused(answer, 404, "no state named 'taken'")
    assert_refused(make_state(server, "../up", prompt="Emma"), 400, "'name'")
    assert_refused(server.client.get("/v1/states/.hidden"), 400, "cannot be the name")


def test_a_damaged_state_or_one_of_another_model_is_refused(server: LoopbackServer) -> None:
    folder = server.server.states_folder
    make_state(server, "fine", prompt="Emma")
    content = (folder / "fine.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(content[:-1] + b"?")
    weights = server.client.get("/v1/states/fine").json()["weights_sha256"]
    foreign = content.replace(weights.encode(), b"0" * 64)
    (folder / "foreign.safetensors").write_bytes(foreign)
    answer = server.complete(" was", state="damaged")
    assert_refused(answer, 409, "'damaged' cannot be used", "delete it")
    answer = server.complete(" was", state="foreign")
    assert_refused(answer, 409, "'foreign' was made by weights 000000000000…")
    assert server.client.delete("/v1/states/damaged").status_code == 200
    assert server.client.delete("/v1/states/foreign").status_code == 200


def test_a_beginning_read_before_costs_one_restore(server: LoopbackServer) -> None:
    before = server.metric('mamba_orin_prefix_lookups_total{result="hit"}')
    prompt = LONG_TEXT[:9000]
    fresh = server.complete(prompt, max_tokens=20, logprobs=2).json()
    again = server.complete(prompt, max_tokens=20, logprobs=2).json()
    assert again["choices"] == fresh["choices"]
    tokens = fresh["usage"]["prompt_tokens"]
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == (tokens - 1) // 128 * 128
    assert server.metric('mamba_orin_prefix_lookups_total{result="hit"}') == before + 1
    assert server.metric("mamba_orin_prefix_cache_bytes") >= 311_296


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for one state of the demo model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_told_and_leaves_older_states_intact(
    demo_engine: Path, small_disk: Path
) -> None:
    with loopback_server(demo_engine, states_folder=small_disk) as server:
        assert make_state(server, "first", prompt=PROMPT).status_code == 201
        for answer in (
            make_state(server, "second", prompt=PROMPT),
            make_state(server, "first", prompt="Emma", overwrite=True),
            server.complete(PROMPT, save_state="third", max_tokens=3),
        ):
            assert_refused(answer, 507, "the disk became full", "older states are intact")
        streamed = server.complete(PROMPT, save_state="third", max_tokens=3, stream=True)
        assert '"code": "insufficient_storage"' in streamed.text.splitlines()[-2]
        assert "[DONE]" not in streamed.text
        names = [state["name"] for state in server.client.get("/v1/states").json()["data"]]
        assert names == ["first"]
        whole = server.text(PROMPT + " universally", max_tokens=9)
        assert server.text(" universally", state="first", max_tokens=9) == whole
        server.client.delete("/v1/states/first")
        assert make_state(server, "second", prompt=PROMPT).status_code == 201
