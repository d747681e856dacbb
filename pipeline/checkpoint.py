# SPDX-License-Identifier: MIT
"""Reads Mamba-1 checkpoints as people have them.

Two namings (state-spaces and Hugging Face `-hf`) in four containers (`.safetensors`, `.bin`,
`.pth`, and both kinds of sharded index). Sizes come from the tensors; the config is only
checked against them, because published configs carry wrong keys.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open

from pipeline.architecture import MambaArchitecture
from pipeline.errors import (
    CheckpointContradictionError,
    CheckpointCorruptError,
    CheckpointDtypeError,
    CheckpointNotFoundError,
    UnsupportedModelError,
)

# Name-map tables, one a format: name in the checkpoint -> name in `architecture.weights()`.
# Block tensors follow `backbone.layers.{i}.` there and `layers.{i}.` here.
_BLOCK_NAMES = {
    "norm.weight": "norm.weight",
    "mixer.in_proj.weight": "in_proj.weight",
    "mixer.conv1d.weight": "conv.weight",
    "mixer.conv1d.bias": "conv.bias",
    "mixer.x_proj.weight": "x_proj.weight",
    "mixer.dt_proj.weight": "dt_proj.weight",
    "mixer.dt_proj.bias": "dt_proj.bias",
    "mixer.A_log": "A",
    "mixer.D": "D",
    "mixer.out_proj.weight": "out_proj.weight",
}
STATE_SPACES_NAMES = {
    "backbone.embedding.weight": "embedding.weight",
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
HUGGING_FACE_NAMES = {
    "backbone.embeddings.weight": "embedding.weight",
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
_FORMATS = {"state-spaces": STATE_SPACES_NAMES, "hf": HUGGING_FACE_NAMES}

# Config key -> field of MambaArchitecture. `d_inner` and `expand` are left out on purpose:
# published configs hold wrong ones (mamba-370m-hf says d_inner 160, falcon-mamba expand 16).
_CONFIG_FIELDS = {
    "d_model": "d_model",
    "hidden_size": "d_model",
    "n_layer": "n_layer",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "d_inner",
    "state_size": "d_state",
    "conv_kernel": "d_conv",
    "time_step_rank": "dt_rank",
    "ssm_cfg.d_state": "d_state",
    "ssm_cfg.d_conv": "d_conv",
    "ssm_cfg.dt_rank": "dt_rank",
}
_READABLE_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LAYER = re.compile(r"backbone\.layers\.(\d+)\.(.+)")


class _Container(Protocol):
    """One file of tensors, read one at a time."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, checked against its config, with no tensor read yet.

    Attributes:
        name: What to call it: the name of its folder.
        architecture: Sizes, from the tensors.
        format: "state-spaces" or "hf", with "falcon" for the variant with mixer norms.
        folder: Where it lies; its tokenizer is looked for there.
        files: The files that hold it, config included.
    """

    name: str
    architecture: MambaArchitecture
    format: str
    folder: Path
    files: tuple[Path, ...]
    _sources: dict[str, tuple[_Container, str]]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields each weight in the order, shape and meaning of `architecture.weights()`.

        All are float32: A is -exp(A_log) as (n, d), the convolution is (k, d).

        Raises:
            CheckpointDtypeError: A tensor is of a type that weights are not read from.
            CheckpointCorruptError: A tensor holds NaN or infinity.
        """
        for name, weight in self.architecture.weights().items():
            if name not in self._sources:  # a convolution without bias
                yield name, torch.zeros(weight.shape)
                continue
            container, source_name = self._sources[name]
            tensor = container.read(source_name)
            if tensor.dtype not in _READABLE_TYPES:
                raise CheckpointDtypeError(
                    f"tensor {source_name} is {tensor.dtype}; weights are read from "
                    "float32, float16 and bfloat16",
                    fix="use the checkpoint as published, before any quantisation",
                )
            tensor = _in_our_layout(name, tensor.float())
            if not torch.isfinite(tensor).all():
                raise CheckpointCorruptError(
                    f"tensor {source_name} holds NaN or infinity",
                    fix="download the checkpoint again; if it stays so, the training diverged",
                )
            yield name, tensor


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint and says what it is.

    Args:
        path: The folder that holds config.json and the weights, or the weight file itself.

    Raises:
        CheckpointNotFoundError: A file is missing.
        CheckpointCorruptError: A file is truncated or not what its name says.
        UnsupportedModelError: It is no Mamba-1.
        CheckpointContradictionError: Config and tensors, or two tensors, disagree.
    """
    folder, weight_file = _locate(path)
    config_path = folder / "config.json"
    config = _read_config(config_path)
    _refuse_other_models(config, config_path)
    containers, weight_files = _open_containers(weight_file)
    sources = {name: (box, name) for box in containers for name in box.names()}
    format_name, renamed = _rename(sources)
    architecture = _sizes(renamed)
    _check_shapes(architecture, renamed)
    architecture = _with_config(architecture, config, config_path, format_name)
    if architecture.mixer_norm_eps is not None:
        format_name += "-falcon"
    return Checkpoint(
        name=folder.resolve().name,
        architecture=architecture,
        format=format_name,
        folder=folder,
        files=(config_path, *weight_files),
        _sources=renamed,
    )


# --- finding and opening files -------------------------------------------------------------


def _locate(path: Path) -> tuple[Path, Path]:
    if not path.exists():
        raise CheckpointNotFoundError(
            f"no checkpoint at {path}",
            fix="give the folder that holds config.json and the weights (model.safetensors, "
            "pytorch_model.bin or a .pth)",
        )
    if path.is_file():
        return path.parent, path
    candidates = [path / name for name in _MODEL_FILES if (path / name).is_file()]
    candidates += sorted(path.glob("*.pth")) + sorted(path.glob("*.pt"))
    if not candidates:
        found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise CheckpointNotFoundError(
            f"no weights in {path}: looked for {', '.join(_MODEL_FILES)} and *.pth, found {found}",
            fix="download the weight file into this folder",
        )
    return path, candidates[0]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{path} is missing",
            fix="every published checkpoint has one beside its weights; download it too",
        ) from error
    except ValueError as error:
        raise CheckpointCorruptError(
            f"{path} is not JSON: {error}", fix="download it again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointCorruptError(f"{path} is not a JSON object", fix="download it again")
    return config


def _open_containers(weight_file: Path) -> tuple[list[_Container], list[Path]]:
    if not weight_file.name.endswith(".index.json"):
        return [_open_container(weight_file)], [weight_file]
    index = _read_config(weight_file)
    try:
        shard_names = sorted(set(index["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointCorruptError(
            f"{weight_file} has no weight_map", fix="download it again"
        ) from error
    shards = [weight_file.parent / name for name in shard_names]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointNotFoundError(
            f"{weight_file} names {len(shards)} files; missing: {', '.join(missing)}",
            fix="download the missing files into the same folder",
        )
    return [_open_container(shard) for shard in shards], [weight_file, *shards]


def _open_container(path: Path) -> _Container:
    if path.suffix == ".safetensors":
        return _Safetensors(path)
    return _Pickle(path)


class _Safetensors:
    """A `.safetensors` file, mapped; a tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointCorruptError(
                f"{path} ({path.stat().st_size} bytes) is truncated or not a safetensors file: "
                f"{error}",
                fix="download it again and compare its size with the source",
            ) from error

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class _Pickle:
    """A `.bin` or `.pth` file, loaded with weights_only so that it cannot run code."""

    def __init__(self, path: Path) -> None:
        values = _load_pickle(path)
        for key in ("state_dict", "model"):  # what training scripts wrap a state dict in
            if isinstance(values, dict) and isinstance(values.get(key), dict):
                values = values[key]
        if not isinstance(values, dict):
            raise CheckpointCorruptError(
                f"{path} holds a {type(values).__name__}, not a state dict",
                fix="save model.state_dict() and convert that",
            )
        self._tensors = {
            name.removeprefix("module."): tensor
            for name, tensor in values.items()
            if isinstance(tensor, torch.Tensor)
        }

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def _load_pickle(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files older than torch 1.6 are no zip archives and cannot be mapped.
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointCorruptError(
            f"{path} holds more than tensors, or is not a PyTorch file: {_first_line(error)}",
            fix="only plain state dicts are loaded, because a pickle can run any code: "
            "save model.state_dict() and convert that",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, BadZipFile) as error:
        raise CheckpointCorruptError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a PyTorch file: "
            f"{_first_line(error)}",
            fix="download it again and compare its size with the source",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- what the tensors say ------------------------------------------------------------------


def _rename(
    sources: dict[str, tuple[_Container, str]],
) -> tuple[str, dict[str, tuple[_Container, str]]]:
    format_name = next((name for name in _FORMATS if next(iter(_FORMATS[name])) in sources), None)
    if format_name is None:
        raise UnsupportedModelError(
            "these tensors are not a Mamba's: no backbone.embedding(s).weight among "
            f"{', '.join(sorted(sources)[:4])}, …",
            fix="convert reads Mamba-1 and Falcon-Mamba language models",
        )
    names = _FORMATS[format_name]
    renamed: dict[str, tuple[_Container, str]] = {}
    unknown = []
    for name, source in sources.items():
        match = _LAYER.fullmatch(name)
        if match and match[2] in _BLOCK_NAMES:
            renamed[f"layers.{match[1]}.{_BLOCK_NAMES[match[2]]}"] = source
        elif name in names:
            renamed[names[name]] = source
        else:
            unknown.append(name)
    if unknown:
        raise UnsupportedModelError(
            f"tensors that a Mamba-1 does not have: {', '.join(sorted(unknown)[:4])}"
            + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""),
            fix="Mamba-2, hybrids, LayerNorm models and projections with bias are not supported",
        )
    if _is_tied(renamed):
        renamed.pop("head.weight", None)
    return format_name, renamed


