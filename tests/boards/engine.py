# SPDX-License-Identifier: MIT
"""A container engine of the tests' own.

All of it lies below one directory: sockets, images, containers. Nothing of the machine's own Docker
is used or touched, and engines below different directories run beside each other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The Debian that images of tests are made of.
SUITE = "bookworm"
# The network of a machine without firewall rules: none may be set for it in a sandbox.
OPTIONS = ("--iptables=false", "--ip6tables=false", "--bridge=none")


class NoEngineError(Exception):
    """No container engine can run here; the message says why."""


@dataclass(frozen=True)
class Network:
    """A bridge network, on which every container has an address of its own.

    Attributes:
        name: Its name in the engine.
        subnet: Addresses, such as 10.213.0.0/24; two engines of one machine must differ.
    """

    name: str
    subnet: str


def run(*command: str, timeout: float = 600, stdin: bytes | None = None) -> str:
    """Runs a command that must succeed.

    Raises:
        RuntimeError: It did not; the message has the end of what it wrote.
    """
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
    if done.returncode != 0:
        message = (done.stderr or done.stdout).decode(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)[:200]}: exit {done.returncode}: {message}")
    return done.stdout.decode(errors="replace")


class Engine:
    """A running Docker daemon."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.socket = f"unix://{work}/docker.sock"

    def docker(self, *arguments: str, timeout: float = 600, stdin: bytes | None = None) -> str:
        """Runs the client against this daemon."""
        return run("docker", "--host", self.socket, *arguments, timeout=timeout, stdin=stdin)

    def copy(self, container: str, archive: bytes) -> None:
        """Lays an archive over a container's root."""
        self.docker("cp", "-", f"{container}:/", stdin=archive)

    def images(self) -> list[str]:
        """Names of the images that are there."""
        return self.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()

    def containers(self) -> list[str]:
        """Names of all containers, running or not."""
        return self.docker("ps", "--all", "--format", "{{.Names}}").split()


@contextmanager
def started_engine(work: Path, networks: Sequence[Network] = ()) -> Iterator[Engine]:
    """Starts a daemon and ends it, by the process that was started.

    Args:
        work: Where everything of it lies; images stay there for the next time.
        networks: Networks to have.

    Raises:
        NoEngineError: The machine does not let it.
    """
    if os.geteuid() != 0:
        raise NoEngineError("a container engine takes root")
    install_packages({"dockerd": "docker.io", "docker": "docker.io"})
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # one daemon below one directory
    log = (work / "dockerd.log").open("wb")
    daemon = subprocess.Popen(
        ["dockerd", "--data-root", f"{work}/data", "--exec-root", f"{work}/run",
         "--pidfile", f"{work}/docker.pid", "--host", f"unix://{work}/docker.sock", *OPTIONS],
        stdout=log, stderr=log,
    )  # fmt: skip
    engine = Engine(work)
    try:
        _wait(engine, daemon)
        _clear(engine)  # of what a run that was killed has left
        for network in networks:
            engine.docker("network", "create", "--subnet", network.subnet, network.name)
        yield engine
        _clear(engine)
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)
        log.close()
        lock.close()


def _clear(engine: Engine) -> None:
    """Removes containers and networks, whose bridges would stay on the machine; images stay."""
    if engine.containers():
        engine.docker("rm", "--force", "--volumes", *engine.containers())
    engine.docker("network", "prune", "--force")


def _wait(engine: Engine, daemon: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        if daemon.poll() is not None:
            break
        try:
            engine.docker("version", timeout=10)
        except (RuntimeError, subprocess.TimeoutExpired):
            time.sleep(0.5)
        else:
            return
    tail = (engine.work / "dockerd.log").read_text(errors="replace")[-500:]
    raise NoEngineError(f"dockerd does not start here: {tail}")


def install_packages(programs: dict[str, str]) -> None:
    """Installs the Debian packages of the programs that are not there.

    Raises:
        NoEngineError: They cannot be installed.
    """
    packages = sorted(
        {package for program, package in programs.items() if not shutil.which(program)}
    )
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise NoEngineError(f"needed and not there: {', '.join(packages)}")
    wait = "DPkg::Lock::Timeout=600"
    try:
        run("apt-get", "-o", wait, "update", "-qq")
        run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", wait, "install", "-y", "-qq",
            "--no-install-recommends", *packages)  # fmt: skip
    except RuntimeError as error:
        raise NoEngineError(f"cannot install {', '.join(packages)}: {error}") from error
