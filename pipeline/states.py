# SPDX-License-Identifier: MIT
"""Named states on disk: what a model remembers of a text, kept until somebody deletes it.

A state is one safetensors file, `NAME.safetensors`: the tensors `conv` (layer, 1, k-1, d) and
`ssm` (layer, 1, n, d), float32, and in its metadata the hash of the weights that made it and of
its own content. A file is replaced whole or not at all, so a crash or a full disk leaves every
older state as it was. A state of other weights, or one that has changed, is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.architecture import MambaArchitecture
from pipeline.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    DiskFullError,
    EngineMismatchError,
    StorageError,
    UsageError,
)
from pipeline.manifest import now
from pipeline.session import State
from pipeline.storage import storage_errors, write_atomically

SCHEMA_VERSION: Final = 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_SUFFIX = ".safetensors"
_METADATA_KEY = "mamba_orin_state"
# A safetensors header with two tensors and our metadata is far below this.
_HEADER_LIMIT_BYTES = 1 << 16


class StateInfo(BaseModel):
    """What is known of a named state.

    Attributes:
        name: Its name.
        tokens: Number of tokens it has read.
        created: When it was written, UTC, ISO 8601.
        weights_sha256: Hash of the weights that made it.
        content_sha256: Hash of its tensors.
        bytes: Size of its tensors.
        schema_version: Version of this layout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tokens: int
    created: str
    weights_sha256: str
    content_sha256: str
    bytes: int
    schema_version: Literal[1] = SCHEMA_VERSION


@dataclass(frozen=True)
class NamedState:
    """A state and what is known of it."""

    info: StateInfo
    state: State


