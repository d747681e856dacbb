# SPDX-License-Identifier: MIT
"""What a checkpoint is taken for. Its numbers are tested in test_parity, its faults in test_cli."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint import in_state_spaces_format, open_checkpoint
from pipeline.errors import (
    CheckpointContradictionError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    UnsupportedModelError,
)
from tests.checkpoints import RandomCheckpoint, hugging_face, state_spaces


def edited(checkpoint: RandomCheckpoint, target: Path, **config: Any) -> Path:
    """A copy with other config keys; None removes a key."""
    shutil.copytree(checkpoint.path, target)
    path = target / "config.json"
    values = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return target


def test_sizes_are_those_of_the_tensors(any_checkpoint: RandomCheckpoint) -> None:
    found = open_checkpoint(any_checkpoint.path).architecture
    assert (found.d_model, found.n_layer, found.d_inner) == (48, 3, 96)
    assert (found.d_state, found.d_conv, found.dt_rank) == (16, 4, 5)
    assert found.vocab_size == 101


def test_every_tensor_has_the_shape_the_architecture_says(any_checkpoint: RandomCheckpoint) -> None:
    checkpoint = open_checkpoint(any_checkpoint.path)
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors()}
    assert found == {name: w.shape for name, w in checkpoint.architecture.weights().items()}


def test_weights_go_back_into_the_form_they_came_in(tmp_path: Path) -> None:
    source = state_spaces(tmp_path / "source", "safetensors").path
    tensors = open_checkpoint(source).tensors()
    found = dict(in_state_spaces_format(name, tensor) for name, tensor in tensors)
    expected = load_file(source / "model.safetensors")
    assert torch.equal(expected.pop("lm_head.weight"), found["backbone.embedding.weight"])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_sizes_survive_a_config_that_says_almost_nothing(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(checkpoint.path / "model.safetensors", tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text("{}")
    bare = open_checkpoint(tmp_path / "bare").architecture
    assert bare == open_checkpoint(checkpoint.path).architecture


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("num_hidden_layers", 4, "n_layer"),
        ("intermediate_size", 100, "d_inner"),
        ("state_size", 8, "d_state"),
        ("conv_kernel", 3, "d_conv"),
        ("time_step_rank", 6, "dt_rank"),
    ],
)
def test_each_size_of_the_config_is_checked(
    checkpoint: RandomCheckpoint, tmp_path: Path, key: str, value: int, field: str
) -> None:
    measured = getattr(open_checkpoint(checkpoint.path).architecture, field)
    with pytest.raises(
        CheckpointContradictionError, match=f"{key} = {value}, the tensors have {measured}"
    ):
        open_checkpoint(edited(checkpoint, tmp_path / "edited", **{key: value}))


def test_more_tokens_than_rows_is_a_contradiction(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointContradictionError, match=r"vocab_size = 102.*101 rows"):
        open_checkpoint(edited(checkpoint, tmp_path / "edited", vocab_size=102))


def test_padding_that_does_not_add_up_is_a_contradiction(tmp_path: Path) -> None:
    made = state_spaces(tmp_path / "checkpoint")
    path = edited(made, tmp_path / "edited", pad_vocab_size_multiple=16)
    with pytest.raises(CheckpointContradictionError, match="104 rows"):
        open_checkpoint(path)


def test_a_fine_tune_with_a_stale_padding_key_is_read(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    """`-hf` fine-tunes keep the key of their ancestor with a vocabulary of their own."""
    path = edited(checkpoint, tmp_path / "edited", pad_vocab_size_multiple=8, d_model=48)
    assert open_checkpoint(path).architecture.vocab_size == 101


def test_norm_epsilons_come_from_the_config(tmp_path: Path) -> None:
    falcon = hugging_face(tmp_path / "falcon", falcon=True)
    path = edited(falcon, tmp_path / "a", layer_norm_epsilon=3e-5, mixer_rms_eps=2e-5)
    found = open_checkpoint(path).architecture
    assert (found.norm_eps, found.mixer_norm_eps) == (3e-5, 2e-5)
    path = edited(falcon, tmp_path / "b", layer_norm_epsilon=None, mixer_rms_eps=None)
    found = open_checkpoint(path).architecture
    assert (found.norm_eps, found.mixer_norm_eps) == (1e-5, 1e-6)


def test_a_head_equal_to_the_embedding_is_tied_whatever_the_config_says(tmp_path: Path) -> None:
    made = state_spaces(tmp_path / "checkpoint")
    path = edited(made, tmp_path / "edited", tie_embeddings=False)
    assert open_checkpoint(path).architecture.tied_head
    untied = hugging_face(tmp_path / "untied", tied=False)
    path = edited(untied, tmp_path / "claims", tie_word_embeddings=True)
    assert not open_checkpoint(path).architecture.tied_head


def test_bfloat16_is_read_exactly(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    path = edited(checkpoint, tmp_path / "edited")
    tensors = load_file(path / "model.safetensors")
    narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(narrow, path / "model.safetensors")
    found = dict(open_checkpoint(path).tensors())
    expected = narrow["backbone.layers.1.mixer.in_proj.weight"].float()
    assert torch.equal(found["layers.1.in_proj.weight"], expected)


def test_a_missing_tensor_is_named(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    path = edited(checkpoint, tmp_path / "edited")
    tensors = load_file(path / "model.safetensors")
    del tensors["backbone.layers.1.mixer.x_proj.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=r"layers\.1\.x_proj\.weight"):
        open_checkpoint(path)


def test_a_missing_block_is_noticed(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    path = edited(checkpoint, tmp_path / "edited")
    tensors = load_file(path / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".layers.1." not in name}
    save_file(kept, path / "model.safetensors")
    with pytest.raises(CheckpointContradictionError, match=r"\[0, 2\]"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mamba2"}, "mamba2"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg.layer"),
        ({"attn_layer_idx": [3]}, "attention layers"),
        ({"use_bias": True}, "use_bias"),
        ({"rms_norm": False}, "LayerNorm"),
    ],
)
def test_relatives_of_mamba_1_are_refused_with_the_reason(
    checkpoint: RandomCheckpoint, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        open_checkpoint(edited(checkpoint, tmp_path / "edited", **config))


def test_a_broken_config_is_named(checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    path = edited(checkpoint, tmp_path / "edited")
    (path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(CheckpointCorruptError, match=r"config\.json is not JSON"):
        open_checkpoint(path)
