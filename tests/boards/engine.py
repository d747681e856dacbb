# SPDX-License-Identifier: MIT
"""A container engine of the tests' own, and the image of the simulated boards.

All of it lies below one directory: engine, images, keys. Nothing of the machine's own Docker is
used or touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = "bookworm"
NETWORK = "boards"
SUBNET = "10.213.0.0/24"
INCLUDE = (
    "systemd,systemd-sysv,dbus,openssh-server,sudo,python3,python3-apt,python3-venv,python3-pip,"
    "nftables,unattended-upgrades,iproute2,procps,e2fsprogs,fdisk,ca-certificates"
)


class NoEngineError(Exception):
    """The boards cannot be simulated here; the message says why."""


def work_directory() -> Path:
    """Where everything lies; kept between runs, as the base system takes a minute to make."""
    default = Path.home() / ".cache/mamba-orin/boards"
    return Path(os.environ.get("MAMBA_ORIN_BOARDS_DIRECTORY", default))


def run(*command: str, timeout: float = 600, stdin: bytes | None = None) -> str:
    """Runs a command that must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace")[-2000:]
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


@contextmanager
def started_engine() -> Iterator[Engine]:
    """Starts a daemon and ends it, by the process that was started.

    Raises:
        NoEngineError: The machine does not let it.
    """
    if os.geteuid() != 0:
        raise NoEngineError("simulating boards takes root, to run a container engine")
    _install_tools()
    work = work_directory()
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # one daemon below one directory
    log = (work / "dockerd.log").open("wb")
    daemon = subprocess.Popen(
        ["dockerd", "--data-root", f"{work}/data", "--exec-root", f"{work}/run",
         "--pidfile", f"{work}/docker.pid", "--host", f"unix://{work}/docker.sock",
         "--iptables=false", "--ip6tables=false", "--bridge=none"],
        stdout=log, stderr=log,
    )  # fmt: skip
    engine = Engine(work)
    try:
        for _ in range(60):
            if daemon.poll() is not None:
                break
            try:
                engine.docker("version", timeout=10)
                break
            except RuntimeError:
                time.sleep(0.5)
        if daemon.poll() is not None:
            tail = (work / "dockerd.log").read_text(errors="replace")[-500:]
            raise NoEngineError(f"dockerd does not start here: {tail}")
        networks = engine.docker("network", "ls", "--format", "{{.Name}}").split()
        if NETWORK not in networks:
            engine.docker("network", "create", "--subnet", SUBNET, NETWORK)
        yield engine
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)
        log.close()
        lock.close()


def _install_tools() -> None:
    if all(shutil.which(tool) for tool in ("dockerd", "debootstrap", "ssh", "apt-ftparchive")):
        return
    if not shutil.which("apt-get"):
        raise NoEngineError("docker.io, debootstrap and apt-utils are needed")
    packages = ("docker.io", "debootstrap", "openssh-client", "apt-utils")
    try:
        run("apt-get", "update", "-qq")
        run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq",
            "--no-install-recommends", *packages)  # fmt: skip
    except RuntimeError as error:
        raise NoEngineError(f"cannot install {', '.join(packages)}: {error}") from error


def board_image(engine: Engine) -> str:
    """Builds the image of the boards, if its ingredients have changed; returns its name."""
    ingredients = [*sorted((HERE / "stand_ins").iterdir()), Path(__file__), ROOT / "versions.json"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in ingredients)).hexdigest()[:12]
    name = f"board:{digest}"
    have = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    base = f"base:{SUITE}"
    if base not in have:
        root = engine.work / "base"
        shutil.rmtree(root, ignore_errors=True)
        mirror = os.environ.get("MAMBA_ORIN_DEBIAN_MIRROR", "")
        try:
            run("debootstrap", "--variant=minbase", f"--include={INCLUDE}", SUITE, str(root),
                *[mirror] * bool(mirror), timeout=1200)  # fmt: skip
        except RuntimeError as error:
            raise NoEngineError(f"no base system: {error}") from error
        packed = engine.work / "base.tar"
        run("tar", "-C", str(root), "-cf", str(packed), ".")
        engine.docker("import", str(packed), base)
        packed.unlink()
        shutil.rmtree(root)
    if name not in have:
        build = engine.work / "build"
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        _write_context(build, engine.work)
        engine.docker("build", "--quiet", "--tag", name, str(build))
    return name


