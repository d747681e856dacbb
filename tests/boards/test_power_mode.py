# SPDX-License-Identifier: MIT
"""The module nvpmodel_mode against the stand-in of nvpmodel, without a container."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.boards.simulated import Board, files, links

pytest.importorskip("ansible", reason="the extra 'provision' is not installed")

from tests.boards.modules import load

STAND_INS = Path(__file__).parent / "stand_ins"


@dataclass
class Simulated:
    """A board's files below a directory."""

    root: Path

    def ensure(self, name: str, check_mode: bool = False) -> dict[str, Any]:
        """What the module answers."""
        answer = load("nvpmodel_mode").ensure(
            name,
            self.root / "fake",
            self.root / "etc/nvpmodel.conf",
            self.root / "var/lib/nvpmodel/status",
            self.root / "run/note",
            check_mode,
        )
        return dict(answer)

    def active(self) -> int:
        """Number of the mode that the simulated kernel has."""
        return int(json.loads((self.root / "fake/nvpmodel.json").read_text())["mode"])

    def stored(self) -> str:
        """What the next boot will apply."""
        return (self.root / "var/lib/nvpmodel/status").read_text().splitlines()[0]

    def boot(self) -> None:
        """Takes the power away and gives it back: /run is empty, and nvpmodel.service runs."""
        (self.root / "run/note").unlink(missing_ok=True)
        subprocess.run([STAND_INS / "nvpmodel", "--boot"], check=True)

    def content(self) -> dict[str, bytes]:
        """All files."""
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FAKE_PREFIX", str(tmp_path))
    monkeypatch.setenv("PATH", f"{STAND_INS}:{os.environ['PATH']}")

    def make(board: Board) -> Simulated:
        for path, text in files(board).items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        for path, target in links(board).items():
            (tmp_path / path).symlink_to(f"{tmp_path}{target}")
        return Simulated(tmp_path)

    return make


# L4T 39 stands for an nvpmodel that answers with the stored mode, 36 for the active one.
@pytest.fixture(params=["36.5.0", "39.2.1"])
def l4t(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("board", "name", "number"),
    [
        (Board("8gb-super"), "25W", 1),
        (Board("8gb-super"), "MAXN_SUPER", 2),
        (Board("4gb-super", sku="0004"), "25W", 1),
        (Board("4gb-original", sku="0004", is_super=False, mode=1), "10W", 0),
    ],
)
def test_sets_the_mode_of_that_name(simulate: Any, board: Board, name: str, number: int) -> None:
    simulated = simulate(board)
    first, second = simulated.ensure(name), simulated.ensure(name)
    assert (first["changed"], second["changed"]) == (True, False)
    assert not first["reboot_required"]
    assert simulated.active() == number


def test_check_mode_writes_nothing(simulate: Any, l4t: str) -> None:
    simulated = simulate(Board("board", l4t=l4t))
    before = simulated.content()
    assert simulated.ensure("25W", check_mode=True)["changed"]
    assert simulated.content() == before


def test_a_mode_with_other_clusters_waits_for_the_reboot(simulate: Any, l4t: str) -> None:
    simulated = simulate(Board("board", l4t=l4t))
    first, second = simulated.ensure("7W"), simulated.ensure("7W")
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["reboot_required"]
    assert second["reboot_required"]
    assert (simulated.active(), simulated.stored()) == (0, "pmode:0003")
    assert not (simulated.root / "fake/rebooted_by_nvpmodel").exists()
    simulated.boot()
    third = simulated.ensure("7W")
    assert (third["changed"], third["reboot_required"], simulated.active()) == (False, False, 3)


def test_a_mode_that_waits_is_taken_back(simulate: Any, l4t: str) -> None:
    simulated = simulate(Board("board", l4t=l4t))
    simulated.ensure("7W")
    answer = simulated.ensure("15W")
    assert answer["changed"]
    assert not answer["reboot_required"]
    assert simulated.stored() == "pmode:0000"
    simulated.boot()
    assert simulated.active() == 0


def test_cut_off_before_the_mode_was_stored(simulate: Any, l4t: str) -> None:
    simulated = simulate(Board("board", l4t=l4t))
    (simulated.root / "run").mkdir()
    (simulated.root / "run/note").write_text("7W\n")
    assert simulated.ensure("7W")["changed"]
    assert simulated.stored() == "pmode:0003"


def test_what_was_about_to_be_stored_goes_with_a_mode_that_needs_no_reboot(simulate: Any) -> None:
    simulated = simulate(Board("board"))
    unfinished = simulated.root / "var/lib/nvpmodel/status.new"
    unfinished.write_text("pmode:0003\n")
    assert not simulated.ensure("25W")["reboot_required"]
    assert not unfinished.exists()


def test_other_lines_of_the_stored_state_stay(simulate: Any) -> None:
    simulated = simulate(Board("board"))
    status = simulated.root / "var/lib/nvpmodel/status"
    status.write_text("pmode:0000 fmode:quiet\nother\n")
    simulated.ensure("7W")
    assert status.read_text() == "pmode:0003 fmode:quiet\nother\n"


def test_an_unknown_name_is_answered_with_the_known_ones(simulate: Any) -> None:
    module = load("nvpmodel_mode")
    with pytest.raises(module.NvpmodelError, match="no power mode MAXN; its modes: 15W, 25W"):
        simulate(Board("board")).ensure("MAXN")


def test_a_name_that_the_clocks_deny_is_an_error(simulate: Any) -> None:
    module = load("nvpmodel_mode")
    with pytest.raises(module.NvpmodelError, match=r"limit is 624.75 MHz, the mode says 918"):
        simulate(Board("board", has_device_tree_only=True)).ensure("25W")


def test_nvpmodel_that_hangs_is_given_up(
    simulate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = simulate(Board("board"))
    tool = tmp_path / "bin/nvpmodel"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexec sleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    module = load("nvpmodel_mode")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with pytest.raises(module.NvpmodelError, match="gave no answer"):
        simulated.ensure("25W")
