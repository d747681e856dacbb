# SPDX-License-Identifier: MIT
"""Finished parts of a long conversion, kept beside its output until all of it is done.

Quantising a large model takes a while. Should it be killed, the same command goes on after the
last finished part; a command that differs in anything begins anew.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StorageError
from pipeline.storage import storage_errors, sync, write_atomically
from pipeline.weights import read_weights, write_weights

logger = logging.getLogger(__name__)

_KEY_FILE = "conversion.json"
_SUFFIX = ".safetensors"

Tensors = dict[str, npt.NDArray[np.generic]]


def kept_bytes(output: Path) -> int:
    """Bytes that the finished parts of an output take up on the disk."""
    return sum(path.stat().st_size for path in _folder_of(output).glob("*"))


def _folder_of(output: Path) -> Path:
    return output.absolute().with_name(f"{output.absolute().name}.unfinished")


class KeptParts:
    """The folder `NAME.unfinished` of an output `NAME`.

    Args:
        output: The output; the caller holds its lock.
        key: All that the parts depend on, as JSON values.

    Raises:
        StorageError: The folder is not ours, or cannot be written.
    """

    def __init__(self, output: Path, key: Mapping[str, Any]) -> None:
        self._folder = _folder_of(output)
        text = json.dumps(key, sort_keys=True, indent=2).encode()
        key_file = self._folder / _KEY_FILE
        with storage_errors(self._folder):
            if key_file.is_file() and key_file.read_bytes() == text:
                count = len(list(self._folder.glob(f"*{_SUFFIX}")))
                logger.warning("going on with the %d parts that an earlier run finished", count)
                return
            if self._is_foreign():
                raise StorageError(
                    f"{self._folder} exists and was not written by mamba-orin",
                    fix="choose another --output, or remove it yourself",
                )
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            write_atomically(key_file, text)

    def _is_foreign(self) -> bool:
        """Whether it holds what we cannot have put there; a first file may be half-written."""
        if not self._folder.exists() or (self._folder / _KEY_FILE).is_file():
            return False
        return any(path.suffix != ".partial" for path in self._folder.iterdir())

    def load(self, part: str) -> Tensors | None:
        """The tensors of a finished part, mapped from disk; None when it is still to do."""
        path = self._path(part)
        return dict(read_weights(path)) if path.is_file() else None

    def keep(self, part: str, tensors: Tensors) -> None:
        """Writes a finished part; it appears whole or not at all."""
        path = self._path(part)
        partial = path.with_suffix(".partial")
        plan = {name: (value.dtype, value.shape) for name, value in tensors.items()}
        write_weights(partial, plan, tensors.items())
        with storage_errors(path):
            sync(partial)
            partial.replace(path)

    def remove(self) -> None:
        """Forgets all parts, once the output is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, part: str) -> Path:
        return self._folder / f"{part}{_SUFFIX}"