def key_file(work: Path) -> Path:
    """The key that logs in to the boards."""
    key = work / "id_ed25519"
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    return key


def _write_context(build: Path, work: Path) -> None:
    overlay = build / "overlay"
    local = overlay / "usr/local/bin"
    local.mkdir(parents=True)
    # Stand-ins of NVIDIA's tools lie where NVIDIA's lie, those of the system's before them.
    for tool in (HERE / "stand_ins").iterdir():
        place = overlay / ("usr/sbin" if tool.name in ("nvpmodel", "nvbootctrl") else
                           "usr/bin" if tool.name in ("jetson_clocks", "tegrastats") else
                           "usr/local/bin")  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tool, place / tool.name)
    (local / "swapoff").symlink_to("swapon")
    _write_package_repository(overlay / "srv/apt")
    _write_python_packages(overlay / "srv/pypi")
    for path, text in _SYSTEM_FILES.items():
        place = overlay / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755 if text.startswith("#!") else 0o644)
    (overlay / "etc/sudoers.d/nvidia").chmod(0o440)
    key = key_file(work).with_suffix(".pub").read_text()
    keys = overlay / "home/nvidia/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text(key)
    (build / "Dockerfile").write_text(_DOCKERFILE)
    run("tar", "-C", str(overlay), "--owner=0", "--group=0", "-cf", f"{build}/overlay.tar", ".")
    shutil.rmtree(overlay)


_DOCKERFILE = f"""\
FROM base:{SUITE}
RUN groupadd --system render || true
RUN useradd --create-home --shell /bin/bash --groups sudo,video nvidia
ADD overlay.tar /
RUN chown -R nvidia:nvidia /home/nvidia && chmod 700 /home/nvidia/.ssh \\
 && mkdir -p /mnt /fake/nvme && rm -f /etc/machine-id \\
 && rm -rf /etc/apt/sources.list /var/lib/apt/lists/* \\
 && systemctl enable ssh.service nvpmodel.service nvfancontrol.service nvzramconfig.service \\
 && systemctl mask systemd-udevd.service systemd-logind.service getty.target \\
    systemd-networkd.service systemd-firstboot.service \\
 && apt-get -qq update
CMD ["/lib/systemd/systemd"]
"""

