# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as HuggingFaceTokenizer

from pipeline.bundle import convert
from pipeline.errors import CheckpointNotFoundError
from pipeline.manifest import read_bundle
from pipeline.scoring import score
from pipeline.tokenizer import Tokenizer
from pipeline.torch_session import open_torch_session
from tests.checkpoints import RandomCheckpoint
from tests.gguf_files import Tensors, write_gguf
from tests.pipeline.conftest import DEMO

STRANGE = "  Two  spaces,\n\ttabs;  naïve café — “quotes” 12345 日本語 😀 it's   I'll\n\n\n end  "


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "demo.gguf"
    write_gguf(DEMO, path, gguf.GGMLQuantizationType.F16)
    return path


@pytest.fixture(scope="module")
def bundle(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "bundle"
    convert(gguf_file, output)
    return output


@pytest.mark.parametrize("text", [(DEMO / "heldout.txt").read_text()[:20_000], STRANGE, ""])
def test_texts_are_cut_as_the_original_cuts_them(bundle: Path, text: str) -> None:
    rebuilt, original = Tokenizer(bundle), Tokenizer(DEMO)
    ids = original.encode(text)
    assert rebuilt.encode(text) == ids
    assert rebuilt.decode(ids) == original.decode(ids) == text
    assert rebuilt.end_ids == original.end_ids == {0}
    assert rebuilt.size == original.size
    stream = rebuilt.stream()
    assert "".join(stream.push(token) for token in ids) == text


def test_the_model_scores_a_text_as_before(bundle: Path, tmp_path: Path) -> None:
    convert(DEMO, tmp_path / "bundle")
    text = (DEMO / "heldout.txt").read_text()[:1000]
    results = []
    for folder in (bundle, tmp_path / "bundle"):
        session = open_torch_session(folder, read_bundle(folder).architecture)
        results.append(score(session, Tokenizer(folder).encode(text)).logprobs[1:])
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def test_tokens_added_to_a_vocabulary_and_rows_without_a_token(tmp_path: Path) -> None:
    """As gpt-neox-20b's runs of spaces, and the rows that pad an embedding to a round number."""
    demo = tmp_path / "demo"
    shutil.copytree(DEMO, demo)
    tokens = json.loads((demo / "tokenizer.json").read_text())
    longest = [m if isinstance(m, str) else " ".join(m) for m in tokens["model"]["merges"]][-8:]
    tokens["model"]["merges"] = tokens["model"]["merges"][:-8]
    for merge in longest:  # nothing merges to these any more: five make room for added tokens
        del tokens["model"]["vocab"][merge.replace(" ", "")]
    (demo / "tokenizer.json").write_text(json.dumps(tokens))
    changed = HuggingFaceTokenizer.from_file(str(demo / "tokenizer.json"))
    changed.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 3, 2)])
    changed.add_special_tokens(["<|stop|>"])
    changed.save(str(demo / "tokenizer.json"))

    write_gguf(demo, tmp_path / "demo.gguf")
    convert(tmp_path / "demo.gguf", tmp_path / "bundle")
    rebuilt, original = Tokenizer(tmp_path / "bundle"), Tokenizer(demo)
    text = "a    b   c  d <|stop|> e" + STRANGE
    assert rebuilt.encode(text) == original.encode(text)
    assert rebuilt.decode(original.encode(text)) == original.decode(original.encode(text))
    assert rebuilt.size == original.size == 3068
    assert read_bundle(tmp_path / "bundle").architecture.vocab_size == 3068


def test_chat_template_and_another_end_of_text_are_taken_over(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter, _: Tensors) -> None:
        writer.add_chat_template("{{ messages }}")
        writer.kv_data[0]["tokenizer.ggml.eos_token_id"].value = 7

    write_gguf(DEMO, tmp_path / "demo.gguf", change=add)
    convert(tmp_path / "demo.gguf", tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert Tokenizer(tmp_path / "bundle").end_ids == {7}


@pytest.mark.parametrize(("key", "value"), [("pre", "falcon"), ("model", "llama")])
def test_a_tokenizer_of_another_kind_is_left_to_the_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: str
) -> None:
    def other(writer: gguf.GGUFWriter, _: Tensors) -> None:
        writer.kv_data[0][f"tokenizer.ggml.{key}"].value = value

    write_gguf(DEMO, tmp_path / "demo.gguf", change=other)
    with caplog.at_level(logging.WARNING):
        convert(tmp_path / "demo.gguf", tmp_path / "mute")
    assert value in caplog.text
    assert "--tokenizer" in caplog.text
    assert not (tmp_path / "mute" / "tokenizer.json").exists()

    caplog.clear()
    convert(tmp_path / "demo.gguf", tmp_path / "given", tokenizer_path=DEMO)
    assert not caplog.text
    assert Tokenizer(tmp_path / "given").encode("It was") == Tokenizer(DEMO).encode("It was")


def test_a_folder_with_one_gguf_file_is_enough_and_with_two_is_not(
    gguf_file: Path, tmp_path: Path
) -> None:
    shutil.copy(gguf_file, tmp_path / "a.gguf")
    convert(tmp_path, tmp_path / "out" / "bundle")
    assert read_bundle(tmp_path / "out" / "bundle").source["name"] == "a"
    shutil.copy(gguf_file, tmp_path / "b.gguf")
    with pytest.raises(CheckpointNotFoundError, match=r"a\.gguf, b\.gguf"):
        convert(tmp_path, tmp_path / "out" / "bundle")


def test_a_file_without_tokenizer_is_converted_without(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    write_gguf(checkpoint.path, tmp_path / "model.gguf")
    manifest: Any = convert(tmp_path / "model.gguf", tmp_path / "bundle")
    assert manifest.architecture.vocab_size == 101
