# SPDX-License-Identifier: MIT
"""GGUF files as llama.cpp's conversion scripts write them, from `-hf` checkpoints.

Written by the gguf package; which tensor is called what, how it lies and which metadata go with
it follows `MambaModel` and `_set_vocab_gpt2` of llama.cpp, spelled out here a second time so that
the reader is not its own witness.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from safetensors.numpy import load_file

BLOCK = "backbone.layers.{}."
TENSORS = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
}

Tensors = dict[str, Any]
Change = Callable[[gguf.GGUFWriter, Tensors], None]


def tensors_of(checkpoint: Path) -> Tensors:
    """The tensors of a `-hf` checkpoint under their names in GGUF, float32."""
    source = {name: np.float32(value) for name, value in load_file(checkpoint).items()}
    tensors: Tensors = {"token_embd.weight": source["backbone.embeddings.weight"]}
    layers = 1 + max(int(name.split(".")[2]) for name in source if ".layers." in name)
    for layer in range(layers):
        for theirs, name in TENSORS.items():
            value = source[BLOCK.format(layer) + theirs]
            if theirs == "mixer.conv1d.weight":
                value = value.squeeze()
            elif theirs == "mixer.A_log":
                value = -np.exp(value)
            tensors[f"blk.{layer}.{name}"] = value
    tensors["output_norm.weight"] = source["backbone.norm_f.weight"]
    head = source.get("lm_head.weight")
    if head is not None and not np.array_equal(head, tensors["token_embd.weight"]):
        tensors["output.weight"] = head
    return tensors


def packed(tensor: Any, kind: Kind) -> tuple[Any, Kind]:
    """A matrix in the wanted kind, or in F16 where its rows cannot be cut into blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if tensor.ndim < 2 or tensor.shape[-1] % block:
        kind = Kind.F16
    return quantize(np.ascontiguousarray(tensor), kind), kind


def write_gguf(
    checkpoint: Path, path: Path, kind: Kind = Kind.F32, change: Change | None = None
) -> Tensors:
    """Writes a `-hf` checkpoint as a GGUF file.

    Args:
        checkpoint: Folder of one safetensors file.
        path: The file.
        kind: Of the matrices; all else is F32, as llama.cpp keeps it.
        change: What to do to the file's metadata and tensors before they are written.

    Returns:
        What was written, by name: arrays, and those of other kinds as bytes.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_ssm_dt_b_c_rms(config["model_type"] == "falcon_mamba")
    if (checkpoint / "tokenizer.json").is_file():
        add_vocabulary(writer, checkpoint, config["vocab_size"])
    tensors = tensors_of(checkpoint / "model.safetensors")
    if change is not None:
        change(writer, tensors)
    for name, value in tensors.items():
        is_matrix = name.endswith(".weight") and value.ndim == 2 and "conv1d" not in name
        data, stored = packed(value, kind) if is_matrix else (np.float32(value), Kind.F32)
        tensors[name] = data
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, rows: int, pre: str = "olmo") -> None:
    """The tokenizer of a checkpoint as metadata; rows without a token get a placeholder."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [int(gguf.TokenType.UNUSED)] * rows
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, int(gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
