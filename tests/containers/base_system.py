# SPDX-License-Identifier: MIT
"""Debian, made by debootstrap, as the base of images where no image registry can be reached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from pipeline.storage import sha256_of
from tests.boards.engine import SUITE, Engine, NoEngineError, run

_EMULATOR = "/proc/sys/fs/binfmt_misc/qemu-aarch64"


def base_image(engine: Engine, architecture: str) -> str:
    """A minimal Debian of an architecture, amd64 or arm64; returns the image's name.

    Raises:
        NoEngineError: It cannot be made here.
    """
    name = f"debian-base:{SUITE}-{architecture}"
    if name in engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        return name
    if architecture != "amd64":
        emulate_arm64()
    packed = engine.work / f"base-{architecture}.tar"
    if not packed.exists():
        _debootstrap(architecture, packed)
    _load(engine, packed, architecture, name)
    packed.unlink()
    return name


def emulate_arm64() -> None:
    """Lets this machine's kernel run arm64 programs, by qemu.

    Raises:
        NoEngineError: It cannot.
    """
    if Path(_EMULATOR).exists():
        return
    try:
        if not shutil.which("qemu-aarch64-static"):
            run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq",
                "--no-install-recommends", "qemu-user-static", "binfmt-support")  # fmt: skip
        if not Path("/proc/sys/fs/binfmt_misc/register").exists():
            run("mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc")
        if not Path(_EMULATOR).exists():
            run("update-binfmts", "--enable", "qemu-aarch64")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise NoEngineError(f"arm64 cannot be emulated here: {error}") from error


def _debootstrap(architecture: str, packed: Path) -> None:
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
