# SPDX-License-Identifier: MIT
"""What the tests of the server share: a gate in front of a model, and servers on loopback."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from pipeline.engine import load_engine
from pipeline.serve import Server, create_server
from pipeline.server_settings import ServerSettings, listen
from pipeline.session import Floats, Session, State, TokenIds

# Nothing here takes this long; it only ends a test that would hang.
PATIENCE_S = 60.0


class GatedSession:
    """Passes calls on to a model, one at a time as the test allows, and notes them.

    Attributes:
        calls: ("prefill", tokens) or ("step", rows), in order.
    """

    def __init__(self, inner: Session, *, is_open: bool = True) -> None:
        self._inner = inner
        self.architecture = inner.architecture
        self.backend = inner.backend
        self.calls: list[tuple[str, int]] = []
        self.faults: dict[str, Exception] = {}
        self._is_open = is_open
        self._permits = threading.Semaphore(0)
        self._arrivals: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def close(self) -> None:
        """Lets no further call pass."""
        self._is_open = False

    def open(self) -> None:
        """Lets every call pass from now on."""
        self._is_open = True
        self._permits.release()

    def next_call(self) -> tuple[str, int]:
        """Waits until a call stands at the closed gate; returns what it is."""
        return self._arrivals.get(timeout=PATIENCE_S)

    def let_pass(self) -> None:
        """Lets the call at the gate pass."""
        self._permits.release()

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        """See `Session.prefill`."""
        self._note("prefill", token_ids.shape[1])
        return self._inner.prefill(token_ids, state, all_logits=all_logits)

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        """See `Session.step`."""
        self._note("step", len(token_ids))
        return self._inner.step(token_ids, state)

    def _note(self, kind: str, size: int) -> None:
        self.calls.append((kind, size))
        if not self._is_open:
            self._arrivals.put((kind, size))
            assert self._permits.acquire(timeout=PATIENCE_S)
        if kind in self.faults:
            raise self.faults.pop(kind)


class LoopbackServer:
    """A server in this process, on a real socket.

    Attributes:
        url: Where it listens.
        gate: In front of its model.
        server: The server.
        client: Sends requests to it.
    """

    def __init__(self, url: str, gate: GatedSession, server: Server) -> None:
        self.url = url
        self.gate = gate
        self.server = server
        self.client = httpx.Client(base_url=url, timeout=PATIENCE_S)

    def complete(self, prompt: object, **options: Any) -> httpx.Response:
        """POST /v1/completions; greedy unless the options say otherwise."""
        body = {"model": "demo", "prompt": prompt, "temperature": 0, **options}
        return self.client.post("/v1/completions", json=body)

    def text(self, prompt: object, **options: Any) -> str:
        """The text of a completion."""
        answer = self.complete(prompt, **options)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def metric(self, line: str) -> float:
        """The value of one line of /metrics."""
        for found in self.client.get("/metrics").text.splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


@contextmanager
def loopback_server(engine: Path, **settings: Any) -> Iterator[LoopbackServer]:
    """Serves an engine from a thread of this process."""
    loaded = load_engine(engine, threads=1)
    gate = GatedSession(loaded.session)
    chosen = ServerSettings(port=0, **settings)
    server = create_server(replace(loaded, session=gate), chosen)
    gate.calls.clear()
    server.scheduler.start()
    with listen(chosen) as socket:
        config = uvicorn.Config(server.application, log_config=None, access_log=False)
        runner = uvicorn.Server(config)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [socket]})
        thread.start()
        running = LoopbackServer(f"http://127.0.0.1:{socket.getsockname()[1]}", gate, server)
        try:
            yield running
        finally:
            running.client.close()
            gate.open()
            server.scheduler.stop()
            runner.should_exit = True
            thread.join(PATIENCE_S)


def assert_refused(answer: httpx.Response, status: int, *parts: str) -> None:
    """An error in OpenAI's shape that says what is wrong."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for part in parts:
        assert part in error["message"]


# Runs the server with a gate in front of the model that stdin opens and closes. The log says
# what passes, so a test knows where the server stands.
_GATED_SERVER = """
import json, sys, threading
from dataclasses import replace
from pathlib import Path
import pipeline.http_server as http_server
from pipeline.engine import load_engine
from pipeline.server_settings import ServerSettings, read_api_keys
from tests.pipeline.serving import GatedSession

folder, values = Path(sys.argv[1]), json.loads(sys.argv[2])
gates = []

def load_gated(folder, threads):
    loaded = load_engine(folder, threads)
    gates.append(GatedSession(loaded.session))
    return replace(loaded, session=gates[0])

def create_gated(loaded, settings):
    server = create_server(loaded, settings)
    if values.get("gated"):
        gates[0].close()
    return server

def obey():
    for line in sys.stdin:
        if line.strip() == "open":
            gates[0].open()
        elif line.strip() == "next":
            print(*gates[0].next_call(), flush=True)
            gates[0].let_pass()

create_server = http_server.create_server
http_server.load_engine, http_server.create_server = load_gated, create_gated
threading.Thread(target=obey, daemon=True).start()
if values.get("states"):
    values["states_folder"] = Path(values["states"])
chosen = {k: v for k, v in values.items() if k not in ("gated", "states")}
http_server.run_server(folder, 1, ServerSettings(port=0, **chosen))
"""


class ServerProcess:
    """A server in a process of its own, to be killed.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, engine: Path, **settings: Any) -> None:
        words = [sys.executable, "-c", _GATED_SERVER, str(engine), json.dumps(settings)]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[2],
        )
        self.log: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.url = self.wait_for("listening")["url"]
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.put(json.loads(line))
            except ValueError:
                self.log.put({"event": "not json", "line": line})

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line of the log with this event."""
        while True:
            line = self.log.get(timeout=PATIENCE_S)
            if line["event"] == event:
                return line

    def pass_one(self) -> str:
        """Waits for a call at the gate, lets it pass, and says what it was."""
        self._tell("next")
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def open(self) -> None:
        """Opens the gate for good."""
        self._tell("open")

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Waits for the process to end; returns its exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
