# SPDX-License-Identifier: MIT
"""Simulated boards that run, and playbooks run against them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.boards.engine import Engine, Network
from tests.boards.image import HERE, ROOT, board_image, key_file
from tests.boards.simulated import Board, archive

# With another directory and another subnet a second fleet can run beside the first.
NETWORK = Network("boards", os.environ.get("MAMBA_ORIN_BOARDS_SUBNET", "10.213.0.0/24"))
KEY_SUM = "sha256:" + hashlib.sha256(b"a key\n").hexdigest()
WATCHERS = Path("/proc/sys/fs/inotify/max_user_instances")
COMMON_VARIABLES: dict[str, Any] = {
    "ansible_user": "nvidia",
    "board_facts_root": "/fake",
    "jetpack_packages_repository": "file:/srv/apt/jetson",
    "container_runtime_repository": "file:/srv/apt/docker",
    "container_runtime_key_url": "file:///srv/apt/docker/gpg",
    "container_runtime_key_checksum": KEY_SUM,
    "nvme_swap_format_allowed": True,
    "super_mode_fan_profile": "cool",
}


@dataclass
class Run:
    """One run of a playbook."""

    code: int
    output: str
    seconds: float
    peak_mib: int
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)

    def changed(self, name: str) -> list[str]:
        """Tasks that changed a board, or would."""
        return [f"{entry['role']}: {entry['task']}" for entry in self.boards[name]["changed"]]

    def reason(self, name: str) -> str:
        """Why a board failed; empty if it did not."""
        return " | ".join(entry["reason"] for entry in self.boards[name]["failed"])


class Fleet:
    """Boards that run, on a network of the engine."""

    network = NETWORK

    def __init__(self, engine: Engine, boards: Iterable[Board]) -> None:
        self.engine = engine
        self.boards = {board.name: board for board in boards}
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> Fleet:
        # Every systemd watches files, and the kernel's usual 128 watchers a user end at some ten boards.
        if int(WATCHERS.read_text()) < 8192:
            WATCHERS.write_text("8192")
        image = board_image(self.engine)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda board: self._start(image, board), self.boards.values()))
        return self

    def __exit__(self, *_: object) -> None:
        names = list(self.boards)
        self.engine.docker("rm", "--force", "--volumes", *names)

    def options(self, name: str) -> tuple[str, ...]:
        """What else `docker create` is told for a board."""
        del name
        return ()

    def run_in(self, name: str, command: str, timeout: float = 60) -> str:
        """Runs a shell command in a board, from outside of what Ansible does."""
        return self.engine.docker("exec", name, "sh", "-c", command, timeout=timeout)

    def succeeds(self, name: str, command: str) -> bool:
        """Whether a shell command in a board succeeds."""
        try:
            self.run_in(name, command)
        except RuntimeError:
            return False
        return True

    def port_is_open(self, name: str, port: int) -> bool:
        """Whether this machine can connect to a port of a board."""
        try:
            socket.create_connection((self.addresses[name], port), timeout=2).close()
        except OSError:
            return False
        return True

    def scrape(self, name: str) -> str:
        """What Prometheus would get."""
        url = f"http://{self.addresses[name]}:9101/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    def dangers(self, name: str) -> list[str]:
        """What was called on a board that can format, flash or take the power away."""
        return self.run_in(name, "cat /fake/dangers 2>/dev/null || true").splitlines()

    def boot(self, name: str) -> str:
        """Which boot of a board this is."""
        return self.run_in(name, "cat /proc/sys/kernel/random/boot_id").strip()

    def kill_at(self, name: str, task: str, after_s: float) -> bool:
        """Provisions a board until a task ("role: task"), and kills the run there.

        Returns:
            Whether it got there.
        """
        tag = f"killed-{name}"
        note = self.engine.work / "plays" / tag / "reached"
        note.unlink(missing_ok=True)
        self.play(
            "provision.yml",
            limit=[name],
            tag=tag,
            environment={
                "ANSIBLE_CALLBACK_PLUGINS": f"{ROOT}/playbooks/callback_plugins:{HERE}/callback_plugins",
                "ANSIBLE_CALLBACKS_ENABLED": "killed_at_task",
                "KILL_AT": task,
                "KILL_AFTER_S": str(after_s),
                "KILL_NOTE": str(note),
            },
        )
        return note.exists()

    def cut_power(self, name: str) -> None:
        """Ends everything on a board at once, and gives the power back."""
        self.engine.docker("kill", name)
        self.engine.docker("start", name)
        self._wait(name)

    def reboot(self, name: str) -> None:
        """Takes the power away and gives it back."""
        self.engine.docker("restart", "--time", "1", name)
        self._wait(name)

    def play(
        self,
        playbook: str,
        *arguments: str,
        limit: Iterable[str] = (),
        variables: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        tag: str = "run",
        sample_s: float = 10,
    ) -> Run:
        """Runs a playbook of the repository against these boards."""
        place = self.engine.work / "plays" / tag
        place.mkdir(parents=True, exist_ok=True)
        self._write_inventory(place / "inventory")
        summary, usage = place / "summary.json", place / "usage"
        summary.unlink(missing_ok=True)
        command = [
            "/usr/bin/env", "python3", "-c", _MEASURE, str(usage), str(sample_s),
            str(Path(sys.executable).parent / "ansible-playbook"), playbook,
            "--inventory", str(place / "inventory"), *arguments,
        ]  # fmt: skip
        if limit:
            command += ["--limit", ",".join(limit)]
        if variables:
            command += ["--extra-vars", json.dumps(variables)]
        began = time.monotonic()
        # To a file, so that one can watch it.
        with (place / "output.txt").open("w") as stream:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    "MAMBA_ORIN_SUMMARY": str(summary),
                    "ANSIBLE_HOST_KEY_CHECKING": "false",
                    "ANSIBLE_SSH_CONTROL_PATH_DIR": str(place / "cp"),
                    "ANSIBLE_FORCE_COLOR": "false",
                    "ANSIBLE_LOCAL_TEMP": str(place / "tmp"),
                    **(environment or {}),
                },
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=3000,
                check=False,
            )
        return Run(
            code=done.returncode,
            output=(place / "output.txt").read_text(),
            seconds=time.monotonic() - began,
            peak_mib=int(usage.read_text()) if usage.exists() else 0,
            boards=json.loads(summary.read_text()) if summary.exists() else {},
        )

    def snapshot(self, name: str) -> dict[str, str]:
        """What matters of a board's state, for one to be compared with another."""
        return {what: self.run_in(name, command) for what, command in _STATE.items()}

    def files(self, name: str) -> str:
        """Every file of a board with its sum, but those that change by themselves."""
        # What the image has is told by its name alone as long as it is as it was.
        ignored = re.compile(_CHANGES_BY_ITSELF)
        lines = sorted(self.engine.docker("diff", name).splitlines())
        paths = [line[2:] for line in lines]
        # A directory counts as changed when something in it has changed.
        folders = {str(parent) for path in paths for parent in Path(path).parents}
        differing = [
            line for line, path in zip(lines, paths, strict=True)
            if path not in folders and not ignored.search(line)
        ]  # fmt: skip
        return "\n".join([*differing, self.run_in(name, _OWN_FILES, timeout=300)])

    def _start(self, image: str, board: Board) -> None:
        docker = self.engine.docker
        number = list(self.boards).index(board.name) + 10
        address = self.network.subnet.replace("0/24", str(number))
        if board.name in self.engine.containers():
            docker("rm", "--force", "--volumes", board.name)
        docker(
            "create", "--name", board.name, "--hostname", board.name, "--network", self.network.name,
            "--ip", address, "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN",
            "--tmpfs", "/run", "--tmpfs", "/run/lock", "--env", "container=docker",
            "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--cgroupns=host",
            "--volume", "/fake/nvme", "--stop-signal", "SIGRTMIN+3",
            # A board that reboots comes back.
            "--restart", "always", *self.options(board.name), image,
        )  # fmt: skip
        self.engine.copy(board.name, archive(board))
        docker("start", board.name)
        self.addresses[board.name] = address
        self._wait(board.name)
        self.run_in(board.name, "cat /fake/dpkg-status >> /var/lib/dpkg/status")
        for command in _disk_commands(board):
            self.run_in(board.name, command)
        if board.root_is_read_only:
            # The root of a container cannot be mounted read-only while it runs, parts of it can.
            self.run_in(board.name, "for part in /etc /usr /opt /var/lib; do /usr/bin/mount --bind "
                        "$part $part && /usr/bin/mount -o remount,bind,ro $part; done")  # fmt: skip

    def _wait(self, name: str) -> None:
        for _ in range(1200):
            if self.succeeds(name, "systemctl is-active --quiet ssh.service"):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{name} does not come up: {self.engine.docker('logs', name)[-500:]}")

    def _write_inventory(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        variables = place / "group_vars"
        shutil.rmtree(variables, ignore_errors=True)
        shutil.copytree(ROOT / "inventory/group_vars", variables)
        groups: dict[str, Any] = {}
        for board in self.boards.values():
            hosts = groups.setdefault(board.group, {"hosts": {}})["hosts"]
            hosts[board.name] = {
                "ansible_host": self.addresses[board.name],
                "ansible_ssh_private_key_file": str(key_file(self.engine.work)),
                "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
                **COMMON_VARIABLES,
                **board.variables,
            }
        fleet = {"boards": {"children": groups}}
        (place / "fleet.yml").write_text(yaml.safe_dump(fleet))


def _disk_commands(board: Board) -> list[str]:
    if board.disk in ("absent", "root"):
        return []
    make = ["truncate --size 500G /fake/disk && ln -s /fake/disk /dev/nvme0n1"]
    if board.disk == "ours":
        make.append("/usr/sbin/mkfs.ext4 -q -F -L mamba-orin /dev/nvme0n1")
    if board.disk == "foreign":
        make.append("/usr/sbin/mkfs.ext4 -q -F -L holiday-photos /dev/nvme0n1")
        make.append("echo precious > /fake/nvme/photo.jpg")
    return make


# Peak memory of the whole run, which is Ansible and its workers together.
_MEASURE = """
import os, subprocess, sys, time
target, pause_s = sys.argv[1], float(sys.argv[2])
# In a group of its own, so that a test can kill it as a whole.
child = subprocess.Popen(sys.argv[3:], start_new_session=True)
peak = 0
def tree(pid):
    try:
        kids = open(f"/proc/{pid}/task/{pid}/children").read().split()
        pss = sum(int(l.split()[1]) for l in open(f"/proc/{pid}/smaps_rollup") if l.startswith("Pss:"))
    except OSError:
        return 0
    return pss + sum(tree(kid) for kid in kids)
while child.poll() is None:
    peak = max(peak, tree(child.pid))
    try:
        child.wait(pause_s)
    except subprocess.TimeoutExpired:
        pass
open(target, "w").write(str(peak // 1024))
sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
"""

_CHANGES_BY_ITSELF = (
    r"/var/(log|cache)|/var/lib/(systemd|private|apt)|/\.ansible|__pycache__|\.pwd\.lock|"
    r"/\.sudo_as_admin_successful|"
    r"/etc/machine-id|/(tmp|dev|proc|sys|run)/|/fake/drop_connection"
)
_OWN_FILES = r"""
find /etc /opt /usr/local /var /home /root /mnt /fake -xdev -type f \
  ! -path '/var/log/*' ! -path '/var/cache/*' ! -path '/var/lib/systemd/*' \
  ! -path '/home/nvidia/.ansible/*' ! -path '/root/.ansible/*' ! -name '*.pyc' \
  ! -name .sudo_as_admin_successful ! -path '/var/lib/private/*' ! -path '/var/lib/apt/*' ! -path '/etc/.pwd.lock' \
  ! -path '/etc/machine-id' ! -path '/fake/drop_connection' ! -path /fake/disk -print0 | sort -z |
xargs -0 sha256sum
ls -l /mnt | awk '{print $1, $3, $5, $NF}'
if [ -e /fake/disk ]; then head --bytes 4M /fake/disk | sha256sum; fi
"""

# State that must be the same whichever way a board got there. Identifiers and times differ.
_STATE = {
    "fstab": "sed -E 's/UUID=[0-9a-f-]+/UUID/' /etc/fstab | sort",
    "swaps": "cat /fake/proc/swaps",
    "swappiness": "cat /fake/proc/sys/vm/swappiness /etc/sysctl.d/90-mamba-orin.conf",
    "mode": "cat /fake/nvpmodel.json /var/lib/nvpmodel/status",
    "gpu": "cat /fake/sys/class/devfreq/17000000.gpu/max_freq",
    "daemon": "cat /etc/docker/daemon.json /run/dockerd.json",
    "packages": "dpkg-query -W -f '${Package} ${Version} ${Status}\\n'",
    "files": "find /etc/systemd /etc/apt /etc/ssh/sshd_config.d /etc/ansible /etc/mamba-orin "
    "/etc/cdi /etc/nvpower /usr/local/lib /etc/docker -type f -o -type l | sort | "
    "xargs sha256sum 2>/dev/null | grep -v 'ssh_host'",
    "wheels": "ls /opt/mamba-orin /opt/mamba-orin/jetson-stats/bin | sort",
    "units": "systemctl is-active docker mamba-orin-cdi mamba-orin-exporter jtop ssh "
    "mamba-orin-firewall nvfancontrol fstrim.timer; systemctl is-enabled docker "
    "mamba-orin-cdi mamba-orin-exporter jtop mamba-orin-firewall; "
    "systemctl is-enabled nvzramconfig || true",
    "rules": "nft list table inet mamba_orin",
    "users": "id mamba-orin; getent group jtop docker | cut -d: -f1",
    "leftovers": "ls -d /etc/docker/.daemon* /var/lib/nvpmodel/*.new 2>/dev/null || true",
    "rollback": "systemctl list-units --all --plain --no-legend 'mamba-orin-firewall-rollback*'",
}


def plain(text: str) -> str:
    """Without runs of white space, to search in."""
    return re.sub(r"\s+", " ", text)
