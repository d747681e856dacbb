# SPDX-License-Identifier: MIT
from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.architecture import MambaArchitecture
from pipeline.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    DiskFullError,
    EngineMismatchError,
    StorageError,
    UsageError,
)
from pipeline.session import State
from pipeline.states import StateStore

ARCHITECTURE = MambaArchitecture(
    d_model=8, n_layer=2, d_inner=256, d_state=4, d_conv=4, dt_rank=1, vocab_size=11, vocab_rows=11
)
WEIGHTS = "ab" * 32


def state(seed: int = 0) -> State:
    random = np.random.default_rng(seed)
    made = State.zeros(ARCHITECTURE, 1)
    made.conv[:] = random.standard_normal(made.conv.shape)
    made.ssm[:] = random.standard_normal(made.ssm.shape)
    return made


def assert_equal(found: State, expected: State) -> None:
    assert (found.conv == expected.conv).all()
    assert (found.ssm == expected.ssm).all()


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states", ARCHITECTURE, WEIGHTS)


def test_a_state_comes_back_bit_for_bit_in_another_process_life(store: StateStore) -> None:
    info = store.save("a.b-c_1", state(1), tokens=7)
    later = StateStore(store.folder, ARCHITECTURE, WEIGHTS)
    named = later.load("a.b-c_1")
    assert_equal(named.state, state(1))
    assert named.info == info
    assert (info.tokens, info.bytes) == (7, state().conv.nbytes + state().ssm.nbytes)


def test_states_are_listed_by_name_and_nothing_else_is(store: StateStore) -> None:
    assert list(store.infos()) == []
    for name in ("beta", "alpha"):
        store.save(name, state(), tokens=1)
    (store.folder / ".gamma.safetensors.partial").write_bytes(b"half")
    (store.folder / "notes.txt").write_text("hello")
    (store.folder / "junk.safetensors").write_bytes(b"junk")
    StateStore(store.folder, ARCHITECTURE, "cd" * 32).save("foreign", state(), tokens=1)
    assert [info.name for info in store.infos()] == ["alpha", "beta"]


def test_saving_again_replaces_unless_told_not_to(store: StateStore) -> None:
    store.save("a", state(1), tokens=1)
    store.save("a", state(2), tokens=2)
    assert_equal(store.load("a").state, state(2))
    with pytest.raises(UsageError, match="a state named 'a' already"):
        store.save("a", state(3), tokens=3, overwrite=False)
    assert_equal(store.load("a").state, state(2))


def test_a_deleted_state_is_gone(store: StateStore) -> None:
    store.save("a", state(), tokens=1)
    assert store.exists("a")
    store.delete("a")
    assert not store.exists("a")
    for action in (store.load, store.delete, store.info):
        with pytest.raises(ArtifactNotFoundError, match="no state named 'a'"):
            action("a")


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", ".hidden", "a\n", "ä", "x" * 65])
def test_names_that_are_not_plain_words_are_refused(store: StateStore, name: str) -> None:
    for action in (store.load, store.delete, store.info, store.exists):
        with pytest.raises(UsageError, match="cannot be the name of a state"):
            action(name)
    with pytest.raises(UsageError):
        store.save(name, state(), tokens=1)


def test_a_state_of_other_weights_is_refused(store: StateStore) -> None:
    store.save("a", state(), tokens=1)
    other = StateStore(store.folder, ARCHITECTURE, "cd" * 32)
    with pytest.raises(EngineMismatchError, match="made by weights abababababab…"):
        other.load("a")
    other.delete("a")


@pytest.mark.parametrize("where", [0, 20, -1])
def test_a_changed_file_is_refused(store: StateStore, where: int) -> None:
    store.save("a", state(), tokens=1)
    path = store.folder / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 255
    path.write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match="state 'a' cannot be used"):
        store.load("a")


@pytest.mark.parametrize("kept", [0, 5, 100, 2000])
def test_a_shortened_file_is_refused(store: StateStore, kept: int) -> None:
    store.save("a", state(), tokens=1)
    path = store.folder / "a.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactCorruptError, match="state 'a' cannot be used"):
        store.load("a")


def test_a_copied_file_has_the_name_of_its_copy(store: StateStore) -> None:
    store.save("a", state(1), tokens=1)
    shutil.copy(store.folder / "a.safetensors", store.folder / "b.safetensors")
    assert store.load("b").info.name == "b"


def test_there_is_a_most_of_states(tmp_path: Path) -> None:
    store = StateStore(tmp_path, ARCHITECTURE, WEIGHTS, max_states=2)
    for name in ("a", "b", "a"):
        store.save(name, state(), tokens=1)
    with pytest.raises(DiskFullError, match="2 states"):
        store.save("c", state(), tokens=1)


def test_many_writers_of_one_name_leave_one_whole_state(store: StateStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: store.save("a", state(seed), tokens=seed), range(40)))
    named = store.load("a")
    assert_equal(named.state, state(named.info.tokens))
    assert [path.name for path in store.folder.iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = StateStore(tmp_path / "file", ARCHITECTURE, WEIGHTS)
    with pytest.raises(StorageError, match="cannot write"):
        store.save("a", state(), tokens=1)


# --- full disks and sudden ends --------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_older_states_intact(small_disk: Path) -> None:
    store = StateStore(small_disk, ARCHITECTURE, WEIGHTS)
    store.save("a", state(1), tokens=1)
    (small_disk / "other").write_bytes(b"x" * 48_000)
    for name in ("a", "b"):
        with pytest.raises(DiskFullError, match="older states are intact"):
            store.save(name, state(2), tokens=2)
    assert_equal(store.load("a").state, state(1))
    assert [info.name for info in store.infos()] == ["a"]
    assert {path.name for path in small_disk.iterdir()} == {"a.safetensors", "other"}
    (small_disk / "other").unlink()
    store.save("a", state(2), tokens=2)
    assert_equal(store.load("a").state, state(2))


KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.test_states import ARCHITECTURE, WEIGHTS, state
from pipeline import storage
from pipeline.states import StateStore
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace"), "sync": (storage, "sync")}[
    sys.argv[2]], kill)
StateStore(Path(sys.argv[1]), ARCHITECTURE, WEIGHTS).save("a", state(2), tokens=2)
"""


@pytest.mark.parametrize(("moment", "survivor"), [("fsync", 1), ("replace", 1), ("sync", 2)])
def test_a_killed_save_leaves_a_whole_state(store: StateStore, moment: str, survivor: int) -> None:
    store.save("a", state(1), tokens=1)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SAVE, store.folder, moment],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_equal(store.load("a").state, state(survivor))
    store.save("a", state(3), tokens=3)
    assert [path.name for path in store.folder.iterdir()] == ["a.safetensors"]
