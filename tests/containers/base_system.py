# SPDX-License-Identifier: MIT
"""Debian, made by debootstrap, as the base of images where no image registry can be reached."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tarfile
from pathlib import Path

from pipeline.storage import sha256_of
from tests.boards.engine import Engine, NoEngineError, install_packages, run

SUITE = "bookworm"
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]

_PROGRAM = "qemu-aarch64-static"
# 7.2, of Debian 12, crashes when ONNX Runtime is loaded; 10.0 does not.
_OLDEST_VERSION = 10


def base_image(engine: Engine, architecture: str) -> str:
    """A minimal Debian of an architecture, amd64 or arm64; returns the image's name.

    Where this machine is of another architecture, it is taught to run this one.

    Raises:
        NoEngineError: It cannot be made here.
    """
    name = f"debian-base:{SUITE}-{architecture}"
    if architecture != NATIVE:
        emulate_arm64(engine.work)
    if name in engine.images():
        return name
    packed = engine.work / f"base-{architecture}.tar"
    if not packed.exists():
        _debootstrap(architecture, packed)
    _load(engine, packed, architecture, name)
    packed.unlink()
    return name


def emulate_arm64(work: Path) -> None:
    """Lets this machine's kernel run arm64 programs, by qemu.

    Args:
        work: A folder for package lists.

    Raises:
        NoEngineError: It cannot.
    """
    try:
        install_packages({"update-binfmts": "binfmt-support"})
        version = _emulator_version()
        if version is None:
            install_packages({_PROGRAM: "qemu-user-static"})
            version = _emulator_version()
        if version is None or version < _OLDEST_VERSION:
            _install_from_backports(work)
        if not Path("/proc/sys/fs/binfmt_misc/register").exists():
            run("mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc")
        # The kernel keeps the program that was there when it was told, even a replaced one.
        if Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
            run("update-binfmts", "--disable", "qemu-aarch64")
        run("update-binfmts", "--enable", "qemu-aarch64")
    except (OSError, RuntimeError) as error:
        raise NoEngineError(f"arm64 cannot be emulated here: {error}") from error


def _emulator_version() -> int | None:
    if not shutil.which(_PROGRAM):
        return None
    found = re.search(r"version (\d+)", run(_PROGRAM, "--version"))
    return int(found[1]) if found else None


def _install_from_backports(work: Path) -> None:
    """Takes the newer qemu that Debian offers for this release, and nothing else from there."""
    offered = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)",
                  "Created-By: Packages").splitlines()  # fmt: skip
    # The release itself, not its "-security" or "-updates".
    uri, codename = next(line.split() for line in offered if "-" not in line.split()[1])
    place = work / "backports"
    (place / "lists/partial").mkdir(parents=True, exist_ok=True)
    (place / "sources.list").write_text(f"deb {uri} {codename}-backports main\n")
    options = (
        *("-o", f"Dir::Etc::sourcelist={place}/sources.list"),
        *("-o", "Dir::Etc::sourceparts=/dev/null", "-o", f"Dir::State::lists={place}/lists"),
        *("-o", "DPkg::Lock::Timeout=600"),
    )
    run("apt-get", *options, "update", "-qq")
    run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *options, "install", "-y", "-qq",
        "--no-install-recommends", "--target-release", f"{codename}-backports",
        "qemu-user-static")  # fmt: skip


def _debootstrap(architecture: str, packed: Path) -> None:
    install_packages({"debootstrap": "debootstrap"})
    root = packed.with_suffix("")
    shutil.rmtree(root, ignore_errors=True)
    mirror = os.environ.get("MAMBA_ORIN_DEBIAN_MIRROR", "")
    try:
        run("debootstrap", f"--arch={architecture}", "--foreign", "--variant=minbase", SUITE,
            str(root), *[mirror] * bool(mirror), timeout=1200)  # fmt: skip
        run("chroot", str(root), "/debootstrap/debootstrap", "--second-stage", timeout=1800)
    except RuntimeError as error:
        raise NoEngineError(f"no base system: {error}") from error
    unfinished = packed.with_suffix(".unfinished")
    run("tar", "-C", str(root), "-cf", str(unfinished), ".")
    unfinished.rename(packed)
    shutil.rmtree(root)


def _load(engine: Engine, layer: Path, architecture: str, name: str) -> None:
    """Like `docker import`, which cannot be told an architecture."""
    digest = sha256_of(layer)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    folder = engine.work / f"load-{architecture}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "config.json", "config.json")
        tar.add(folder / "manifest.json", "manifest.json")
        tar.add(layer, "layer.tar")
    engine.docker("load", "--input", str(archive))
    shutil.rmtree(folder)
