# SPDX-License-Identifier: MIT
"""Mode and clocks are held and put back, by the stand-ins of NVIDIA's tools that keep state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest

from pipeline import clock_guard
from pipeline.board import read_board
from pipeline.errors import BoardError
from pipeline.power_control import HeldStill
from tests.boards.simulated import Board as SimulatedBoard
from tests.boards.simulated import files, links

STAND_INS = Path(__file__).parents[1] / "boards" / "stand_ins"
ROOT = Path(__file__).parents[2]
GPU = "sys/class/devfreq/17000000.gpu"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tree of a Super board in 15W whose tools act on it."""
    root = tmp_path / "board"
    simulated = SimulatedBoard("orin-01")
    for path, text in files(simulated).items():
        place = root / path.removeprefix("fake/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for path, target in links(simulated).items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    # The tools look for their state below /fake and for their files below the prefix.
    (root / "fake").symlink_to(".")
    (root / "etc/nvpmodel.conf").unlink()
    (root / "etc/nvpmodel.conf").symlink_to(root / links(simulated)["etc/nvpmodel.conf"][1:])
    (root / "sys/devices/platform/gpu.0").mkdir(parents=True, exist_ok=True)
    (root / "sys/devices/platform/gpu.0/tpc_pg_mask").write_text("240\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("nvpmodel", "jetson_clocks"):
        (tools / name).symlink_to(STAND_INS / name)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PREFIX", str(root))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return root


def state(root: Path) -> tuple[int, str, bool]:
    """Mode, lowest clock of the GPU, and whether clocks are locked, as the board has them."""
    noted = json.loads((root / "nvpmodel.json").read_text())
    return noted["mode"], (root / GPU / "min_freq").read_text().strip(), noted["locked"]


@pytest.fixture(autouse=True)
def _links_in_the_conf_are_absolute(board: Path) -> None:
    """`read_board` follows absolute links inside its tree, the tools those of this machine."""
    conf = board / "etc/nvpmodel.conf"
    text = conf.read_text()
    conf.unlink()
    conf.write_text(text)


def test_mode_and_clocks_are_held_and_put_back(board: Path) -> None:
    before = state(board)
    with HeldStill(read_board(board), "MAXN_SUPER", "auto", root=board) as held:
        mode, lowest, locked = state(board)
        assert (mode, lowest, locked) == (2, "1020000000", True)
    assert state(board) == before
    pinned = held.pinned
    assert pinned is not None
    assert (pinned.power_mode_before, pinned.power_mode) == ("15W", "MAXN_SUPER")
    assert (pinned.clocks, pinned.restored) == ("locked", True)
    assert not (board / "var/lib/mamba-orin/benchmark-restore.json").exists()


def test_they_are_put_back_when_the_measurement_fails(board: Path) -> None:
    before = state(board)
    with pytest.raises(RuntimeError), HeldStill(read_board(board), "25W", root=board):
        raise RuntimeError
    assert state(board) == before


def test_they_are_put_back_when_the_benchmark_is_killed(board: Path) -> None:
    before = state(board)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "os.geteuid = lambda: 0\n"
        "from pipeline.board import read_board\n"
        "from pipeline.power_control import HeldStill\n"
        "root = Path(sys.argv[1])\n"
        "with HeldStill(read_board(root), '25W', 'lock', root=root):\n"
        "    print('held', flush=True)\n"
        "    signal.pause()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(board)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    assert state(board) != before
    os.kill(child.pid, signal.SIGKILL)
    child.wait(20)
    child.stdout.close()
    pause = threading.Event()
    for _ in range(400):
        if state(board) == before:
            break
        pause.wait(0.05)
    assert state(board) == before


def test_what_a_power_cut_left_is_undone_at_the_next_start(board: Path) -> None:
    before = state(board)
    interrupted = HeldStill(read_board(board), "25W", root=board)
    interrupted._start_guard = lambda: None  # type: ignore[method-assign] # it dies, too
    interrupted.__enter__()
    assert state(board) != before
    with HeldStill(read_board(board), None, "lock", root=board):
        assert state(board)[0] == before[0], "the older benchmark's mode is gone first"
    assert state(board) == before


def test_clocks_that_were_locked_before_stay_so(board: Path) -> None:
    clock_guard.run(["jetson_clocks"])
    locked = state(board)
    with HeldStill(read_board(board), None, "auto", root=board) as held:
        assert state(board) == locked
    assert held.pinned is not None
    assert held.pinned.clocks == "locked before"
    assert held.pinned.restored is None
    with HeldStill(read_board(board), "25W", "auto", root=board):
        assert state(board)[0] == 1
    assert state(board) == locked, "setting a mode frees them, so they are locked again"


def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_changes(board: Path) -> None:
    before = state(board)
    with (
        pytest.raises(BoardError, match="needs a reboot"),
        HeldStill(read_board(board), "7W", root=board),
    ):
        pytest.fail("must not be measured")
    assert state(board) == before
    assert not (board / "rebooted_by_nvpmodel").exists()


def test_an_unknown_mode_is_answered_with_the_known_ones(board: Path) -> None:
    with (
        pytest.raises(BoardError, match="no power mode 'TURBO'") as error,
        HeldStill(read_board(board), "TURBO", root=board),
    ):
        pass
    assert "MAXN_SUPER" in error.value.fix


def test_who_may_not_is_told_only_if_he_insisted(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    before = state(board)
    with HeldStill(read_board(board), None, "auto", root=board) as held:
        assert state(board) == before
    assert held.pinned is not None
    assert held.pinned.clocks == "left"
    insisting: list[tuple[str | None, Literal["auto", "lock"]]] = [("25W", "auto"), (None, "lock")]
    for mode, clocks in insisting:
        held = HeldStill(read_board(board), mode, clocks, root=board)
        with pytest.raises(BoardError, match="only root") as error, held:
            pass
        assert "sudo" in error.value.fix


def test_another_machine_is_left_alone(tmp_path: Path) -> None:
    machine = read_board(tmp_path)
    with HeldStill(machine) as held:
        assert held.pinned is None
        assert held.why_nothing == "this machine is no Jetson"
    with pytest.raises(BoardError, match="no Jetson"), HeldStill(machine, "25W"):
        pass
