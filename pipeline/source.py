# SPDX-License-Identifier: MIT
"""What `convert` is given: finds out its kind, opens it, finds the tokenizer that goes with it."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.architecture import MambaArchitecture
from pipeline.checkpoint import Checkpoint, open_checkpoint
from pipeline.errors import CheckpointContradictionError, CheckpointNotFoundError
from pipeline.random_checkpoint import PREFIX, RandomCheckpoint, open_random
from pipeline.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pipeline.gguf_checkpoint import GgufCheckpoint

logger = logging.getLogger(__name__)

_GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class Source:
    """An opened model.

    Attributes:
        checkpoint: Its tensors; none has been read yet.
        architecture: Its sizes; ids that no token has are no part of the vocabulary.
        tokenizer_folder: Where its tokenizer lies; None when it has none.
    """

    checkpoint: Checkpoint | RandomCheckpoint | GgufCheckpoint
    architecture: MambaArchitecture
    tokenizer_folder: Path | None


@contextlib.contextmanager
def open_source(spelling: str | Path, tokenizer_path: Path | None) -> Iterator[Source]:
    """Opens a model while the block runs.

    Args:
        spelling: Folder or weight file of a checkpoint, a GGUF file or a folder with one, or
            `random:` and the name of a published shape.
        tokenizer_path: tokenizer.json, or the folder that holds it, when the model has none.

    Raises:
        CheckpointError: The model cannot be used.
    """
    gguf_file = _gguf_file(Path(spelling))
    with tempfile.TemporaryDirectory(prefix="mamba-orin-") as rebuilt:
        checkpoint: Checkpoint | RandomCheckpoint | GgufCheckpoint
        if str(spelling).startswith(PREFIX):
            checkpoint = open_random(str(spelling))
            tokenizer_folder = _tokenizer_folder(None, tokenizer_path)
        elif gguf_file is None:
            checkpoint = open_checkpoint(Path(spelling))
            tokenizer_folder = _tokenizer_folder(checkpoint.folder, tokenizer_path)
        else:
            from pipeline.gguf_checkpoint import open_gguf

            checkpoint = open_gguf(gguf_file)
            beside = _rebuilt_tokenizer(checkpoint, Path(rebuilt), wanted=tokenizer_path is None)
            tokenizer_folder = _tokenizer_folder(beside, tokenizer_path)
        architecture = _mask_rows_without_token(checkpoint.architecture, tokenizer_folder)
        yield Source(checkpoint, architecture, tokenizer_folder)


def _gguf_file(path: Path) -> Path | None:
    if path.suffix == _GGUF_SUFFIX:
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob(f"*{_GGUF_SUFFIX}"))
    if len(files) > 1:
        raise CheckpointNotFoundError(
            f"{path} holds {len(files)} GGUF files: {', '.join(file.name for file in files[:4])}",
            fix="name the one to convert",
        )
    return files[0] if files else None


def _rebuilt_tokenizer(checkpoint: GgufCheckpoint, folder: Path, *, wanted: bool) -> Path:
    from pipeline.gguf_tokenizer import can_rebuild, kind_of, write_tokenizer

    if can_rebuild(checkpoint.metadata):
        write_tokenizer(checkpoint.metadata, folder)
    elif wanted:
        logger.warning(
            "the tokenizer of %s (%s) is not one that is rebuilt here; the bundle has none "
            "unless you give the model's own with --tokenizer",
            checkpoint.files[0],
            kind_of(checkpoint.metadata),
        )
    return folder


def _tokenizer_folder(beside: Path | None, given: Path | None) -> Path | None:
    if given is None:
        has_one = beside is not None and (beside / "tokenizer.json").is_file()
        return beside if has_one else None
    folder = given.parent if given.is_file() else given
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointNotFoundError(
            f"no tokenizer.json at {given}",
            fix="give the file or its folder; state-spaces models use the one of gpt-neox-20b",
        )
    return folder


def _mask_rows_without_token(
    architecture: MambaArchitecture, tokenizer_folder: Path | None
) -> MambaArchitecture:
    """Ids that no token has cannot be read or written, so they are no part of the vocabulary."""
    if tokenizer_folder is None:
        return architecture
    size = Tokenizer(tokenizer_folder).size
    if size > architecture.vocab_rows:
        raise CheckpointContradictionError(
            f"{tokenizer_folder / 'tokenizer.json'} has {size} token ids, the embedding has "
            f"{architecture.vocab_rows} rows",
            fix="this tokenizer belongs to another model; give the right one with --tokenizer",
        )
    return replace(architecture, vocab_size=min(architecture.vocab_size, size))