_SYSTEM_FILES = {
    "etc/sudoers.d/nvidia": "nvidia ALL=(ALL) NOPASSWD: ALL\n",
    "etc/fstab": "# <file system> <mount point> <type> <options> <dump> <pass>\n",
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /srv/pypi\n",
    # The repository of the simulation is not signed, as its files are not the real ones.
    "etc/apt/apt.conf.d/99simulated": 'APT::Get::AllowUnauthenticated "true";\n'
    'Acquire::AllowInsecureRepositories "true";\nAPT::Sandbox::User "root";\n',
    "etc/apt/sources.list.d/nvidia-l4t-apt-source.list": (
        "deb file:/srv/apt/jetson/common r36.4 main\ndeb file:/srv/apt/jetson/t234 r36.4 main\n"
    ),
    "etc/systemd/system/nvpmodel.service": (
        "[Unit]\nDescription=nvpmodel\nBefore=ssh.service\n[Service]\nType=oneshot\n"
        "ExecStart=/bin/sh -c 'test ! -e /etc/nvpmodel.conf || nvpmodel --boot'\n"
        # What a boot does with the disk and its swap, where the real mount cannot.
        "ExecStartPost=/usr/local/bin/after_boot\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
    "usr/local/bin/after_boot": (
        "#!/bin/sh\n"
        "awk '$1 ~ /^UUID=/ && $2 == \"/mnt/nvme\" {print $2}' /etc/fstab |\n"
        "while read -r place; do mountpoint -q $place || /usr/local/bin/mount $place; done\n"
        "test -e /fake/proc/swaps.boot && cp /fake/proc/swaps.boot /fake/proc/swaps\n"
        "awk '$3 == \"swap\" {print $1}' /etc/fstab |\n"
        "while read -r area; do /usr/local/bin/swapon $area; done\nexit 0\n"
    ),
    # In a container the timer would not start; nothing must be trimmed by it either.
    "etc/systemd/system/fstrim.timer.d/simulated.conf": "[Unit]\nConditionVirtualization=\n",
    **{
        f"etc/systemd/system/{unit}.service.d/simulated.conf": (
            "[Unit]\nConditionVirtualization=\n[Service]\nExecStartPre=\nExecStart=\n"
            "ExecStart=/bin/true\n"
        )
        for unit in ("fstrim", "apt-daily", "apt-daily-upgrade")
    },
    "etc/systemd/system/nvfancontrol.service": (
        "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/systemd/system/nvzramconfig.service": (
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
}

_DOCKERD = """\
#!/usr/bin/env python3
import json, sys
if "--validate" in sys.argv:
    content = json.load(open(sys.argv[sys.argv.index("--config-file") + 1]))
    unknown = set(content) - {"data-root", "default-runtime", "runtimes", "log-driver", "log-opts",
                              "live-restore", "features", "insecure-registries"}
    if unknown:
        sys.exit("unable to configure the Docker daemon with file: the following directives "
                 "don't match any configuration option: " + ", ".join(unknown))
    print("configuration OK")
    sys.exit(0)
import pathlib, signal
# The daemon reads its file once; what it runs with is what it read then.
path = pathlib.Path("/etc/docker/daemon.json")
pathlib.Path("/run/dockerd.json").write_text(path.read_text() if path.exists() else "{}")
signal.pause()
"""
_DOCKER = """\
#!/usr/bin/env python3
import json, sys
if sys.argv[1] == "info":
    running = json.load(open("/run/dockerd.json"))
    print(json.dumps({"ServerVersion": "@VERSION@",
                      "DockerRootDir": running.get("data-root", "/var/lib/docker"),
                      "DefaultRuntime": running.get("default-runtime", "runc"),
                      "Runtimes": {"runc": {}, **running.get("runtimes", {})}}))
"""
_DOCKER_UNIT = """\
[Unit]
Description=Docker
[Service]
ExecStart=/usr/bin/dockerd
[Install]
WantedBy=multi-user.target
"""
_NVIDIA_CTK = """\
#!/bin/sh
for word in "$@"; do case $word in --output=*) echo "cdiVersion: 0.5.0" > "${word#--output=}";; esac; done
"""


def _write_package_repository(apt: Path) -> None:
    """Empty packages with the real names and versions, and newer ones that must not come."""
    versions = json.loads((ROOT / "versions.json").read_text())
    docker = versions["docker"]
    for suites in (("r36.4", "6.2"), ("r36.5", "6.2"), ("r39.2", "7.2")):
        suite, line = suites
        facts = versions["jetpack"][line]
        tensorrt = f"{facts['tensorrt']}-{facts['tensorrt_build']}"
        common = {
            (name, tensorrt): {}
            for name in ("libnvinfer10", "libnvinfer-plugin10", "libnvonnxparsers10")
        }
        common["nvidia-container-toolkit", facts["container_toolkit"]] = {
            "usr/bin/nvidia-ctk": _NVIDIA_CTK,
            "usr/bin/nvidia-container-runtime": "#!/bin/sh\n",
        }
        # A newer TensorRT and the broken release are on offer as well.
        common["libnvinfer10", "99.0-1"] = {}
        component = facts["apt_components"][1]
        refused = {("nvidia-l4t-core", "36.4.7-20250918154033"): {}}
        _write_suite(apt / "jetson/common", suite, "main", common)
        _write_suite(apt / "jetson" / component, suite, "main", refused)
    for line in versions["jetpack"].values():
        suffix = f"~ubuntu.{line['ubuntu']}~{line['ubuntu_codename']}"
        client = {"usr/bin/docker": _DOCKER.replace("@VERSION@", docker["version"])}
        daemon = {
            "usr/bin/dockerd": _DOCKERD,
            "lib/systemd/system/docker.service": _DOCKER_UNIT,
            "DEBIAN/postinst": "#!/bin/sh\ngroupadd --force --system docker\n"
            "systemctl enable --quiet docker.service\n",
        }
        content = {
            ("docker-ce", docker["package"] + suffix): daemon,
            ("docker-ce-cli", docker["package"] + suffix): client,
            ("docker-ce", f"5:99.0.0-1{suffix}"): daemon,
            ("docker-ce-cli", f"5:99.0.0-1{suffix}"): client,
            ("containerd.io", "1.7.27-1"): {},
        }
        _write_suite(apt / "docker", line["ubuntu_codename"], "stable", content)
    (apt / "docker/gpg").write_text("a key\n")


def _write_suite(
    home: Path, suite: str, component: str, content: dict[tuple[str, str], dict[str, str]]
) -> None:
    pool = home / "pool" / suite
    for (package, version), files in content.items():
        tree = pool / "tree"
        for path, text in files.items():
            place = tree / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            place.chmod(0o755 if text.startswith("#!") else 0o644)
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        depends = "Depends: containerd.io\n" if package == "docker-ce" else ""
        (tree / "DEBIAN/control").write_text(
            f"Package: {package}\nVersion: {version}\nArchitecture: all\n{depends}"
            "Maintainer: nobody <nobody@example.com>\nDescription: Simulated package\n"
        )
        run(
            "dpkg-deb",
            "--build",
            "-Znone",
            str(tree),
            f"{pool}/{package}_{version.replace(':', '.')}.deb",
        )
        shutil.rmtree(tree)
    index = home / f"dists/{suite}/{component}/binary-amd64"
    index.mkdir(parents=True)
    listing = subprocess.run(
        ["apt-ftparchive", "packages", f"pool/{suite}"],
        cwd=home, capture_output=True, check=True,
    ).stdout  # fmt: skip
    (index / "Packages").write_bytes(listing)
    options = {"Suite": suite, "Codename": suite, "Components": component,
               "Architectures": "amd64"}  # fmt: skip
    release = subprocess.run(
        ["apt-ftparchive",
         *(f"--option=APT::FTPArchive::Release::{key}={value}" for key, value in options.items()),
         "release", f"dists/{suite}"],
        cwd=home, capture_output=True, check=True,
    ).stdout  # fmt: skip
    (home / f"dists/{suite}/Release").write_bytes(release)


def _write_python_packages(place: Path) -> None:
    """A jetson-stats whose setup script has the side effects of the real one."""
    version = json.loads((ROOT / "versions.json").read_text())["jetson_stats"]
    place.mkdir(parents=True)
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place),
        "setuptools==80.9.0")  # fmt: skip
    for number in (version, "99.0"):
        _write_source_package(place / f"jetson_stats-{number}.tar.gz", number)


def _write_source_package(path: Path, version: str) -> None:
    setup = f"""\
import os
from setuptools import setup
from setuptools.command.build_py import build_py
class Build(build_py):
    def run(self):
        super().run()
        if os.getuid() == 0:
            open("/etc/systemd/system/jtop.service", "w").write("# by the setup script\\n")
            open("/fake/setup_script_ran_as_root", "w").close()
setup(name="jetson-stats", version="{version}", packages=["jtop"],
      cmdclass={{"build_py": Build}},
      entry_points={{"console_scripts": ["jtop=jtop:main"]}})
"""
    program = """\
import os, shutil, signal, socket
def main():
    if os.path.exists("/run/jtop.sock"):
        os.unlink("/run/jtop.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind("/run/jtop.sock")
    shutil.chown("/run/jtop.sock", "root", "jtop")
    os.chmod("/run/jtop.sock", 0o660)
    signal.pause()
"""
    top = f"jetson_stats-{version}"
    info = f"Metadata-Version: 2.1\nName: jetson-stats\nVersion: {version}\n"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (
            ("setup.py", setup), ("jtop/__init__.py", program), ("PKG-INFO", info),
        ):  # fmt: skip
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
