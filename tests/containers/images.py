# SPDX-License-Identifier: MIT
"""Images built by the repository's own command, and containers that run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from tests.boards.engine import Engine, Network
from tests.containers.base_system import base_image

ROOT = Path(__file__).parents[2]
NETWORK = Network("images", "10.214.0.0/24")
KEY = "correct horse"
# Nothing here takes this long, emulated or not; it only ends a test that would hang.
PATIENCE_S = 300.0
# ONNX Runtime's word on qemu's CPU, which has no vendor; it comes before there is any logger.
_EMULATED = "onnxruntime cpuid_info warning: Unknown CPU vendor."
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def work_directory() -> Path:
    """Where everything lies; kept between runs, as a first build takes minutes."""
    default = Path.home() / ".cache/mamba-orin/images"
    return Path(os.environ.get("MAMBA_ORIN_IMAGES_DIRECTORY", default))


def build_image(engine: Engine, target: str, architecture: str, *options: str) -> str:
    """Builds a target of docker-bake.json for an architecture; returns the image's name.

    The base is made here, and the builds trust whom this machine trusts.
    """
    name = f"mamba-orin-test:{target}-{architecture}"
    base = base_image(engine, architecture)
    extra = ["--network", "host", "--tag", name, *options]
    extra += ["--build-arg", f"BASE={base}", "--build-arg", f"TOOLCHAIN_BASE={base}"]
    if _CERTIFICATES.exists():
        settings = engine.work / "pip.conf"
        settings.write_text("[global]\ncert = /run/secrets/certificates\n")
        extra += ["--secret", f"id=pip_conf,src={settings}"]
        extra += ["--secret", f"id=certificates,src={_CERTIFICATES}"]
    log = engine.work / f"build-{target}-{architecture}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, ROOT / "containers" / "build.py", target,
             "--platform", f"linux/{architecture}", "--", *extra],
            stdout=output, stderr=output, check=False,
            # A newer client may be before the distribution's own and lack the plugin buildx,
            # without which it does not use BuildKit.
            env={
                **os.environ, "DOCKER_HOST": engine.socket, "BUILDKIT_PROGRESS": "plain",
                "PATH": f"/usr/bin:{os.environ['PATH']}",
            },
        )  # fmt: skip
    assert done.returncode == 0, log.read_text(errors="replace")[-3000:]
    return name


def run_once(engine: Engine, image: str, *words: str, options: tuple[str, ...] = ()) -> str:
    """Runs a command in a fresh container; returns what it prints."""
    return engine.docker("run", "--rm", "--network", "none", *options, image, *words)


class Container:
    """A server that runs in a container of the test's own.

    Attributes:
        name: Its name in the engine.
        url: Where it listens.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        self.url = ""

    def inspect(self) -> dict[str, Any]:
        """What the engine knows of it."""
        known: dict[str, Any] = json.loads(self._engine.docker("inspect", self.name))[0]
        return known

    def start(self) -> None:
        """Starts it, again perhaps, and waits until it is ready."""
        self._engine.docker("start", self.name)
        address = self.inspect()["NetworkSettings"]["Networks"][NETWORK.name]["IPAddress"]
        self.url = f"http://{address}:8000"
        self.wait_until(lambda: self.get("/readyz")[0] == 200)

    def wait_until(self, condition: Any) -> None:
        """Waits while the container runs and the condition does not hold."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            state = self.inspect()["State"]
            assert state["Running"], f"it ended with {state['ExitCode']}: {self.log()[-1000:]}"
            assert time.monotonic() < end, self.log()[-1000:]
            time.sleep(0.2)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 when nobody answers."""
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {KEY}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def client(self) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, timeout=PATIENCE_S, max_retries=0
        )

    def log(self) -> str:
        """All that it has written."""
        done = subprocess.run(
            ["docker", "--host", self._engine.socket, "logs", self.name],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def events(self) -> list[dict[str, Any]]:
        """Its log, line by line."""
        lines = self.log().splitlines()
        return [json.loads(line) for line in lines if not line.startswith(_EMULATED)]

    def execute(self, *words: str) -> str:
        """Runs a command inside."""
        return self._engine.docker("exec", self.name, *words)


@contextmanager
def container(
    engine: Engine, image: str, *words: str, options: tuple[str, ...] = ()
) -> Iterator[Container]:
    """A server that is ready, under the limits of the compose file; removed at the end."""
    running = Container(engine, f"serve-{uuid.uuid4().hex[:8]}")
    engine.docker(
        "create", "--name", running.name, "--network", NETWORK.name, "--read-only",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "256",
        "--env", f"MAMBA_ORIN_API_KEY={KEY}", *options, image, *words,
    )  # fmt: skip
    try:
        running.start()
        yield running
    finally:
        engine.docker("rm", "--force", "--volumes", running.name)