def _is_tied(renamed: dict[str, tuple[_Container, str]]) -> bool:
    if "head.weight" not in renamed:
        return True
    box, name = renamed["head.weight"]
    embedding_box, embedding_name = renamed["embedding.weight"]
    # Configs of both formats leave the key out or set it wrongly: the tensors decide.
    same_shape = box.shape(name) == embedding_box.shape(embedding_name)
    return same_shape and torch.equal(box.read(name), embedding_box.read(embedding_name))


def _sizes(renamed: dict[str, tuple[_Container, str]]) -> MambaArchitecture:
    layers = sorted({int(name.split(".")[1]) for name in renamed if name.startswith("layers.")})
    if layers != list(range(len(layers))) or not layers:
        raise CheckpointContradictionError(
            f"the blocks are not numbered 0, 1, 2, …: found {layers}",
            fix="a file of a sharded checkpoint is probably missing",
        )

    def size(name: str, axis: int) -> int:
        if name not in renamed:
            raise CheckpointNotFoundError(
                f"tensor {name} is in none of the checkpoint's files",
                fix="a file of the checkpoint is missing or belongs to another model",
            )
        box, source_name = renamed[name]
        shape = box.shape(source_name)
        if axis >= len(shape):
            raise CheckpointContradictionError(
                f"tensor {source_name} has shape {list(shape)}", fix="download it again"
            )
        return shape[axis]

    rows = size("embedding.weight", 0)
    return MambaArchitecture(
        d_model=size("embedding.weight", 1),
        n_layer=len(layers),
        d_inner=size("layers.0.in_proj.weight", 0) // 2,
        d_state=size("layers.0.A", 1),
        d_conv=size("layers.0.conv.weight", 2),
        dt_rank=size("layers.0.dt_proj.weight", 1),
        vocab_size=rows,
        vocab_rows=rows,
        tied_head="head.weight" not in renamed,
    )


