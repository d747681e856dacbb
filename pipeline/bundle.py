# SPDX-License-Identifier: MIT
"""Turns a checkpoint into a bundle: two graphs, one weight file, tokenizer, manifest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from pipeline import __version__
from pipeline.architecture import MambaArchitecture
from pipeline.calibration import Calibrator
from pipeline.errors import CheckpointError, UsageError
from pipeline.manifest import (
    MANIFEST_FILE,
    PREFILL_GRAPH,
    STEP_GRAPH,
    TOKENIZER_FILES,
    BundleManifest,
    Calibration,
    Precision,
    Quantisation,
    describe_files,
    now,
    write_manifest,
)
from pipeline.onnx_export import export_graphs
from pipeline.quantize import Packing, QuantisationChoice, choose_packings
from pipeline.resumption import KeptParts, kept_bytes
from pipeline.settings import Progress, no_progress
from pipeline.source import Source, open_source
from pipeline.storage import new_folder, require_room, sha256_of, storage_errors
from pipeline.stored_tensors import NamedTensors, packed_tensors, plan_tensors, unpacked_tensors
from pipeline.tokenizer import Tokenizer
from pipeline.weights import WEIGHT_FILE, Plan, plan_places, write_weights

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
        source: Folder or weight file of a Mamba-1 checkpoint, a GGUF file, or `random:` and the
            name of a published shape.
        output: Folder of the bundle; an older bundle there is replaced at the very end.
        precision: Type of the matrices; everything else is float32. Matrices whose rows
            cannot be cut into groups stay in float16 where int8 or int4 is asked for.
        tokenizer_path: tokenizer.json, or the folder that holds it, when it does not come
            with the checkpoint.
        progress: Called after each tensor, with bytes.
        choice: What else was chosen about int8 and int4.

    Returns:
        The manifest that was written.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        StorageError: The bundle cannot be written.
    """
    choice = choice or QuantisationChoice()
    if choice.calibration_text is not None and precision in {"fp32", "fp16"}:
        raise UsageError(
            f"a calibration text has no say in {precision}: its weights are rounded to nothing "
            "coarser than the checkpoint's",
            fix="give --precision int8 or int4, or leave --calibration-text out",
        )
    with open_source(source, tokenizer_path) as opened:
        return _write_bundle(opened, output, precision, progress, choice)


def _write_bundle(
    source: Source,
    output: Path,
    precision: Precision,
    progress: Progress,
    choice: QuantisationChoice,
) -> BundleManifest:
    checkpoint, architecture = source.checkpoint, source.architecture
    tokenizer_folder = source.tokenizer_folder
    packed = choose_packings(architecture, precision, choice)
    calibrator, calibration = _calibration(architecture, choice, tokenizer_folder)
    plan = plan_tensors(architecture, precision, packed)
    places = plan_places(plan)
    total_bytes = sum(place.length for place in places.values())
    # Finished parts of a packed bundle are kept until it is whole.
    for_parts = max(0, total_bytes - kept_bytes(output)) if packed else 0
    require_room(output, total_bytes + for_parts + _ROOM_BESIDE_WEIGHTS_BYTES)
    with new_folder(output, marker=MANIFEST_FILE) as folder:
        if packed:
            key = _conversion_key(source, plan, calibration)
            kept = KeptParts(output, key)
            values = packed_tensors(
                checkpoint.tensors(), plan, architecture, packed, kept, calibrator
            )
        else:
            kept = None
            values = unpacked_tensors(checkpoint.tensors(), plan)
        values = _counted(values, total_bytes, progress)
        try:
            weights_sha256 = write_weights(folder / WEIGHT_FILE, plan, values)
        except CheckpointError:  # nothing will mend this but another checkpoint
            if kept is not None:
                kept.remove()
            raise
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
            quantisation=(
                _quantisation(architecture, packed, choice, calibration) if packed else None
            ),
            files=describe_files(folder, known={WEIGHT_FILE: weights_sha256}),
        )
        write_manifest(folder, manifest)
    if kept is not None:
        kept.remove()
    return manifest


def copy_tokenizer(source: Path | None, target: Path) -> None:
    """Copies those tokenizer files that exist."""
    if source is None:
        return
    with storage_errors(target):
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)


def _counted(values: NamedTensors, total_bytes: int, progress: Progress) -> NamedTensors:
    done = 0
    progress(done, total_bytes)
    for name, value in values:
        yield name, value
        done += value.nbytes
        progress(done, total_bytes)


def _calibration(
    architecture: MambaArchitecture, choice: QuantisationChoice, tokenizer_folder: Path | None
) -> tuple[Calibrator, Calibration] | tuple[None, None]:
    """What chooses packed weights, and what the manifest says about it."""
    path = choice.calibration_text
    if path is None:
        return None, None
    if tokenizer_folder is None:
        raise UsageError(
            f"{path} cannot be read: the checkpoint has no tokenizer",
            fix="give --tokenizer FILE, or leave --calibration-text out",
        )
    try:
        content = path.read_bytes()
        token_ids = Tokenizer(tokenizer_folder).encode(content.decode())
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", fix="give a text file that exists"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}",
            fix="convert the file to UTF-8 first",
        ) from error
    calibrator = Calibrator(architecture, token_ids, choice.calibration_tokens)
    return calibrator, Calibration(
        source=path.name, sha256=hashlib.sha256(content).hexdigest(), tokens=calibrator.tokens
    )


def _conversion_key(
    source: Source,
    plan: Plan,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """All that the stored tensors depend on; files by size and time, as a build tool does."""
    files = {str(path.absolute()): path.stat() for path in source.checkpoint.files}
    tokenizer = source.tokenizer_folder if calibration is not None else None
    return {
        "generator": __version__,
        "checkpoint": source.checkpoint.name,
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        "tensors": {name: [dtype.name, list(shape)] for name, (dtype, shape) in plan.items()},
        "calibration": calibration.model_dump() if calibration else None,
        "tokenizer": sha256_of(tokenizer / "tokenizer.json") if tokenizer else None,
    }


def _quantisation(
    architecture: MambaArchitecture,
    packed: Mapping[str, Packing],
    choice: QuantisationChoice,
    calibration: Calibration | None,
) -> Quantisation:
    is_tied = architecture.tied_head
    return Quantisation(
        method="rtn" if calibration is None else "gptq",
        embedding_precision=choice.embedding_precision,
        head_precision=choice.embedding_precision if is_tied else choice.head_precision,
        group_sizes={
            name: packing.group_size
            for name, packing in packed.items()
            if not name.startswith("layers.") or name.startswith("layers.0.")
        },
        calibration=calibration,
    )
