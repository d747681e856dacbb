# SPDX-License-Identifier: MIT
"""What the description of the images says; nothing is built here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
VERSIONS = (ROOT / "versions.json").read_text()
GROUPS = ["default", "boards", "plugins"]
SOURCE = {"VERSION": "1.2.3", "REVISION": "abc"}


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", ROOT / "containers" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
TARGETS = build.read_targets(GROUPS, SOURCE)


def test_buildx_reads_the_same_from_the_same_files() -> None:
    asked = ["docker", "buildx", "bake", *(f"--file={name}" for name in build.FILES), "--print"]
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)
        .returncode
    ):  # fmt: skip
        pytest.skip("docker buildx is not installed")
    told = subprocess.run(
        [*asked, *GROUPS], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, **SOURCE},
    )  # fmt: skip
    assert json.loads(told.stdout)["target"] == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_bases_are_pinned_by_digest(name: str) -> None:
    bases = [value for key, value in TARGETS[name]["args"].items() if key.endswith("BASE")]
    assert bases
    for base in bases:
        assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)


@pytest.mark.parametrize("name", TARGETS)
def test_every_argument_is_one_the_dockerfile_knows(name: str) -> None:
    # Docker ignores an argument that it does not know.
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(TARGETS[name]["args"]) <= known
    assert f"AS {TARGETS[name]['target']}\n" in DOCKERFILE


def test_no_version_is_written_in_two_places() -> None:
    written = (ROOT / "containers" / "docker-bake.json").read_text() + DOCKERFILE
    for literal in set(re.findall(r'"(\d+(?:\.\d+){2,}\S*)"|sha256:([0-9a-f]{64})', VERSIONS)):
        assert not [text for text in literal if text and text in written]


@pytest.mark.parametrize("line", json.loads(VERSIONS)["jetpack"])
def test_a_board_image_says_what_it_is_for(line: str) -> None:
    facts = json.loads(VERSIONS)["jetpack"][line]
    target = TARGETS[f"jetpack-{line.replace('.', '-')}"]
    labels = target["labels"]
    assert labels["mamba-orin.l4t"].split() == facts["l4t"]
    assert labels["mamba-orin.cuda"] == facts["cuda"]
    assert labels["mamba-orin.tensorrt"] == facts["tensorrt"]
    assert labels["mamba-orin.cuda-architectures"] == "87"
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.revision"] == "abc"
    assert target["platforms"] == ["linux/arm64"]
    assert f"libnvinfer10={facts['tensorrt']}-" in target["args"]["RUNTIME_PACKAGES"]
    assert facts["apt_suite"] in target["args"]["APT_SOURCES"]


def test_the_images_of_the_boards_differ_in_bases_and_packages_only() -> None:
    ours, theirs = TARGETS["jetpack-6-2"], TARGETS["jetpack-7-2"]
    for key in (ours.keys() | theirs.keys()) - {"args", "labels", "tags"}:
        assert ours[key] == theirs[key]
    assert (ours["args"].keys() ^ theirs["args"].keys()) == {"CUDA_WHEELS"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tensorrt"], "there is no target 'tensorrt'; there are"),
        (["cpu", "--nonsense"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_built_is_explained(words: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "containers" / "build.py", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr


def test_a_reference_that_leads_nowhere_is_named() -> None:
    with pytest.raises(build.BakeError, match=r'\$\{jetpack\["6.3"\].cuda\} leads nowhere'):
        build._evaluate('jetpack["6.3"].cuda', json.loads(VERSIONS))


def test_the_command_has_all_that_the_description_says() -> None:
    words = build.docker_command(TARGETS["plugin-jetpack-7-2"], ["--pull"])
    assert words[:2] == ["docker", "build"]
    assert words[-2:] == ["--pull", "."]
    for pair in (
        ["--target", "plugin"],
        ["--platform", "linux/arm64"],
        ["--tag", "mamba-orin-plugin:jetpack-7.2"],
        ["--build-arg", f"BASE={json.loads(VERSIONS)['jetpack']['7.2']['image_base']}"],
    ):
        assert pair in [words[place : place + 2] for place in range(len(words))]


def test_the_image_runs_without_root_and_ends_on_sigterm() -> None:
    stage = DOCKERFILE.partition("AS runtime\n")[2]
    assert re.search(r"^USER \d+:\d+$", stage, re.MULTILINE)
    # The exec form: a shell in between would keep SIGTERM to itself.
    assert re.search(r'^ENTRYPOINT \["/', stage, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in stage
    assert re.search(r'CMD \["/\S+", "-I", "\S+/healthcheck.py"\]', stage)
    assert ":latest" not in DOCKERFILE + VERSIONS