# How a tensor lies in the checkpoint, given its shape in our layout.
_CHECKPOINT_SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "conv.weight": lambda shape: (shape[1], 1, shape[0]),
    "A": lambda shape: (shape[1], shape[0]),
}


def in_state_spaces_format(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The name and layout that mamba-ssm has for one of `architecture.weights()`.

    Args:
        name: Of the weight here.
        weight: In our layout and meaning.
    """
    for theirs, ours in STATE_SPACES_NAMES.items():
        if name == ours:
            return theirs, weight
    _, layer, part = name.split(".", 2)
    theirs = next(key for key, value in _BLOCK_NAMES.items() if value == part)
    if part == "A":
        weight = torch.log(-weight).T
    elif part == "conv.weight":
        weight = weight.T[:, None]
    return f"backbone.layers.{layer}.{theirs}", weight.contiguous()


def _in_our_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("conv.weight"):
        return tensor[:, 0, :].T.contiguous()  # (d, 1, k) -> (k, d)
    if name.endswith(".A"):
        return -torch.exp(tensor.T.contiguous())  # A_log (d, n) -> (n, d)
    return tensor.contiguous()


def _check_shapes(
    architecture: MambaArchitecture, renamed: dict[str, tuple[_Container, str]]
) -> None:
    for name, weight in architecture.weights().items():
        if name not in renamed:
            if name.endswith("conv.bias"):
                continue
            raise CheckpointNotFoundError(
                f"tensor {name} is in none of the checkpoint's files",
                fix="a file of the checkpoint is missing or belongs to another model",
            )
        box, source_name = renamed[name]
        suffix = next((key for key in _CHECKPOINT_SHAPES if name.endswith(f".{key}")), None)
        expected = _CHECKPOINT_SHAPES[suffix](weight.shape) if suffix else weight.shape
        found = box.shape(source_name)
        if found != expected:
            raise CheckpointContradictionError(
                f"tensor {source_name} has shape {list(found)}; the other tensors make it "
                f"{list(expected)}",
                fix="the file mixes two models or was edited; download the checkpoint again",
            )


# --- what the config says ------------------------------------------------------------------


def _refuse_other_models(config: dict[str, Any], path: Path) -> None:
    ssm = config.get("ssm_cfg") or {}
    model_type = config.get("model_type", "mamba")
    reason = None
    if model_type not in ("mamba", "falcon_mamba"):
        architectures = ", ".join(config.get("architectures") or []) or "no architecture named"
        reason = f"model_type is {model_type!r} ({architectures})"
    elif ssm.get("layer", "Mamba1") != "Mamba1":
        reason = f"ssm_cfg.layer is {ssm['layer']!r}"
    elif config.get("attn_layer_idx"):
        reason = f"it has attention layers at {config['attn_layer_idx']}"
    elif config.get("use_bias"):
        reason = "its projections have biases (use_bias)"
    elif config.get("rms_norm") is False:
        reason = "it uses LayerNorm (rms_norm is false)"
    if reason:
        raise UnsupportedModelError(
            f"{path.parent} is not a Mamba-1 this project runs: {reason}",
            fix="convert reads Mamba-1 and Falcon-Mamba; for other models use another runtime",
        )


def _with_config(
    architecture: MambaArchitecture, config: dict[str, Any], path: Path, format_name: str
) -> MambaArchitecture:
    for key, field in _CONFIG_FIELDS.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        measured = getattr(architecture, field)
        if isinstance(value, int) and value != measured:
            raise CheckpointContradictionError(
                f"{path} says {key} = {value}, the tensors have {measured}",
                fix="config and weights belong to different models; download both again",
            )
    falcon = config.get("model_type") == "falcon_mamba"
    return replace(
        architecture,
        vocab_size=_vocab_size(architecture.vocab_rows, config, path, format_name),
        norm_eps=float(config.get("layer_norm_epsilon", config.get("norm_epsilon", 1e-5))),
        mixer_norm_eps=float(config.get("mixer_rms_eps", 1e-6)) if falcon else None,
    )


def _vocab_size(rows: int, config: dict[str, Any], path: Path, format_name: str) -> int:
    """Rows that are tokens; state-spaces pads the embedding to a round number of rows."""
    vocab_size = int(config.get("vocab_size", rows))
    is_padded = format_name == "state-spaces"
    multiple = int(config.get("pad_vocab_size_multiple", 1)) if is_padded else 1
    padded = -(-vocab_size // multiple) * multiple
    # The other format may hold more rows than tokens without saying so, but never fewer.
    if vocab_size > rows or (is_padded and padded != rows):
        raise CheckpointContradictionError(
            f"{path} says vocab_size = {vocab_size} (padded to a multiple of {multiple}: "
            f"{padded}), the embedding has {rows} rows",
            fix="config and weights belong to different models; download both again",
        )
    return vocab_size
