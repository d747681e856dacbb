# SPDX-License-Identifier: MIT
"""Reads Mamba-1 and Falcon-Mamba models from GGUF files. The only module that imports gguf.

Quantised tensors are unpacked to exactly the numbers that llama.cpp computes with, by the
dequantisers of the `gguf` package, and from there on treated like any other checkpoint's.

Layout: `MambaModel` of llama.cpp's conversion scripts. Against the -hf layout, ssm_a is already
-exp(A_log), the convolution has lost its axis of 1, and a head equal to the embedding is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize

from pipeline.architecture import MambaArchitecture
from pipeline.errors import (
    CheckpointContradictionError,
    CheckpointCorruptError,
    CheckpointDtypeError,
    CheckpointNotFoundError,
    UnsupportedModelError,
)

# Name in the file -> name in `architecture.weights()`; those of a block follow `blk.{i}.` there.
_NAMES = {
    "token_embd.weight": "embedding.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
_BLOCK_NAMES = {
    "attn_norm.weight": "norm.weight",
    "ssm_in.weight": "in_proj.weight",
    "ssm_conv1d.weight": "conv.weight",
    "ssm_conv1d.bias": "conv.bias",
    "ssm_x.weight": "x_proj.weight",
    "ssm_dt.weight": "dt_proj.weight",
    "ssm_dt.bias": "dt_proj.bias",
    "ssm_a": "A",
    "ssm_d": "D",
    "ssm_out.weight": "out_proj.weight",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# (d, k) and (d, n) there, (k, d) and (n, d) here.
_TRANSPOSED = ("conv.weight", ".A")

_ARCHITECTURE = "mamba"
_METADATA_SIZES = {
    "block_count": "n_layer",
    "embedding_length": "d_model",
    "ssm.inner_size": "d_inner",
    "ssm.state_size": "d_state",
    "ssm.conv_kernel": "d_conv",
    "ssm.time_step_rank": "dt_rank",
}


@dataclass(frozen=True)
class GgufCheckpoint:
    """Looks like an opened `checkpoint.Checkpoint`; see there for the attributes.

    Attributes:
        metadata: The key-value pairs of the file; `gguf_tokenizer` reads its vocabulary there.
    """

    name: str
    architecture: MambaArchitecture
    format: str
    folder: Path | None
    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    _tensors: Mapping[str, Any]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields each weight in the order, shape and meaning of `architecture.weights()`.

        Raises:
            CheckpointDtypeError: A tensor is of a type that weights are not read from.
            CheckpointCorruptError: A tensor holds NaN or infinity.
        """
        for name, weight in self.architecture.weights().items():
            if name not in self._tensors:  # a convolution without bias
                yield name, torch.zeros(weight.shape)
                continue
            tensor = self._tensors[name]
            try:
                values = dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError as error:
                raise CheckpointDtypeError(
                    f"tensor {tensor.name} is {tensor.tensor_type.name}, which cannot be unpacked",
                    fix="use a file in F16, Q8_0, Q4_0 or one of the K types",
                ) from error
            if not np.isfinite(values).all():
                raise CheckpointCorruptError(
                    f"tensor {tensor.name} holds NaN or infinity",
                    fix="download the file again; if it stays so, it was quantised wrongly",
                )
            if name.endswith(_TRANSPOSED):
                values = values.T
            # A copy: mapped arrays cannot be written to, which torch warns of.
            yield name, torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


