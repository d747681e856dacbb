# SPDX-License-Identifier: MIT
"""A server in a process of its own: signals, sudden ends, and what it refuses to start with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pipeline import errors
from tests.pipeline.serving import PATIENCE_S, ServerProcess, assert_refused

PROMPT = "It was a truth"
BODY: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 8}


@pytest.fixture
def gated(demo_engine: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose model moves only when told."""
    with ServerProcess(demo_engine, gated=True, states=str(tmp_path / "states")) as process:
        yield process


def complete(server: ServerProcess, **options: Any) -> httpx.Response:
    return server.client.post("/v1/completions", json=BODY | options)


def test_sigterm_lets_answers_finish_and_turns_new_requests_away(gated: ServerProcess) -> None:
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=gated.url) as other:
        other.get("/healthz")  # a connection that is open already
        whole = pool.submit(complete, gated, max_tokens=20)
        assert gated.pass_one() == "prefill 4"
        streamed = pool.submit(complete, gated, max_tokens=20, stream=True)
        while gated.pass_one() != "step 2":
            pass
        gated.process.send_signal(signal.SIGTERM)
        assert gated.wait_for("draining")["in_flight"] == 2
        refused = other.post("/v1/completions", json=BODY)
        assert_refused(refused, 503, "stopping")
        assert "Retry-After" in refused.headers
        assert_refused(other.get("/readyz"), 503, "stopping")
        with httpx.Client(base_url=gated.url) as newcomer:
            assert_refused(newcomer.get("/v1/models"), 503, "stopping")
        gated.open()
        answer = whole.result(PATIENCE_S)
        assert answer.json()["usage"]["completion_tokens"] == 20
        chunks = [line[6:] for line in streamed.result(PATIENCE_S).text.splitlines() if line]
        assert chunks[-1] == "[DONE]"
        text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks[:-1])
        assert text == answer.json()["choices"][0]["text"]
    assert gated.end() == 0


def test_when_the_grace_time_is_over_waiting_clients_are_told(demo_engine: Path) -> None:
    with (
        ServerProcess(demo_engine, gated=True, grace_s=0.0) as server,
        ThreadPoolExecutor() as pool,
    ):
        whole = pool.submit(complete, server, max_tokens=500)
        assert server.pass_one() == "prefill 4"
        streamed = pool.submit(complete, server, max_tokens=500, stream=True)
        while server.pass_one() != "step 2":
            pass
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        server.open()
        assert_refused(whole.result(PATIENCE_S), 503, "stopped before the answer was complete")
        assert '"code": "stopping"' in streamed.result(PATIENCE_S).text.splitlines()[-2]
        assert server.end() == 0


def test_states_survive_kill_9_while_one_is_written(demo_engine: Path, tmp_path: Path) -> None:
    states = str(tmp_path / "states")
    with (
        ServerProcess(demo_engine, gated=True, states=states) as server,
        ThreadPoolExecutor() as pool,
    ):
        body = {"name": "a", "prompt": PROMPT}
        made = pool.submit(server.client.post, "/v1/states", json=body)
        assert server.pass_one() == "prefill 4"
        before = made.result(PATIENCE_S).json()
        running = pool.submit(complete, server, save_state="a")
        assert server.pass_one() == "prefill 4"
        server.process.send_signal(signal.SIGKILL)
        assert server.end() == -signal.SIGKILL
        with pytest.raises(httpx.TransportError):
            running.result(PATIENCE_S)
    with ServerProcess(demo_engine, states=states) as server:
        listed = server.client.get("/v1/states").json()["data"]
        assert listed == [before]
        whole = complete(server, prompt=PROMPT + " universally").json()["choices"][0]["text"]
        onward = complete(server, prompt=" universally", state="a").json()["choices"][0]["text"]
        assert onward == whole


def test_a_log_line_is_one_json_object(demo_engine: Path) -> None:
    with ServerProcess(demo_engine) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = client.completions.create(model="demo", prompt=PROMPT, stream=True)
            text = "".join(chunk.choices[0].text for chunk in stream)
        line = server.wait_for("request")
        assert line["path"] == "/v1/completions"
        assert PROMPT not in json.dumps(line)
        assert text not in json.dumps(line)
        server.process.send_signal(signal.SIGINT)
        server.wait_for("stopped")
        assert server.end() == 0
        assert server.log.empty()


def test_an_engine_whose_weights_were_overwritten_is_not_served_again(
    demo_engine: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(demo_engine.parent, folder)
    with ServerProcess(folder / "engine") as server:
        with (folder / "bundle" / "weights.safetensors").open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"\0" * 100)
        assert_refused(complete(server), 503, "must be restarted")
    code, message = serve(folder / "engine")
    assert code == errors.ArtifactCorruptError.exit_code
    assert "has changed" in message


def serve(*words: object) -> tuple[int, str]:
    """Runs `mamba-orin serve`, which is expected to refuse; returns exit code and message."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "serve", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=Path(__file__).parents[2],
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--port", "70000"], "--port is 70000"),
        (["--api-key-file", "/nowhere"], "cannot read --api-key-file"),
        (["--max-queue", "0"], "--max-queue is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_loading(
    tmp_path: Path, words: list[str], expected: str
) -> None:
    code, message = serve(tmp_path / "no engine", *words)
    assert code == errors.UsageError.exit_code
    assert expected in message
    assert "\n  fix: " in message


def test_an_engine_without_a_tokenizer_is_refused(engine: Path) -> None:
    code, message = serve(engine, "--port", "0")
    assert code == errors.UsageError.exit_code
    assert "has no tokenizer" in message
