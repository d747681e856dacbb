# SPDX-License-Identifier: MIT
"""Random checkpoints in every format that people have, written by transformers and torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# Small, but with sizes that differ from each other, so that a swapped axis cannot go unseen.
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 5,
    "vocab_size": 101,
}


@dataclass(frozen=True)
class RandomCheckpoint:
    """A checkpoint on disk and the transformers model it was written from."""

    path: Path
    reference: torch.nn.Module
    vocab_size: int

    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """Log-probabilities (l-1,) of each token after the first, by transformers."""
        ids = torch.tensor([token_ids])
        with torch.no_grad():
            logits = self.reference(ids).logits[0, :-1, : self.vocab_size]
        table = torch.log_softmax(logits.double(), dim=-1)
        return table.gather(1, ids[0, 1:, None])[:, 0]


def random_model(
    *, falcon: bool = False, tied: bool = True, embedding_scale: float = 0.5, **sizes: int
) -> torch.nn.Module:
    """A transformers model with weights large enough that every part matters."""
    from transformers import (
        FalconMambaConfig,
        FalconMambaForCausalLM,
        MambaConfig,
        MambaForCausalLM,
    )

    torch.manual_seed(1)
    config_type, model_type = (
        (FalconMambaConfig, FalconMambaForCausalLM) if falcon else (MambaConfig, MambaForCausalLM)
    )
    model: torch.nn.Module = model_type(
        config_type(**{**SIZES, **sizes}, tie_word_embeddings=tied)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", "mixer.D", "conv1d.bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(embedding_scale * torch.randn_like(parameter))
            elif name.endswith("_proj.weight"):
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return model


def hugging_face(folder: Path, **options: Any) -> RandomCheckpoint:
    """`-hf`: one safetensors file."""
    model: Any = random_model(**options)
    model.save_pretrained(folder)
    return RandomCheckpoint(folder, model, SIZES["vocab_size"])


def hugging_face_sharded(folder: Path) -> RandomCheckpoint:
    """`-hf` in several safetensors files with an index."""
    model: Any = random_model()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return RandomCheckpoint(folder, model, SIZES["vocab_size"])


def state_spaces(folder: Path, container: str = "bin") -> RandomCheckpoint:
    """The original naming: padded embedding, head stored as well, config of four keys."""
    rows = 104
    model: Any = random_model(vocab_size=rows)
    tensors = {
        name.replace("backbone.embeddings", "backbone.embedding"): value
        for name, value in model.state_dict().items()
    }
    folder.mkdir(parents=True)
    config = {
        "d_model": SIZES["hidden_size"],
        "n_layer": SIZES["num_hidden_layers"],
        "vocab_size": SIZES["vocab_size"],
        "ssm_cfg": {"dt_rank": 5},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "pytorch_model.bin"
    if container == "bin":
        torch.save(tensors, path)
    elif container == "bin_legacy":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif container == "bin_sharded":
        _save_sharded(folder, tensors)
    elif container == "pth":
        path = folder / "checkpoint.pth"
        torch.save({"state_dict": tensors, "step": 7}, path)
    else:
        save_file(
            {name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors"
        )
    return RandomCheckpoint(path if container == "pth" else folder, model, SIZES["vocab_size"])


def _save_sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(2):
        file_name = f"pytorch_model-{shard + 1:05}-of-00002.bin"
        part = {name: tensors[name] for name in names[shard::2]}
        torch.save(part, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


FORMATS: dict[str, Callable[[Path], RandomCheckpoint]] = {
    "hf": hugging_face,
    "hf_untied": lambda folder: hugging_face(folder, tied=False),
    "hf_sharded": hugging_face_sharded,
    "falcon": lambda folder: hugging_face(folder, falcon=True, tied=False),
    "state_spaces_bin": state_spaces,
    "state_spaces_bin_legacy": lambda folder: state_spaces(folder, "bin_legacy"),
    "state_spaces_bin_sharded": lambda folder: state_spaces(folder, "bin_sharded"),
    "state_spaces_pth": lambda folder: state_spaces(folder, "pth"),
    "state_spaces_safetensors": lambda folder: state_spaces(folder, "safetensors"),
}
