# SPDX-License-Identifier: MIT
"""The image as a stranger meets it: built by a real engine, run by it, asked by OpenAI's client."""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import __version__
from tests.boards.engine import Engine
from tests.containers.images import KEY, ROOT, Container, container, run_once

pytestmark = pytest.mark.images

PROMPT = "It was a truth"
# What the image adds to its base, bytes. README names it too.
SIZE_BUDGET = 450_000_000
DEMO_ENGINE = "/usr/share/mamba-orin/demo/engine"


@pytest.fixture(scope="module")
def server(engine: Engine, image: str) -> Iterator[Container]:
    with container(engine, image, options=("--health-interval", "1s")) as running:
        yield running


@pytest.fixture(scope="module")
def description(engine: Engine, image: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(engine.docker("image", "inspect", image))[0]
    return described


# --- what it is made of ----------------------------------------------------------------------


def test_it_says_what_it_is(description: dict[str, Any], architecture: str) -> None:
    config = description["Config"]
    assert description["Architecture"] == architecture
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/opt/mamba-orin/bin/mamba-orin"]
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["Volumes"]) == ["/states"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "mamba-orin"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert labels["mamba-orin.backend"] == "onnxruntime"
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert labels["org.opencontainers.image.revision"].startswith(head)


def test_it_keeps_within_its_size(engine: Engine, description: dict[str, Any]) -> None:
    base = f"debian-base:bookworm-{description['Architecture']}"
    size = json.loads(engine.docker("image", "inspect", base))[0]["Size"]
    assert description["Size"] - size < SIZE_BUDGET


def test_it_holds_nothing_to_build_or_install_with(engine: Engine, image: str) -> None:
    tools = "cc gcc g++ c++ clang ld as make cmake nvcc pip pip3 git curl wget"
    shell = f"for tool in {tools}; do command -v $tool; done; true"
    assert run_once(engine, image, "-c", shell, options=("--entrypoint", "sh")) == ""
    find = (
        "from importlib.util import find_spec as f; "
        "print([m for m in ('torch', 'transformers', 'pip', 'setuptools', 'pytest') if f(m)])"
    )
    python = ("--entrypoint", "/opt/mamba-orin/bin/python")
    assert run_once(engine, image, "-c", find, options=python).strip() == "[]"


def test_it_holds_no_secret_of_its_build(engine: Engine, image: str) -> None:
    left = "find /run /etc/pip.conf /root/.cache -type f -size +0 2>/dev/null; true"
    user = ("--user", "0", "--entrypoint", "sh")
    assert run_once(engine, image, "-c", left, options=user) == ""
    assert "certificates" not in engine.docker("history", "--no-trunc", "--quiet", image)


def test_nothing_in_it_can_be_changed_by_who_runs_in_it(engine: Engine, image: str) -> None:
    shell = "find / -xdev -writable -not -path '/proc/*' -not -path '/dev/*' -type f; true"
    assert run_once(engine, image, "-c", shell, options=("--entrypoint", "sh")) == ""


# --- as it runs ------------------------------------------------------------------------------


def test_openais_client_gets_its_answers(server: Container) -> None:
    with server.client() as client:
        assert [model.id for model in client.models.list()] == ["demo"]
        answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=24)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 24
        chat = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
        status = client.chat.completions.with_raw_response
        with pytest.raises(Exception, match="no chat template"):
            status.create(**chat)  # type: ignore[call-overload]


@pytest.mark.parametrize("seed", range(3))
def test_what_it_streams_is_what_it_answers(server: Container, seed: int) -> None:
    asked: dict[str, Any] = {
        "model": "demo", "prompt": PROMPT, "max_tokens": 48, "temperature": 1.0, "seed": seed,
    }  # fmt: skip
    with server.client() as client:
        whole = client.completions.create(**asked).choices[0].text
        parts = [part.choices[0].text for part in client.completions.create(**asked, stream=True)]
    assert len(parts) > 10
    assert "".join(parts).encode() == whole.encode()


def test_docker_finds_it_healthy_because_it_computes(server: Container) -> None:
    server.wait_until(lambda: server.inspect()["State"]["Health"]["Status"] == "healthy")
    last = server.inspect()["State"]["Health"]["Log"][-1]
    assert json.loads(last["Output"]) == {"status": "alive", "model": "computed"}


