# SPDX-License-Identifier: MIT
"""Reads what corpus.py wrote and cuts the training text into batches.

Invariant: two batches in a row are neighbours in the text, row by row, within one pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class Corpus:
    """What corpus.py wrote; token ids as (tokens,) int64 on the training device."""

    train: Tensor
    validation: Tensor
    heldout: Tensor
    summary: dict[str, Any]
    tokenizer: Tokenizer

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> Corpus:
        """Reads the folder."""

        def ids(name: str) -> Tensor:
            stored = np.fromfile(folder / f"{name}.bin", dtype=np.uint16)
            return torch.from_numpy(stored.astype(np.int64)).to(device)

        return cls(
            train=ids("train"),
            validation=ids("validation"),
            heldout=ids("heldout"),
            summary=json.loads((folder / "corpus.json").read_text(encoding="utf-8")),
            tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
        )


class Streams:
    """Endless training batches: `batch` readers spread over the text, which has no end.

    Each pass over the text starts at a fresh random place, so that chunks are cut elsewhere.

    Attributes:
        steps_per_pass: Chunks until every reader stands where its neighbour began.
    """

    def __init__(self, tokens: Tensor, batch: int, chunk: int) -> None:
        self.tokens, self.chunk = tokens, chunk
        self.starts = torch.arange(batch, device=tokens.device) * (len(tokens) // batch)
        self.window = torch.arange(chunk + 1, device=tokens.device)
        self.steps_per_pass = max(1, len(tokens) // (batch * chunk))
        self.offset = 0

    def read(self, step: int) -> Tensor:
        """(batch, chunk + 1) token ids; the last id is the first of the next chunk."""
        if step % self.steps_per_pass == 0:
            self.offset = int(torch.randint(len(self.tokens), ()))
        place = self.starts + self.offset + step % self.steps_per_pass * self.chunk
        return self.tokens[(place[:, None] + self.window) % len(self.tokens)]
