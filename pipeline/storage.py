# SPDX-License-Identifier: MIT
"""Writing files and folders so that a reader sees all of them or nothing.

Everything is written under a temporary name, synced to the device and then renamed. A crash or
a full disk leaves at most a `NAME.partial` beside the target, which no command reads and the
next one removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DiskFullError, StorageError

_HASH_BLOCK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces one file by `data`, or leaves it as it was.

    Raises:
        StorageError: The folder cannot be written.
        DiskFullError: There is no room.
    """
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)


@contextlib.contextmanager
def new_folder(target: Path, marker: str) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error.

    Args:
        target: Where the folder shall be. An older one that holds `marker`, or an empty one,
            is replaced; anything else there is refused, because it is not ours to delete.
        marker: Name of the file that says the folder was written by this project.

    Yields:
        The temporary folder to write into.

    Raises:
        StorageError: The target is in use, foreign, or cannot be written.
        DiskFullError: There is no room.
    """
    target = target.absolute()
    _refuse_foreign(target, marker)
    partial = target.with_name(f"{target.name}.partial")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                yield partial
                for file in sorted(path for path in partial.rglob("*") if path.is_file()):
                    sync(file)
                sync(partial)
                _replace_folder(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def require_room(target: Path, needed_bytes: int) -> None:
    """Refuses to start a write that cannot fit.

    Raises:
        DiskFullError: Fewer bytes are free where `target` will be.
    """
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskFullError(
            f"not enough room for {target}: {needed_bytes / 1e6:.1f} MB needed, "
            f"{free / 1e6:.1f} MB free in {folder}",
            fix="free some space or choose an --output on a larger disk",
        )


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of a write into the StorageError that explains it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk became full while writing {path}; nothing was kept",
                fix="free some space or choose an --output on a larger disk, then run it again",
            ) from error
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            fix="check that the folder exists, is writable and is on a writable disk",
        ) from error


def _refuse_foreign(target: Path, marker: str) -> None:
    if not target.exists():
        return
    if target.is_dir() and ((target / marker).is_file() or not any(target.iterdir())):
        return
    raise StorageError(
        f"{target} exists and was not written by mamba-orin (it has no {marker})",
        fix="choose another --output, or remove it yourself if you no longer need it",
    )


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Holds a lock that the kernel drops with the process, so a crash leaves none behind."""
    path = target.with_name(f".{target.name}.lock")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another process is writing {target} at this moment",
                fix="wait until it has finished, or choose another --output",
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _replace_folder(partial: Path, target: Path) -> None:
    older = target.with_name(f"{target.name}.replaced")
    shutil.rmtree(older, ignore_errors=True)
    if target.exists():
        target.rename(older)
    partial.rename(target)
    sync(target.parent)
    shutil.rmtree(older, ignore_errors=True)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
