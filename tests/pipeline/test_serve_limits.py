# SPDX-License-Identifier: MIT
"""Keys, limits, faults, clients that leave, and what the operator sees, over HTTP."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from pipeline.server_settings import ApiKeys
from tests.pipeline.serving import PATIENCE_S, LoopbackServer, assert_refused, loopback_server

PROMPT = "It was a truth"
LONG_TEXT = (Path(__file__).parents[2] / "models" / "demo" / "heldout.txt").read_text()


@pytest.fixture(scope="module")
def server(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    with loopback_server(demo_engine, states_folder=tmp_path_factory.mktemp("states")) as running:
        yield running


# --- keys, limits ----------------------------------------------------------------------------


def test_without_the_key_nothing_of_the_model_is_told(demo_engine: Path) -> None:
    with loopback_server(demo_engine, keys=ApiKeys(("secret",))) as server:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer secret2"},
            {"Authorization": "Basic secret"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer \xff".encode("latin-1")},
        ):
            for path in ("/v1/models", "/v1/states", "/v1/nothing"):
                answer = server.client.get(path, headers=headers)  # type: ignore[arg-type]
                assert_refused(answer, 401, "key is missing or wrong")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.completions.create(model="demo", prompt=PROMPT)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret") as client:
            assert client.completions.create(model="demo", prompt=PROMPT).choices
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/readyz").status_code == 200


def test_without_a_key_a_page_under_a_foreign_name_is_refused(server: LoopbackServer) -> None:
    answer = server.client.get("/v1/models", headers={"Host": "evil.example:80"})
    assert_refused(answer, 403, "without an API key")
    for host in ("localhost", "localhost:9", "[::1]:9", "127.0.0.1"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_body_that_is_too_large_or_too_slow_is_refused(demo_engine: Path) -> None:
    with loopback_server(demo_engine, max_body_bytes=2000, max_body_s=0.2) as server:
        assert_refused(server.complete("x" * 2000), 413, "larger than 2000 bytes")

        def unannounced() -> Iterator[bytes]:
            for _ in range(30):
                yield b"x" * 100

        answer = server.client.post("/v1/completions", content=unannounced())
        assert_refused(answer, 413, "larger than 2000 bytes")
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in connection.recv(1000)
        assert server.text(PROMPT, max_tokens=2)


def test_a_prompt_of_too_many_tokens_is_refused(demo_engine: Path) -> None:
    with loopback_server(demo_engine, max_prompt_tokens=10) as server:
        assert server.text(list(range(10)), max_tokens=1)
        answer = server.complete(list(range(11)))
        assert_refused(answer, 400, "11 tokens; at most 10")
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_full_queue_is_429_with_the_time_to_return(demo_engine: Path) -> None:
    with loopback_server(demo_engine, max_queue=1) as server, ThreadPoolExecutor() as pool:
        server.gate.close()
        running = [
            pool.submit(server.complete, [5, 6, number], n=8, max_tokens=2) for number in [7]
        ]
        server.gate.next_call()
        running.append(pool.submit(server.complete, PROMPT, max_tokens=2))
        while server.metric("mamba_orin_queue_depth") < 1:
            pass
        refused = server.complete(PROMPT)
        assert_refused(refused, 429, "queue is full")
        assert int(refused.headers["Retry-After"]) >= 1
        server.gate.open()
        assert [each.result(PATIENCE_S).status_code for each in running] == [200, 200]


def test_a_request_that_takes_too_long_is_ended(demo_engine: Path) -> None:
    with loopback_server(demo_engine, max_request_s=1e-9) as server:
        assert_refused(server.complete(PROMPT), 408, "longer than")
    with loopback_server(demo_engine, max_queue_s=1e-9) as server:
        refused = server.complete(PROMPT)
        assert_refused(refused, 429)
        assert int(refused.headers["Retry-After"]) >= 1


# --- clients that leave ----------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_slots(demo_engine: Path, is_streamed: bool) -> None:
    with loopback_server(demo_engine) as server:
        server.gate.close()
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(
            {"model": "demo", "prompt": [5, 6], "n": 8, "max_tokens": 500, "stream": is_streamed}
        ).encode()
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert server.gate.next_call() == ("prefill", 2)
            server.gate.let_pass()
            assert server.gate.next_call() == ("step", 8)
            if is_streamed:
                assert b"200 OK" in connection.recv(1000)
        while server.metric("mamba_orin_http_in_flight") > 1:  # the one that asks
            pass
        server.gate.open()
        assert server.text([7, 8], max_tokens=2)
        steps = [rows for kind, rows in server.gate.calls if kind == "step"]
        assert steps == [8, 1]
        assert server.metric('mamba_orin_completions_total{reason="cancelled"}') == 1
        assert server.metric("mamba_orin_active_slots") == 0


def test_a_fault_of_the_backend_is_told_in_a_stream_and_before_it(demo_engine: Path) -> None:
    with loopback_server(demo_engine) as server:
        server.gate.faults["prefill"] = RuntimeError("secret detail")
        answer = server.complete(PROMPT)
        assert_refused(answer, 500, "the server failed")
        assert "secret" not in answer.text
        server.gate.faults["step"] = RuntimeError("secret detail")
        streamed = server.complete(PROMPT, stream=True)
        assert streamed.status_code == 200
        assert '"code": "internal_error"' in streamed.text.splitlines()[-2]
        server.gate.faults["step"] = RuntimeError("secret detail")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = client.completions.create(model="demo", prompt=PROMPT, stream=True)
            with pytest.raises(openai.APIError, match="the server failed"):
                list(stream)
        assert server.text(PROMPT, max_tokens=2)


# --- what the operator sees ------------------------------------------------------------------


def test_the_log_has_no_prompt_unless_asked(
    demo_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pipeline")

    def logged(server: LoopbackServer) -> dict[str, Any]:
        caplog.clear()
        server.text("Sensitive words", max_tokens=3)
        while not caplog.records:  # the line is written after the answer is sent
            pass
        fields: dict[str, Any] = caplog.records[-1].fields  # type: ignore[attr-defined]
        return fields

    with loopback_server(demo_engine) as server:
        fields = logged(server)
        assert "Sensitive" not in json.dumps(fields)
        assert (fields["status"], fields["completion_tokens"]) == (200, 3)
        assert fields["first_ms"] <= fields["duration_ms"]
    with loopback_server(demo_engine, logs_prompts=True) as server:
        assert logged(server)["prompt"] == {"prompt": "Sensitive words"}


def test_metrics_count_what_happened(demo_engine: Path) -> None:
    with loopback_server(demo_engine) as server:
        server.text([5, 6, 7], max_tokens=4)
        assert server.metric("mamba_orin_prompt_tokens_total") == 3
        assert server.metric("mamba_orin_generated_tokens_total") == 4
        assert server.metric("mamba_orin_time_to_first_token_seconds_count") == 1
        assert server.metric("mamba_orin_time_per_token_seconds_count") == 3
        assert server.metric('mamba_orin_completions_total{reason="length"}') == 1
        assert server.metric("mamba_orin_slots") == 8
        labels = 'method="POST",route="/v1/completions",status="200"'
        assert server.metric(f"mamba_orin_http_requests_total{{{labels}}}") == 1
        server.client.get("/v1/states/unheard-of")
        labels = 'method="GET",route="/v1/states/{name}",status="404"'
        assert server.metric(f"mamba_orin_http_requests_total{{{labels}}}") == 1


def test_health_follows_the_worker_and_readiness_the_drain(demo_engine: Path) -> None:
    with loopback_server(demo_engine) as server:
        ready = server.client.get("/readyz")
        assert ready.json() == {"status": "ready", "model": "demo", "weights_on_disk": "unchanged"}
        server.server.scheduler.refuse_new()
        assert_refused(server.client.get("/readyz"), 503, "stopping")
        refused = server.complete(PROMPT)
        assert_refused(refused, 503, "stopping")
        assert "Retry-After" in refused.headers
        assert server.client.get("/healthz").status_code == 200
        server.server.scheduler.stop()
        assert_refused(server.client.get("/healthz"), 503, "worker")


def test_weights_that_are_replaced_do_no_harm_and_overwritten_ones_are_noticed(
    demo_engine: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(demo_engine.parent, folder)
    weights = folder / "bundle" / "weights.safetensors"
    with loopback_server(folder / "engine") as server:
        before = server.text(PROMPT, max_tokens=20)
        shutil.copy(weights, tmp_path / "new")
        (tmp_path / "new").replace(weights)
        assert server.client.get("/readyz").json()["weights_on_disk"] == "replaced"
        assert server.text(PROMPT, max_tokens=20) == before
    with loopback_server(folder / "engine") as server:
        with weights.open("r+b") as file:
            file.seek(-100, 2)
            file.write(b"\0" * 100)
        assert_refused(server.client.get("/readyz"), 503, "written into")
        assert_refused(server.complete(PROMPT), 503, "must be restarted")
        assert server.client.get("/healthz").status_code == 200
