# SPDX-License-Identifier: MIT
"""The packages on offer to a simulated board: NVIDIA's, Docker's and jetson-stats.

Names, versions and dependencies are the real ones, contents are not.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.boards.engine import run

ROOT = Path(__file__).parents[2]

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


# As the real ones: the toolkit is one release in four packages.
DEPENDS = {
    "docker-ce": ("containerd.io", "docker-ce-cli"),
    "nvidia-container-toolkit": (
        "nvidia-container-toolkit-base (= {version})",
        "libnvidia-container-tools (= {version})",
    ),
    "libnvidia-container-tools": ("libnvidia-container1 (= {version})",),
}


def write_package_repository(apt: Path) -> None:
    """Empty packages with the real names and versions, and newer ones that must not come."""
    versions = json.loads((ROOT / "versions.json").read_text())
    docker = versions["docker"]
    for suites in (("r36.4", "6.2"), ("r36.5", "6.2"), ("r39.2", "7.2")):
        suite, line = suites
        facts = versions["jetpack"][line]
        tensorrt = f"{facts['tensorrt']}-{facts['tensorrt_build']}"
        common: dict[tuple[str, str], dict[str, str]] = {
            (name, tensorrt): {}
            for name in ("libnvinfer10", "libnvinfer-plugin10", "libnvonnxparsers10")
        }
        for toolkit in (facts["container_toolkit"], "99.0.0-1"):
            common["nvidia-container-toolkit", toolkit] = {}
            common["nvidia-container-toolkit-base", toolkit] = {
                "usr/bin/nvidia-ctk": _NVIDIA_CTK,
                "usr/bin/nvidia-container-runtime": "#!/bin/sh\n",
            }
            common["libnvidia-container-tools", toolkit] = {}
            common["libnvidia-container1", toolkit] = {}
        # A newer TensorRT and the broken release are on offer as well.
        common["libnvinfer10", "99.0-1"] = {}
        component = facts["apt_components"][1]
        refused: dict[tuple[str, str], dict[str, str]] = {
            ("nvidia-l4t-core", "36.4.7-20250918154033"): {}
        }
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
        needs = ", ".join(DEPENDS.get(package, ())).format(version=version)
        depends = f"Depends: {needs}\n" if needs else ""
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


def write_python_packages(place: Path) -> None:
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
