# SPDX-License-Identifier: MIT
"""Simulated boards that run real images, and a machine for the balancer."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.boards.engine import Engine, Network
from tests.boards.fleet import Fleet
from tests.boards.simulated import Board
from tests.containers.images import KEY

NETWORK = Network("served-boards", "10.215.0.0/24")
BALANCER = "balancer"
FOLDERS = ("/var/lib/mamba-orin", "/etc/mamba-orin")
_DOCKER_UNIT = """\
[Unit]
Description=The engine, which runs outside of this board
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""
# Of HAProxy and what it needs beside the base system.
_PACKAGES = ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")


class ServedFleet(Fleet):
    """Boards with Docker, and beside them a machine for the balancer.

    Args:
        engine: Runs the boards and, beside them, their containers.
        names: Names of the boards.
    """

    network = NETWORK

    def __init__(self, engine: Engine, names: Iterable[str]) -> None:
        super().__init__(engine, [*(Board(name) for name in names), Board(BALANCER)])

    def __enter__(self) -> ServedFleet:
        shutil.rmtree(self._outside(""), ignore_errors=True)
        super().__enter__()
        for name in self.boards:
            self._equip(name)
        return self

    def __exit__(self, *_: object) -> None:
        ours = [
            name
            for name in self.engine.containers()
            if name.startswith("mamba-orin-inference-") or name in self.boards
        ]
        self.engine.docker("rm", "--force", "--volumes", *ours)

    def options(self, name: str) -> tuple[str, ...]:
        """The engine's socket, and folders that lie where the engine finds them too."""
        mounts = [f"{self.engine.work}/docker.sock:/srv/docker.sock"]
        for folder in FOLDERS:
            place = self._outside(name, folder)
            place.mkdir(parents=True)
            mounts.append(f"{place}:{folder}")
        return tuple(word for mount in mounts for word in ("--volume", mount))

    def deploy(self, *arguments: str, tag: str, **variables: Any) -> Any:
        """Runs deploy.yml."""
        return self.play("deploy.yml", *arguments, variables=variables, tag=tag)

    def unit(self, name: str) -> str:
        """The unit that a board has."""
        return self.run_in(name, "cat /etc/systemd/system/mamba-orin-inference.service")

    def _outside(self, name: str, folder: str = "") -> Path:
        return self.engine.work / "folders" / name / folder.lstrip("/")

    def _equip(self, name: str) -> None:
        client = shutil.which("docker")
        assert client is not None
        files = {
            "srv/docker-client": (Path(client).read_bytes(), 0o755),
            "srv/folders": (str(self._outside(name)).encode(), 0o644),
            "usr/bin/docker": (Path(__file__).with_name("docker_on_board").read_bytes(), 0o755),
            "etc/systemd/system/docker.service": (_DOCKER_UNIT.encode(), 0o644),
        }
        if name == BALANCER:
            files |= {f"srv/{deb.name}": (deb.read_bytes(), 0o644) for deb in self._packages()}
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, (content, mode) in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), mode
                tar.addfile(entry, io.BytesIO(content))
        self.engine.copy(name, archive.getvalue())
        self.run_in(name, "systemctl enable --now docker.service")
        if name == BALANCER:
            self.run_in(name, "dpkg --install /srv/*.deb", timeout=300)

    def _packages(self) -> list[Path]:
        """Debian's HAProxy: a board of the simulation reaches no repository but its own."""
        place = self.engine.work / "packages"
        place.mkdir(exist_ok=True)
        if not list(place.glob("*.deb")):
            subprocess.run(
                ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *_PACKAGES],
                cwd=place, check=True, capture_output=True,
            )  # fmt: skip
        return sorted(place.glob("*.deb"))

    def _write_inventory(self, place: Path) -> None:
        super()._write_inventory(place)
        path = place / "fleet.yml"
        fleet = yaml.safe_load(path.read_text())
        for group in fleet["boards"]["children"].values():
            balancer = group["hosts"].pop(BALANCER, None)
            if balancer is not None:
                fleet["balancers"] = {"hosts": {BALANCER: balancer}}
        fleet["boards"]["vars"] = {
            "inference_api_keys": [KEY],
            "inference_memory": "2g",
            "inference_ready_s": 60,
        }
        path.write_text(yaml.safe_dump(fleet))


def image_id(engine: Engine, name: str) -> str:
    """The ID of an image, which names it as a digest does."""
    described: list[dict[str, Any]] = json.loads(engine.docker("image", "inspect", name))
    return str(described[0]["Id"])


def variant(engine: Engine, image: str, name: str, *lines: str) -> str:
    """An image made from another by some more lines of a Dockerfile; returns its ID."""
    text = "\n".join((f"FROM {image}", *lines)) + "\n"
    engine.docker("build", "--quiet", "--tag", name, "-", stdin=text.encode())
    return image_id(engine, name)
