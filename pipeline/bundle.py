# SPDX-License-Identifier: MIT
"""Turns a checkpoint into a bundle: two graphs, one weight file, tokenizer, manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.architecture import MambaArchitecture
from pipeline.checkpoint import Checkpoint, open_checkpoint
from pipeline.errors import (
    CheckpointContradictionError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
)
from pipeline.manifest import (
    MANIFEST_FILE,
    PREFILL_GRAPH,
    STEP_GRAPH,
    TOKENIZER_FILES,
    BundleManifest,
    Precision,
    Quantisation,
    describe_files,
    now,
    write_manifest,
)
from pipeline.onnx_export import export_graphs
from pipeline.quantize import (
    Packing,
    QuantisationChoice,
    choose_packings,
    round_to_nearest,
    scales_name,
)
from pipeline.random_checkpoint import PREFIX, RandomCheckpoint, open_random
from pipeline.settings import Progress, no_progress
from pipeline.storage import new_folder, require_room, sha256_of, storage_errors
from pipeline.tokenizer import Tokenizer
from pipeline.weights import WEIGHT_FILE, Plan, plan_places, write_weights

_FLOAT32, _FLOAT16, _INT32 = (np.dtype(kind) for kind in (np.float32, np.float16, np.int32))
# Graphs, manifest and tokenizer of the largest published model stay well below this.
_ROOM_BESIDE_WEIGHTS_BYTES = 32_000_000


def convert(
    source: str | Path,
    output: Path,
    precision: Precision = "fp32",
    tokenizer_path: Path | None = None,
    progress: Progress = no_progress,
    choice: QuantisationChoice | None = None,
) -> BundleManifest:
    """Converts a checkpoint into a bundle.

    Args:
        source: Folder or weight file of a Mamba-1 checkpoint, or `random:` and the name of a
            published shape.
        output: Folder of the bundle; an older bundle there is replaced at the very end.
        precision: Type of the matrices; everything else is float32. Matrices whose rows
            cannot be cut into groups stay in float16 where int8 or int4 is asked for.
        tokenizer_path: tokenizer.json, or the folder that holds it, when it does not lie
            beside the checkpoint.
        progress: Called after each tensor, with bytes.
        choice: What else was chosen about int8 and int4.

    Returns:
        The manifest that was written.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        StorageError: The bundle cannot be written.
    """
    is_random = str(source).startswith(PREFIX)
    checkpoint = open_random(str(source)) if is_random else open_checkpoint(Path(source))
    tokenizer_folder = _tokenizer_folder(checkpoint.folder, tokenizer_path)
    architecture = _mask_rows_without_token(checkpoint.architecture, tokenizer_folder)
    choice = choice or QuantisationChoice()
    packed = choose_packings(architecture, precision, choice)
    plan = _plan(architecture, precision, packed)
    places = plan_places(plan)
    total_bytes = sum(place.length for place in places.values())
    require_room(output, total_bytes + _ROOM_BESIDE_WEIGHTS_BYTES)
    with new_folder(output, marker=MANIFEST_FILE) as folder:
        values = _converted(checkpoint, plan, packed, total_bytes, progress)
        weights_sha256 = write_weights(folder / WEIGHT_FILE, plan, values)
        with storage_errors(output):
            export_graphs(folder, architecture, places)
        for graph in (PREFILL_GRAPH, STEP_GRAPH):
            onnx.checker.check_model(folder / graph)
        copy_tokenizer(tokenizer_folder, folder)
        manifest = BundleManifest(
            created=now(),
            precision=precision,
            model=architecture.to_dict(),
            source={
                "name": checkpoint.name,
                "format": checkpoint.format,
                "sha256": {path.name: sha256_of(path) for path in checkpoint.files},
            },
            quantisation=_quantisation(architecture, packed, choice) if packed else None,
            files=describe_files(folder, known={WEIGHT_FILE: weights_sha256}),
        )
        write_manifest(folder, manifest)
    return manifest


def copy_tokenizer(source: Path | None, target: Path) -> None:
    """Copies those tokenizer files that exist."""
    if source is None:
        return
    with storage_errors(target):
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)


def _plan(
    architecture: MambaArchitecture, precision: Precision, packed: Mapping[str, Packing]
) -> Plan:
    """Type and shape of each tensor of the weight file; scales follow their matrix."""
    matrix_dtype = _FLOAT32 if precision == "fp32" else _FLOAT16
    plan: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for name, weight in architecture.weights().items():
        if name in packed:
            rows, columns = weight.shape
            words, scales = packed[name].shapes(rows, columns)
            plan[name], plan[scales_name(name)] = (_INT32, words), (_FLOAT16, scales)
        else:
            plan[name] = (matrix_dtype if weight.kind == "matrix" else _FLOAT32, weight.shape)
    return plan


def _quantisation(
    architecture: MambaArchitecture, packed: Mapping[str, Packing], choice: QuantisationChoice
) -> Quantisation:
    is_tied = architecture.tied_head
    return Quantisation(
        method="rtn",
        embedding_precision=choice.embedding_precision,
        head_precision=choice.embedding_precision if is_tied else choice.head_precision,
        group_sizes={
            name: packing.group_size
            for name, packing in packed.items()
            if not name.startswith("layers.") or name.startswith("layers.0.")
        },
    )


def _converted(
    checkpoint: Checkpoint | RandomCheckpoint,
    plan: Plan,
    packed: Mapping[str, Packing],
    total_bytes: int,
    progress: Progress,
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    done = 0
    progress(done, total_bytes)
    for name, tensor in checkpoint.tensors():
        if name in packed:
            words, scales = round_to_nearest(name, tensor.numpy(), packed[name])
            yield name, words
            yield scales_name(name), scales
            done += words.nbytes + scales.nbytes
        else:
            value = _narrowed(name, tensor.numpy(), plan[name][0])
            yield name, value
            done += value.nbytes
        progress(done, total_bytes)


def _narrowed(
    name: str, value: npt.NDArray[np.float32], dtype: np.dtype[Any]
) -> npt.NDArray[np.generic]:
    limit = np.finfo(dtype).max
    largest = np.abs(value).max(initial=0)
    if largest > limit:
        raise CheckpointCorruptError(
            f"tensor {name} holds {largest:.3g}, more than {dtype} can ({limit:.3g})",
            fix="convert with --precision fp32",
        )
    return value.astype(dtype, copy=False)


def _tokenizer_folder(beside: Path | None, given: Path | None) -> Path | None:
    if given is None:
        has_one = beside is not None and (beside / "tokenizer.json").is_file()
        return beside if has_one else None
    folder = given.parent if given.is_file() else given
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointNotFoundError(
            f"no tokenizer.json at {given}",
            fix="give the file or its folder; state-spaces models use the one of gpt-neox-20b",
        )
    return folder


def _mask_rows_without_token(
    architecture: MambaArchitecture, tokenizer_folder: Path | None
) -> MambaArchitecture:
    """Ids that no token has cannot be read or written, so they are no part of the vocabulary."""
    if tokenizer_folder is None:
        return architecture
    size = Tokenizer(tokenizer_folder).size
    if size > architecture.vocab_rows:
        raise CheckpointContradictionError(
            f"{tokenizer_folder / 'tokenizer.json'} has {size} token ids, the embedding has "
            f"{architecture.vocab_rows} rows",
            fix="this tokenizer belongs to another model; give the right one with --tokenizer",
        )
    return replace(architecture, vocab_size=min(architecture.vocab_size, size))
