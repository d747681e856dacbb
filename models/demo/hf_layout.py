# SPDX-License-Identifier: MIT
"""Writes a `pipeline.model.Mamba` the way Hugging Face's MambaForCausalLM reads it.

One table holds the names; matrices are rounded to float16, everything that is small and
delicate (A_log, D, biases, convolutions, norms) stays float32. Reads nothing back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from pipeline.architecture import MambaArchitecture

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


def _same(value: Tensor) -> Tensor:
    return value


# name after `layers.{i}.` in `architecture.layer_weights()` -> name after
# `backbone.layers.{i}.` in the -hf layout, and how to get one from the other.
LAYER_NAMES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "norm.weight": ("norm.weight", _same),
    "in_proj.weight": ("mixer.in_proj.weight", _same),
    "conv.weight": ("mixer.conv1d.weight", lambda w: w.T[:, None, :]),  # (k, d) -> (d, 1, k)
    "conv.bias": ("mixer.conv1d.bias", _same),
    "x_proj.weight": ("mixer.x_proj.weight", _same),
    "dt_proj.weight": ("mixer.dt_proj.weight", _same),
    "dt_proj.bias": ("mixer.dt_proj.bias", _same),
    "A": ("mixer.A_log", lambda a: torch.log(-a).T),  # (n, d) -> (d, n)
    "D": ("mixer.D", _same),
    "out_proj.weight": ("mixer.out_proj.weight", _same),
}


def round_matrices(
    weights: dict[str, Tensor], architecture: MambaArchitecture
) -> dict[str, Tensor]:
    """Rounds the matrices to float16 and back, so that the shipped model can be scored.

    Args:
        weights: Named as in `architecture.weights()`, float32.
        architecture: Says which of them are matrices.

    Returns:
        The same names, all float32.
    """
    kinds = architecture.weights()
    return {
        name: value.half().float() if kinds[name].kind == "matrix" else value
        for name, value in weights.items()
    }


def to_hf(weights: dict[str, Tensor], architecture: MambaArchitecture) -> dict[str, Tensor]:
    """Renames and reshapes.

    Args:
        weights: Named as in `architecture.weights()`; the head is tied.
        architecture: Says which of them are matrices.

    Returns:
        Tensors of `model.safetensors`; no lm_head, since it is the embedding.
    """
    kinds = architecture.weights()
    converted = {}
    for name, weight in weights.items():
        change = _same
        if name == "embedding.weight":
            target = "backbone.embeddings.weight"
        elif name == "norm.weight":
            target = "backbone.norm_f.weight"
        else:
            _, layer, rest = name.split(".", 2)
            suffix, change = LAYER_NAMES[rest]
            target = f"backbone.layers.{layer}.{suffix}"
        dtype = torch.float16 if kinds[name].kind == "matrix" else torch.float32
        converted[target] = change(weight.detach().cpu()).to(dtype).contiguous()
    return converted


def config(architecture: MambaArchitecture) -> dict[str, object]:
    """`config.json`, with the keys that MambaConfig has and no legacy duplicates."""
    a = architecture
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": a.d_model,
        "intermediate_size": a.d_inner,
        "expand": a.d_inner // a.d_model,
        "num_hidden_layers": a.n_layer,
        "state_size": a.d_state,
        "conv_kernel": a.d_conv,
        "time_step_rank": a.dt_rank,
        "hidden_act": "silu",
        "layer_norm_epsilon": a.norm_eps,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
        "vocab_size": a.vocab_size,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": END_OF_TEXT_ID,
        "torch_dtype": "float16",
    }


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
}

GENERATION_CONFIG = {
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
    "pad_token_id": END_OF_TEXT_ID,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
}


def write_checkpoint(
    weights: dict[str, Tensor], architecture: MambaArchitecture, tokenizer: Path, output: Path
) -> None:
    """Writes the folder that `mamba-orin convert` and `from_pretrained` read.

    Args:
        weights: Named as in `architecture.weights()`.
        architecture: Sizes.
        tokenizer: A `tokenizer.json` to put beside the weights.
        output: Folder, made if need be.
    """
    output.mkdir(parents=True, exist_ok=True)
    tensors = to_hf(weights, architecture)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    (output / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    for name, content in (
        ("config.json", config(architecture)),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
        ("generation_config.json", GENERATION_CONFIG),
    ):
        (output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
