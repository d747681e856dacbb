# SPDX-License-Identifier: MIT
"""Deploying to simulated boards: real images, real sshd and systemd, a real HAProxy in front."""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from tests.boards.engine import Engine
from tests.boards.fleet import Run, plain
from tests.containers.images import KEY, PATIENCE_S, ROOT
from tests.containers.served_fleet import BALANCER, ServedFleet, image_id, variant

pytestmark = pytest.mark.images

BOARDS = ("orin-1", "orin-2", "orin-3")
PROMPT = "It was a truth"


@pytest.fixture(scope="module")
def fleet(engine: Engine, native_image: str) -> Iterator[ServedFleet]:
    with ServedFleet(engine, BOARDS) as running:
        done = running.deploy(
            tag="deploy-first", inference_image=image_id(engine, native_image),
            deploy_batches=["100%"],
        )  # fmt: skip
        assert done.code == 0, done.output[-3000:]
        yield running


def client_of(fleet: ServedFleet, name: str) -> openai.OpenAI:
    port = 8080 if name == BALANCER else 8000
    return openai.OpenAI(
        base_url=f"http://{fleet.addresses[name]}:{port}/v1", api_key=KEY, timeout=PATIENCE_S,
        max_retries=0,
    )  # fmt: skip


def ask(client: openai.OpenAI, **options: object) -> str:
    asked = {"model": "demo", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **options}
    return str(client.completions.create(**asked).choices[0].text)  # type: ignore[call-overload]


@dataclass
class Crowd:
    """What clients met."""

    answers: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@contextmanager
def clients_at_work(fleet: ServedFleet, clients: int = 4) -> Iterator[Crowd]:
    """Clients that ask through the balancer, one request after the other, streaming."""
    crowd, is_over = Crowd(), threading.Event()

    def one() -> None:
        with client_of(fleet, BALANCER) as client:
            while not is_over.is_set():
                try:
                    stream = client.completions.create(
                        model="demo", prompt=PROMPT, max_tokens=24, temperature=0, stream=True
                    )
                    crowd.answers.append("".join(part.choices[0].text for part in stream))
                except openai.OpenAIError as error:
                    crowd.faults.append(repr(error))

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield crowd
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def changed(run: Run) -> dict[str, list[str]]:
    return {name: run.changed(name) for name in BOARDS}


def test_every_board_serves(fleet: ServedFleet) -> None:
    answers = []
    for name in BOARDS:
        with client_of(fleet, name) as client:
            answers.append(ask(client))
            assert fleet.run_in(name, "systemctl is-enabled mamba-orin-inference").strip()
    assert len(set(answers)) == 1