def open_gguf(path: Path) -> GgufCheckpoint:
    """Opens a GGUF file and says what it is.

    Args:
        path: The file.

    Raises:
        CheckpointNotFoundError: There is no file, or a tensor is missing.
        CheckpointCorruptError: It is truncated or no GGUF file.
        UnsupportedModelError: It is no Mamba-1, or one of several parts.
        CheckpointContradictionError: Metadata and tensors, or two tensors, disagree.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"no file {path}", fix="give a .gguf file that exists")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise CheckpointCorruptError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a GGUF file: {error}",
            fix="download it again and compare its size with the source",
        ) from error
    _refuse_others(metadata, path)
    tensors = _renamed(reader.tensors, path)
    architecture = _checked(_sizes(tensors, metadata), tensors, metadata, path)
    known = {kind.value: kind.name.removeprefix("MOSTLY_") for kind in gguf.LlamaFileType}
    file_type = known.get(metadata.get("general.file_type", -1), "mixed")
    return GgufCheckpoint(
        name=path.stem,
        architecture=architecture,
        format=f"gguf-{file_type.lower()}",
        folder=None,
        files=(path,),
        metadata=metadata,
        _tensors=tensors,
    )


def _refuse_others(metadata: Mapping[str, Any], path: Path) -> None:
    found = metadata.get("general.architecture")
    if found != _ARCHITECTURE:
        raise UnsupportedModelError(
            f"{path} is not a Mamba-1: its general.architecture is {found!r}",
            fix="convert reads Mamba-1 and Falcon-Mamba; for other models use another runtime",
        )
    if metadata.get("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{path} is one of {metadata['split.count']} parts",
            fix="join them first, with llama.cpp's llama-gguf-split --merge",
        )


def _renamed(tensors: list[Any], path: Path) -> dict[str, Any]:
    renamed, unknown = {}, []
    for tensor in tensors:
        match = _BLOCK.fullmatch(tensor.name)
        if match and match[2] in _BLOCK_NAMES:
            renamed[f"layers.{match[1]}.{_BLOCK_NAMES[match[2]]}"] = tensor
        elif tensor.name in _NAMES:
            renamed[_NAMES[tensor.name]] = tensor
        else:
            unknown.append(tensor.name)
    if unknown:
        raise UnsupportedModelError(
            f"{path} holds tensors that a Mamba-1 does not have: {', '.join(unknown[:4])}"
            + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""),
            fix="hybrids and models with other mixers are not supported",
        )
    return renamed


def _sizes(tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> MambaArchitecture:
    layers = {int(name.split(".")[1]) for name in tensors if name.startswith("layers.")}

    def size(name: str, axis: int) -> int:
        shape = _shape(_existing(tensors, name))
        return shape[axis] if axis < len(shape) else 0

    rows = size("embedding.weight", 0)
    eps = float(metadata.get(f"{_ARCHITECTURE}.attention.layer_norm_rms_epsilon", 1e-5))
    # llama.cpp norms dt, B and C with the epsilon of the other norms.
    has_mixer_norms = bool(metadata.get(f"{_ARCHITECTURE}.ssm.dt_b_c_rms", False))
    return MambaArchitecture(
        d_model=size("embedding.weight", 1),
        n_layer=len(layers),
        d_inner=size("layers.0.out_proj.weight", 1),
        d_state=size("layers.0.A", 1),
        d_conv=size("layers.0.conv.weight", 1),
        dt_rank=size("layers.0.dt_proj.weight", 1),
        vocab_size=rows,
        vocab_rows=rows,
        tied_head="head.weight" not in tensors,
        norm_eps=eps,
        mixer_norm_eps=eps if has_mixer_norms else None,
    )


def _checked(
    architecture: MambaArchitecture,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    path: Path,
) -> MambaArchitecture:
    for key, field in _METADATA_SIZES.items():
        said, measured = metadata.get(f"{_ARCHITECTURE}.{key}"), getattr(architecture, field)
        if said is not None and said != measured:
            raise CheckpointContradictionError(
                f"{path} says {_ARCHITECTURE}.{key} = {said}, its tensors have {measured}",
                fix="download the file again",
            )
    for name, weight in architecture.weights().items():
        if name.endswith("conv.bias") and name not in tensors:
            continue
        tensor = _existing(tensors, name)
        expected = weight.shape[::-1] if name.endswith(_TRANSPOSED) else weight.shape
        if _shape(tensor) != expected:
            raise CheckpointContradictionError(
                f"tensor {tensor.name} has shape {list(_shape(tensor))}; the other tensors make "
                f"it {list(expected)}",
                fix="download the file again",
            )
    return architecture


def _existing(tensors: Mapping[str, Any], name: str) -> Any:
    if name not in tensors:
        raise CheckpointNotFoundError(
            f"the tensor that is {name} in other checkpoints is not in the file",
            fix="download the file again, or use one that holds a whole model",
        )
    return tensors[name]


def _shape(tensor: Any) -> tuple[int, ...]:
    """Sizes, outermost first; GGUF counts from the innermost."""
    return tuple(int(size) for size in reversed(tensor.shape))
