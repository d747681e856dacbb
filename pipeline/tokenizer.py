# SPDX-License-Identifier: MIT
"""Text to token ids and back, by the `tokenizer.json` that came with the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer
from tokenizers.decoders import DecodeStream

from pipeline.errors import CheckpointCorruptError


class Tokenizer:
    """A tokenizer file and the end-of-text ids that belong to it.

    Args:
        folder: The folder that holds tokenizer.json, and perhaps generation_config.json and
            tokenizer_config.json, which name the end-of-text token.

    Raises:
        CheckpointCorruptError: tokenizer.json cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every fault
            raise CheckpointCorruptError(
                f"{path} is not a tokenizer: {error}", fix="download it again"
            ) from error
        self.end_ids = self._read_end_ids(folder)

    @property
    def size(self) -> int:
        """One more than the largest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any token added around it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def stream(self) -> TextStream:
        """A decoder for tokens that arrive one by one."""
        return TextStream(self._tokenizer)

    def _read_end_ids(self, folder: Path) -> frozenset[int]:
        generation = _read_json(folder / "generation_config.json").get("eos_token_id")
        if isinstance(generation, int):
            return frozenset([generation])
        if isinstance(generation, list):
            return frozenset(generation)
        named = _read_json(folder / "tokenizer_config.json").get("eos_token") or "<|endoftext|>"
        token = named["content"] if isinstance(named, dict) else named
        token_id = self._tokenizer.token_to_id(str(token))
        return frozenset() if token_id is None else frozenset([token_id])


class TextStream:
    """Turns token ids into text as soon as the text is certain.

    A character may span several tokens; until its last one arrives, nothing is given out.
    """

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """Takes one token id; returns the text that it completes, possibly empty."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _read_json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # both files are optional
        return {}
    return values if isinstance(values, dict) else {}