def test_it_runs_as_nobody_in_particular(engine: Engine, image: str, server: Container) -> None:
    assert server.execute("id", "-u").strip() == "10001"
    status = server.execute("cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    said = run_once(engine, image, "board", "--json", options=("--user", "54321:54321"))
    assert json.loads(said)["operating_system"].startswith("Debian")


def test_its_log_is_json_and_has_no_key(server: Container) -> None:
    server.get("/v1/models")
    events = server.events()
    assert events[0]["event"] == "listening"
    assert KEY not in server.log()


def test_without_a_key_it_does_not_open_its_door(engine: Engine, image: str) -> None:
    # Docker itself says a line before ours where the architecture is another one.
    words = r"(?s)exit 2.*there is no API key\s+fix: [^\n]*API_KEY"
    with pytest.raises(RuntimeError, match=words) as told:
        run_once(engine, image)
    assert "Traceback" not in str(told.value)


def test_the_key_may_come_from_a_file(engine: Engine, native_image: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("another key\n")
    (tmp_path / "key").chmod(0o444)
    mounted = (
        *("--volume", f"{tmp_path / 'key'}:/run/secrets/key:ro"),
        *("--env", "MAMBA_ORIN_SERVE_API_KEY_FILE=/run/secrets/key"),
    )
    with container(engine, native_image, options=mounted) as running:
        assert running.get("/v1/models")[0] == 401
        assert running.get("/healthz/model")[0] == 200


def test_states_outlive_kill_9_and_the_container(engine: Engine, native_image: str) -> None:
    name = f"states-{uuid.uuid4().hex[:8]}"
    volume = ("--volume", f"{name}:/states")
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 20, "temperature": 0}
    try:
        with container(engine, native_image, options=volume) as running, running.client() as client:
            made = client.post("/states", body={"name": "one", "prompt": PROMPT}, cast_to=object)
            whole = client.completions.create(prompt=f"{PROMPT} universally", **asked)
            engine.docker("kill", "--signal", "KILL", running.name)
            assert not running.inspect()["State"]["Running"]
            running.start()
            assert json.loads(running.get("/v1/states/one")[1]) == made
        with container(engine, native_image, options=volume) as another, another.client() as client:
            again = client.completions.create(
                prompt=" universally", extra_body={"state": "one"}, **asked
            )
        assert again.choices[0].text == whole.choices[0].text
    finally:
        engine.docker("volume", "rm", name)


def test_docker_stop_lets_answers_finish(engine: Engine, image: str) -> None:
    # An emulated machine needs longer than the server's own grace time.
    patient = ("--env", "MAMBA_ORIN_SERVE_GRACE_SECONDS=280")
    with container(engine, image, options=patient) as running, running.client() as client:
        stream = client.completions.create(
            model="demo", prompt=PROMPT, max_tokens=400, temperature=0, stream=True
        )
        text = next(stream).choices[0].text
        stop = threading.Thread(
            target=engine.docker, args=("stop", "--time", "290", running.name), daemon=True
        )
        stop.start()
        running.wait_until(lambda: any(e["event"] == "draining" for e in running.events()))
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert len(text + "".join(part.choices[0].text for part in rest)) > 400
        stop.join()
        assert running.inspect()["State"]["ExitCode"] == 0
        assert running.events()[-1]["event"] == "stopped"


def test_the_engine_job_builds_and_the_server_takes_it(
    engine: Engine, native_image: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    subprocess.run(["cp", "-r", ROOT / "build/demo/bundle", models / "bundle"], check=True)
    for path in (models, *models.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    built = run_once(
        engine, native_image, "build", "/models/bundle", "--output", "/models/engine",
        options=("--volume", f"{models}:/models", "--read-only"),
    )  # fmt: skip
    assert built == ""
    mounted = (
        *("--volume", f"{models}:/models:ro"),
        *("--env", "MAMBA_ORIN_SERVE_ENGINE=/models/engine"),
    )
    with container(engine, native_image, options=mounted) as running, running.client() as client:
        answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=8)
        assert answer.choices[0].text


def test_a_model_that_is_not_there_is_explained(engine: Engine, native_image: str) -> None:
    options = ("--env", "MAMBA_ORIN_API_KEY=x", "--env", "MAMBA_ORIN_SERVE_ENGINE=/models/none")
    with pytest.raises(RuntimeError, match=r"/models/none.*\n  fix: "):
        run_once(engine, native_image, options=options)
