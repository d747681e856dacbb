# SPDX-License-Identifier: MIT
"""Facts that stand in two places, and rules that a linter does not know."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.board import JETPACK_OF_L4T
from pipeline.command_line import command_line

ROOT = Path(__file__).parents[2]
BANNED_NAMES = {"utils", "helpers", "common", "misc", "base", "manager", "old", "new"}
SPDX = "SPDX-License-Identifier: MIT"


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [path for path in map(Path, listed) if (ROOT / path).is_file()]


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert not [path for path in tracked_files() if path.stem in BANNED_NAMES]


def test_every_source_file_names_its_licence() -> None:
    sources = [
        path
        for path in tracked_files()
        if path.suffix in {".py", ".cu", ".cuh", ".h", ".cpp"} and (ROOT / path).stat().st_size > 0
    ]
    assert not [path for path in sources if SPDX not in (ROOT / path).read_text().split("\n\n")[0]]


def test_python_minimum_is_the_same_everywhere() -> None:
    minimum = json.loads((ROOT / "versions.json").read_text())["python_minimum"]
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={minimum}"' in project
    assert f'python_version = "{minimum}"' in project
    assert f"py{minimum.replace('.', '')}" in project
    assert f"Python {minimum} or newer" in (ROOT / "README.md").read_text()


def test_every_supported_jetson_linux_is_known_to_board() -> None:
    jetpacks = json.loads((ROOT / "versions.json").read_text())["jetpack"]
    for line, facts in jetpacks.items():
        for l4t in [*facts["l4t"], *facts["l4t_refused"]]:
            assert JETPACK_OF_L4T[l4t].startswith(line)


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    documented = set(re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE))
    assert phony == documented


DOCUMENTS = [
    "README.md",
    "docs/benchmarks.md",
    "docs/design_report.md",
    "docs/quantisation.md",
    "docs/serving.md",
    "docs/tensorrt.md",
    "models/demo/README.md",
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_the_documents_are_ones_the_command_line_takes(name: str) -> None:
    text = (ROOT / name).read_text()
    commands = re.findall(r"^mamba-orin .+$", text, re.MULTILINE)
    assert commands or name != "README.md"
    for command in commands:
        command_line().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_the_documents_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_tables_in_the_documents_come_from_the_measurements() -> None:
    path = ROOT / "docs" / "render_tables.py"
    spec = importlib.util.spec_from_file_location("render_tables", path)
    assert spec is not None
    assert spec.loader is not None
    render_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render_tables)
    texts = {path: path.read_text() for path in render_tables.DOCUMENTS}
    for path, text in texts.items():
        assert render_tables.rendered(path) == text
    shown = re.findall(r"<!-- table: (\w+) -->\n", "".join(texts.values()))
    assert set(shown) == set(render_tables.TABLES)
