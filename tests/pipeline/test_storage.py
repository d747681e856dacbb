# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DiskFullError, StorageError
from pipeline.storage import new_folder, require_room, write_atomically

MARKER = "manifest.json"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with new_folder(target, MARKER) as folder:
        (folder / MARKER).write_text("new")
        assert not target.exists()
    assert (target / MARKER).read_text() == "new"
    assert names(tmp_path) == {"target"}


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with new_folder(target, MARKER) as folder:
        (folder / MARKER).write_text("old")

    def write_half() -> None:
        with new_folder(target, MARKER) as folder:
            (folder / MARKER).write_text("half")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_half()
    assert (target / MARKER).read_text() == "old"
    assert names(tmp_path) == {"target"}


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with new_folder(target, MARKER) as folder:
        (folder / MARKER).write_text("first")
        with (
            pytest.raises(StorageError, match="another process is writing"),
            new_folder(target, MARKER),
        ):
            pass
    assert (target / MARKER).read_text() == "first"


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with (
        pytest.raises(StorageError, match="was not written by mamba-orin"),
        new_folder(tmp_path, MARKER),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "data"


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(DiskFullError, match=r"record\.json"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"record.json"}


def test_a_write_that_cannot_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    require_room(tmp_path / "deep" / "down", 1)
    with pytest.raises(DiskFullError, match="needed"):
        require_room(tmp_path / "deep" / "down", 1 << 60)


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StorageError, match="cannot write"),
        new_folder(tmp_path / "file" / "target", MARKER),
    ):
        pass