class StateStore:
    """The named states of one model in one folder.

    Args:
        folder: Where the files are; made when the first state is saved.
        architecture: Sizes of the model.
        weights_sha256: Hash of its weights.
        max_states: The most states to keep.
    """

    def __init__(
        self,
        folder: Path,
        architecture: MambaArchitecture,
        weights_sha256: str,
        max_states: int = 1000,
    ) -> None:
        self.folder = folder
        self._architecture = architecture
        self._weights_sha256 = weights_sha256
        self._max_states = max_states
        # Two writers of one name would share its temporary file.
        self._writing = threading.Lock()

    def save(self, name: str, state: State, tokens: int, *, overwrite: bool = True) -> StateInfo:
        """Writes a state under a name.

        Args:
            name: See `NAME_PATTERN`.
            state: The state of one text.
            tokens: Number of tokens it has read.
            overwrite: Whether an older state of this name may be replaced.

        Raises:
            UsageError: The name cannot be used, or is taken.
            StorageError: The file cannot be written.
            DiskFullError: There is no room on the disk, or there are too many states.
        """
        path = self._path(name)
        tensors = {"conv": state.conv, "ssm": state.ssm}
        info = StateInfo(
            name=name,
            tokens=tokens,
            created=now(),
            weights_sha256=self._weights_sha256,
            content_sha256=_content_hash(state),
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
        )
        data = save(tensors, metadata={_METADATA_KEY: info.model_dump_json()})
        with self._writing:
            is_new = not path.exists()
            if not (is_new or overwrite):
                raise UsageError(
                    f"there is a state named {name!r} already",
                    fix="choose another name, delete it first, or ask for overwrite",
                )
            if is_new and sum(1 for _ in self._files()) >= self._max_states:
                raise DiskFullError(
                    f"there are {self._max_states} states, as many as this server keeps",
                    fix="delete some with DELETE /v1/states/NAME",
                )
            try:
                write_atomically(path, data)
            except DiskFullError as error:
                raise DiskFullError(
                    f"the disk became full while saving state {name!r}; older states are intact",
                    fix="delete some with DELETE /v1/states/NAME, or free some space",
                ) from error
        return info

    def load(self, name: str) -> NamedState:
        """Reads a state and checks it.

        Raises:
            UsageError: The name cannot be used.
            ArtifactNotFoundError: There is no such state.
            ArtifactCorruptError: The file is damaged.
            EngineMismatchError: It belongs to other weights.
        """
        path = self._path(name)
        info = self._read_info(path)
        self._refuse_foreign(info)
        try:
            tensors = load(path.read_bytes())
            state = State(conv=tensors["conv"], ssm=tensors["ssm"])
        except (OSError, SafetensorError, KeyError) as error:
            raise _corrupt(name, str(error)) from error
        expected = State.zeros(self._architecture, 1)
        for found, wanted in ((state.conv, expected.conv), (state.ssm, expected.ssm)):
            if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
                raise _corrupt(name, f"a tensor is {found.dtype} {found.shape}")
        if _content_hash(state) != info.content_sha256:
            raise _corrupt(name, "its content is not what was written")
        return NamedState(info, state)

    def infos(self) -> Iterator[StateInfo]:
        """Every state that can be used, by name; those of other models are left out."""
        for path in self._files():
            try:
                info = self._read_info(path)
            except (ArtifactCorruptError, ArtifactNotFoundError):
                continue
            if info.weights_sha256 == self._weights_sha256:
                yield info

    def info(self, name: str) -> StateInfo:
        """What is known of one state.

        Raises:
            UsageError: The name cannot be used.
            ArtifactNotFoundError: There is no such state.
            ArtifactCorruptError: The file is damaged.
            EngineMismatchError: It belongs to other weights.
        """
        info = self._read_info(self._path(name))
        self._refuse_foreign(info)
        return info

    def exists(self, name: str) -> bool:
        """Whether the name is taken, be it by a state that cannot be used.

        Raises:
            UsageError: The name cannot be used.
        """
        return self._path(name).exists()

    def delete(self, name: str) -> None:
        """Removes a state, be it whole, damaged or of other weights.

        Raises:
            UsageError: The name cannot be used.
            ArtifactNotFoundError: There is no such state.
            StorageError: The file cannot be removed.
        """
        path = self._path(name)
        try:
            with storage_errors(path):
                path.unlink()
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise _not_found(name) from error
            raise

    def _files(self) -> Iterator[Path]:
        """The files of the states, by name; a temporary file begins with a dot."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            if re.fullmatch(NAME_PATTERN, path.name.removesuffix(_SUFFIX)):
                yield path

    def _path(self, name: str) -> Path:
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(
                f"{name!r} cannot be the name of a state",
                fix="use up to 64 letters, digits, dots, dashes and underscores, a letter or "
                "digit first",
            )
        return self.folder / f"{name}{_SUFFIX}"

    def _read_info(self, path: Path) -> StateInfo:
        name = path.name.removesuffix(_SUFFIX)
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if not 0 < size <= _HEADER_LIMIT_BYTES:
                    raise ValueError("it is not a safetensors file")
                header = json.loads(file.read(size))
            info = StateInfo.model_validate_json(header["__metadata__"][_METADATA_KEY])
        except FileNotFoundError as error:
            raise _not_found(name) from error
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise _corrupt(name, str(error).splitlines()[0]) from error
        return info.model_copy(update={"name": name})

    def _refuse_foreign(self, info: StateInfo) -> None:
        if info.weights_sha256 != self._weights_sha256:
            raise EngineMismatchError(
                f"state {info.name!r} was made by weights {info.weights_sha256[:12]}…, this model "
                f"has {self._weights_sha256[:12]}…",
                fix="make it again with this model, or delete it",
            )


def _content_hash(state: State) -> str:
    digest = hashlib.sha256(state.conv.tobytes())
    digest.update(state.ssm.tobytes())
    return digest.hexdigest()


def _not_found(name: str) -> ArtifactNotFoundError:
    return ArtifactNotFoundError(
        f"there is no state named {name!r}", fix="see what there is with GET /v1/states"
    )


def _corrupt(name: str, reason: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"state {name!r} cannot be used: {reason}", fix="delete it and make it again"
    )
