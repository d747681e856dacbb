# SPDX-License-Identifier: MIT
"""Rebuilds the tokenizer that a GGUF file carries in its metadata as a `tokenizer.json`.

Byte-level BPE with GPT-2's way of cutting words, which is what the published Mamba models have;
any other kind is left to the user's --tokenizer, because a tokenizer that cuts a text almost
right makes every answer a little wrong. A Unicode normaliser is not part of GGUF: like llama.cpp,
the result has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pipeline.errors import CheckpointCorruptError

# Values of tokenizer.ggml.pre that llama.cpp cuts with the regular expression of GPT-2.
_GPT2_LIKE = ("gpt-2", "mpt", "olmo")
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


def can_rebuild(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata hold a tokenizer of the kind that is rebuilt here."""
    return (
        metadata.get("tokenizer.ggml.model") == "gpt2"
        and metadata.get("tokenizer.ggml.pre") in _GPT2_LIKE
        and "tokenizer.ggml.merges" in metadata
    )


def kind_of(metadata: Mapping[str, Any]) -> str:
    """What the metadata call their tokenizer, for messages."""
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return "none"
    return f"{model} with pre-tokenizer {metadata.get('tokenizer.ggml.pre', 'unnamed')}"


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json.

    Args:
        metadata: Of which `can_rebuild` is true.
        folder: Where to write.

    Raises:
        CheckpointCorruptError: The vocabulary contradicts itself.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED
    }
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises bare Exception for every fault
        raise CheckpointCorruptError(
            f"the tokenizer in the file contradicts itself: {error}",
            fix="give the model's own with --tokenizer",
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, k in zip(tokens, kinds, strict=True) if k == _CONTROL])
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        f"{name}_token": tokens[number]
        for name in ("bos", "eos")
        if (number := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None
    }
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    end_id = metadata.get("tokenizer.ggml.eos_token_id")
    if end_id is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_id}) + "\n")
