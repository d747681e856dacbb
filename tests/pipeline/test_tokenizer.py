# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bundle import convert
from pipeline.errors import CheckpointContradictionError, CheckpointCorruptError
from pipeline.manifest import read_bundle
from pipeline.tokenizer import Tokenizer
from tests.checkpoints import RandomCheckpoint, state_spaces

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


@given(text=st.text(max_size=40).filter(lambda text: "<|endoftext|>" not in text))
def test_streamed_text_equals_the_text_decoded_at_once(text: str) -> None:
    tokenizer = Tokenizer(DEMO)
    token_ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in token_ids]
    assert "".join(pieces) == tokenizer.decode(token_ids) == text


def test_no_broken_character_is_given_out(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in tokenizer.encode("naïve 🐍 日本")]
    assert "\ufffd" not in "".join(pieces)


def test_the_end_token_comes_from_the_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.end_ids == {0}
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    assert Tokenizer(tmp_path).end_ids == {0}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert Tokenizer(tmp_path).end_ids == {3, 5}


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointCorruptError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


def _small_tokenizer(folder: Path, size: int) -> Path:
    from tokenizers import Tokenizer as Library
    from tokenizers.models import WordLevel

    folder.mkdir()
    vocabulary = {f"w{i}": i for i in range(size)}
    Library(WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


def test_rows_that_no_token_has_are_no_part_of_the_vocabulary(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    folder = _small_tokenizer(tmp_path / "tokenizer", 97)
    convert(checkpoint.path, tmp_path / "bundle", tokenizer_path=folder)
    architecture = read_bundle(tmp_path / "bundle").architecture
    assert (architecture.vocab_size, architecture.vocab_rows) == (97, 101)


def test_the_padded_rows_of_state_spaces_are_no_part_of_the_vocabulary(tmp_path: Path) -> None:
    made = state_spaces(tmp_path / "checkpoint")
    convert(made.path, tmp_path / "bundle")
    architecture = read_bundle(tmp_path / "bundle").architecture
    assert (architecture.vocab_size, architecture.vocab_rows) == (101, 104)


def test_a_tokenizer_of_another_model_is_refused(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    folder = _small_tokenizer(tmp_path / "tokenizer", 150)
    with pytest.raises(CheckpointContradictionError, match="150 token ids"):
        convert(checkpoint.path, tmp_path / "bundle", tokenizer_path=folder)
    assert not (tmp_path / "bundle").exists()