def test_who_has_no_key_is_refused(fleet: ServedFleet) -> None:
    with (
        openai.OpenAI(
            base_url=f"http://{fleet.addresses['orin-1']}:8000/v1", api_key="x"
        ) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        ask(client)
    assert fleet.run_in("orin-1", "stat -c %a /etc/mamba-orin/inference/api-keys").strip() == "440"


def test_a_second_run_changes_nothing(fleet: ServedFleet, native_image: str) -> None:
    done = fleet.deploy(
        tag="deploy-again", inference_image=image_id(fleet.engine, native_image),
        deploy_batches=["100%"],
    )  # fmt: skip
    assert done.code == 0, done.output[-2000:]
    assert changed(done) == {name: [] for name in BOARDS}


def test_the_balancer_spreads_and_returns_to_a_named_board(fleet: ServedFleet) -> None:
    with client_of(fleet, BALANCER) as client:
        met = set()
        for _ in range(60):
            raw = client.models.with_raw_response.list()
            met.add(raw.headers["X-Mamba-Orin-Board"])
        assert met == set(BOARDS)
        for name in BOARDS:
            raw = client.models.with_raw_response.list(extra_headers={"X-Mamba-Orin-Board": name})
            assert raw.headers["X-Mamba-Orin-Board"] == name


def test_check_mode_changes_nothing(fleet: ServedFleet, native_image: str) -> None:
    before = [fleet.unit(name) for name in BOARDS]
    target = variant(fleet.engine, native_image, "mamba-orin-test:checked", "LABEL test=checked")
    done = fleet.deploy("--check", tag="deploy-check", inference_image=target)
    assert done.code == 0, done.output[-2000:]
    assert "inference: Install the unit" in done.changed("orin-1")
    assert [fleet.unit(name) for name in BOARDS] == before


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"inference_image": "mamba-orin:latest"}, "'mamba-orin:latest', which is no digest"),
        ({"inference_image": ""}, "which is no digest"),
        ({"inference_api_keys": []}, "listen on 0.0.0.0 without a key"),
        ({"inference_port": 80}, "must be 1024 to 65535"),
        (
            {"inference_image": "sha256:" + "0" * 64, "inference_image_archive": "none.tar"},
            "none.tar",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_changes(
    fleet: ServedFleet, native_image: str, variables: dict[str, object], words: str
) -> None:
    sane = {"inference_image": image_id(fleet.engine, native_image)}
    done = fleet.deploy(tag="deploy-refused", **{**sane, **variables})
    assert done.code != 0
    assert words in plain(done.reason("orin-1"))
    assert changed(done) == {name: [] for name in BOARDS}
    assert not done.boards["orin-3"]["begun"]


def test_an_image_for_another_jetson_linux_is_refused(
    fleet: ServedFleet, native_image: str
) -> None:
    other = variant(
        fleet.engine, native_image, "mamba-orin-test:other-l4t",
        'LABEL mamba-orin.l4t="39.2.0 39.2.1"',
    )  # fmt: skip
    done = fleet.deploy(tag="deploy-other-l4t", inference_image=other)
    assert done.code != 0
    assert "made for Jetson Linux 39.2.0 39.2.1, this board has 36.5.0" in done.reason("orin-1")
    assert changed(done) == {name: [] for name in BOARDS}


def test_clients_notice_nothing_of_a_rolling_deploy(fleet: ServedFleet, native_image: str) -> None:
    newer = variant(fleet.engine, native_image, "mamba-orin-test:newer", "LABEL test=newer")
    with clients_at_work(fleet) as crowd:
        done = fleet.deploy(tag="deploy-newer", inference_image=newer, deploy_batches=[1, 1, 1])
    assert done.code == 0, done.output[-3000:]
    assert crowd.faults == []
    assert len(crowd.answers) > 10
    assert len(set(crowd.answers)) == 1
    for name in BOARDS:
        assert newer in fleet.unit(name)
        assert running_image(fleet, name) == newer


def test_an_image_that_does_not_become_ready_is_taken_back(
    fleet: ServedFleet, native_image: str
) -> None:
    before = {name: running_image(fleet, name) for name in BOARDS}
    broken = variant(
        fleet.engine, native_image, "mamba-orin-test:broken",
        "ENV MAMBA_ORIN_SERVE_ENGINE=/models/not-there",
    )  # fmt: skip
    with clients_at_work(fleet) as crowd:
        done = fleet.deploy(
            tag="deploy-broken", inference_image=broken, deploy_batches=[1, 2], inference_ready_s=15
        )
    assert done.code != 0
    reason = plain(done.reason("orin-1"))
    assert f"{broken} did not become ready" in reason
    assert "serves with the image and settings that worked before" in reason
    assert "/models/not-there" in reason, "the end of the log says why"
    assert not done.boards["orin-2"]["begun"]
    assert {name: running_image(fleet, name) for name in BOARDS} == before
    assert crowd.faults == []
    for name in BOARDS:
        with client_of(fleet, name) as client:
            assert ask(client)


def test_a_board_without_a_registry_gets_the_image_as_a_file(
    fleet: ServedFleet, native_image: str, tmp_path: Path
) -> None:
    del native_image
    before = running_image(fleet, "orin-1")
    # An image without any layer cannot be saved.
    empty = variant(fleet.engine, "scratch", "mamba-orin-test:empty", "WORKDIR /empty")
    archive = tmp_path / "image.tar"
    fleet.engine.docker("save", "--output", str(archive), empty)
    fleet.engine.docker("rmi", "--force", empty)
    wanted = {"inference_image": empty, "inference_image_archive": str(archive)}
    done = fleet.deploy(tag="deploy-archive", inference_ready_s=5, **wanted)
    assert "inference: Load it" in done.changed("orin-1")
    assert f"{empty} did not become ready" in plain(done.reason("orin-1")), "it is empty"
    assert running_image(fleet, "orin-1") == before
    wanted["inference_image"] = "sha256:" + "0" * 64
    done = fleet.deploy(tag="deploy-wrong-archive", **wanted)
    assert "holds another image than sha256:000" in plain(done.reason("orin-1"))
    assert running_image(fleet, "orin-1") == before


def test_a_model_is_copied_once_and_its_engine_built_on_the_board(
    fleet: ServedFleet, native_image: str
) -> None:
    wanted = {
        "inference_image": image_id(fleet.engine, native_image),
        "inference_bundle": str(ROOT / "build/demo/bundle"),
        "inference_options": {"model_name": "another-name", "max_queue": 3},
        "deploy_batches": ["100%"],
    }
    done = fleet.deploy(tag="deploy-model", **wanted)
    assert done.code == 0, done.output[-3000:]
    assert "inference: Build the engine on the board" in done.changed("orin-1")
    for name in BOARDS:
        with client_of(fleet, name) as client:
            assert [model.id for model in client.models.list()] == ["another-name"]
    again = fleet.deploy(tag="deploy-model-again", **wanted)
    assert changed(again) == {name: [] for name in BOARDS}


def test_named_states_outlive_a_deploy(fleet: ServedFleet, native_image: str) -> None:
    with client_of(fleet, "orin-2") as client:
        model = next(iter(client.models.list())).id
        body = {"name": "kept", "prompt": PROMPT, "overwrite": True}
        client.post("/states", body=body, cast_to=object)
        whole = ask(client, model=model, prompt=f"{PROMPT} universally")
    newest = variant(fleet.engine, native_image, "mamba-orin-test:newest", "LABEL test=newest")
    done = fleet.deploy(tag="deploy-newest", inference_image=newest, deploy_batches=["100%"])
    assert done.code == 0, done.output[-3000:]
    with client_of(fleet, "orin-2") as client:
        rest = ask(client, prompt=" universally", extra_body={"state": "kept"})
        assert rest == whole


def test_a_server_that_is_killed_comes_back(fleet: ServedFleet) -> None:
    name = "mamba-orin-inference-orin-3"
    before = fleet.engine.docker("inspect", "--format", "{{.Id}}", name)
    fleet.engine.docker("kill", "--signal", "KILL", name)
    for _ in itertools.takewhile(lambda _: not is_another(fleet, name, before), range(600)):
        subprocess.run(["sleep", "0.2"], check=True)
    with client_of(fleet, "orin-3") as client:
        assert ask(client)


def is_another(fleet: ServedFleet, name: str, before: str) -> bool:
    ready = "python3 -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:8000/readyz\")'"
    try:
        now = fleet.engine.docker("inspect", "--format", "{{.Id}}", name)
    except RuntimeError:
        return False
    return now != before and fleet.succeeds("orin-3", ready)


def test_reset_takes_it_away_but_for_models_and_states(fleet: ServedFleet) -> None:
    done = fleet.play(
        "reset.yml", limit=["orin-3"], variables={"reset_confirm": True}, tag="reset-inference"
    )
    assert not fleet.succeeds("orin-3", "test -e /etc/systemd/system/mamba-orin-inference.service")
    assert not fleet.port_is_open("orin-3", 8000), done.output[-500:]
    assert fleet.succeeds("orin-3", "test -e /var/lib/mamba-orin/models")


def running_image(fleet: ServedFleet, name: str) -> str:
    return fleet.engine.docker(
        "inspect", "--format", "{{.Image}}", f"mamba-orin-inference-{name}"
    ).strip()
