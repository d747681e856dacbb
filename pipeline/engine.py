# SPDX-License-Identifier: MIT
"""Prepares a bundle for one backend on this machine, and loads what was prepared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from pipeline.board import read_board
from pipeline.errors import ArtifactNotFoundError, BackendError, EngineMismatchError, UsageError
from pipeline.manifest import (
    MANIFEST_FILE,
    Backend,
    EngineManifest,
    SelfTest,
    describe_files,
    now,
    read_bundle,
    read_engine,
    write_manifest,
)
from pipeline.onnx_export import export_graphs
from pipeline.onnxruntime_session import VERSION as ONNXRUNTIME_VERSION
from pipeline.onnxruntime_session import OnnxRuntimeSession
from pipeline.session import Session
from pipeline.settings import default_threads
from pipeline.storage import new_folder, storage_errors
from pipeline.tokenizer import Tokenizer
from pipeline.weights import WEIGHT_FILE, read_places

BackendChoice = Literal["auto", "onnxruntime"]

# Tokens of one prefill call: long enough to feed the matrix products, short enough that the
# scan's temporaries (l * n * d floats, twice) stay near the cache. Measured on 2 CPU cores.
DEFAULT_MAX_LENGTH = 128
DEFAULT_MAX_BATCH = 8

# ONNX Runtime's MatMulNBits at this level rounds activations to 8 bits, by groups, and multiplies
# integers. docs/quantisation.md has what that costs and what it saves.
_ACCURACY_LEVEL = 4

# Prefill and single steps do the same arithmetic in another order. Where activations are rounded
# to 8 bits, the order decides now and then which way one is rounded: of the largest logit, 2 %
# was the most that was seen.
_SELF_TEST_TOLERANCE = 1e-3
_SELF_TEST_TOLERANCE_PACKED = 1e-1
_SELF_TEST_TOKENS = 8


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that is ready to run.

    Attributes:
        session: The model.
        tokenizer: None when the checkpoint came without one.
        manifest: What the engine is.
        folder: Where it lies.
        bundle: Where the bundle lies that holds its weights.
    """

    session: Session
    tokenizer: Tokenizer | None
    manifest: EngineManifest
    folder: Path
    bundle: Path


def build(
    bundle: Path,
    output: Path,
    backend: BackendChoice = "auto",
    max_batch: int = DEFAULT_MAX_BATCH,
    max_length: int = DEFAULT_MAX_LENGTH,
) -> EngineManifest:
    """Builds an engine and asks it a question before it appears under its name.

    Args:
        bundle: A folder written by `convert`.
        output: Folder of the engine; an older engine there is replaced at the very end.
        backend: What shall run it; "auto" takes the fastest that this machine has.
        max_batch: Texts at once.
        max_length: Tokens of one prefill call; longer prompts are read in pieces.

    Returns:
        The manifest that was written.

    Raises:
        ArtifactError: The bundle cannot be used.
        StorageError: The engine cannot be written.
        BackendError: The backend refuses the graphs or contradicts itself.
    """
    for option, value in (("--max-batch", max_batch), ("--max-length", max_length)):
        if value < 1:
            raise UsageError(f"{option} is {value}", fix=f"{option} must be 1 or more")
    chosen: Backend = "onnxruntime" if backend == "auto" else backend
    manifest = read_bundle(bundle)
    weights = manifest.files[WEIGHT_FILE]
    is_packed = manifest.quantisation is not None
    with new_folder(output, marker=MANIFEST_FILE) as folder:
        # ONNX Runtime has no half-precision matrix product on the CPU: widen once, at load.
        with storage_errors(output):
            places = read_places(bundle / WEIGHT_FILE)
            export_graphs(
                folder,
                manifest.architecture,
                places,
                activation="float32",
                accuracy_level=_ACCURACY_LEVEL,
            )
        session = OnnxRuntimeSession(
            folder,
            bundle,
            manifest.architecture,
            max_batch,
            max_length,
            default_threads(),
            pack_for_prefill=is_packed,
        )
        engine = EngineManifest(
            created=now(),
            precision=manifest.precision,
            model=manifest.model,
            backend=chosen,
            bundle=os.path.relpath(bundle.resolve(), output.resolve()),
            model_name=manifest.source["name"],
            weights_sha256=weights.sha256,
            weights_bytes=weights.bytes,
            max_batch=max_batch,
            max_length=max_length,
            machine=_this_machine(),
            versions={"onnxruntime": ONNXRUNTIME_VERSION, "onnx": onnx.__version__},
            self_test=_ask(
                session, _SELF_TEST_TOLERANCE_PACKED if is_packed else _SELF_TEST_TOLERANCE
            ),
            files=describe_files(folder),
        )
        write_manifest(folder, engine)
    return engine


def load_engine(folder: Path, threads: int | None = None) -> LoadedEngine:
    """Checks the files of an engine and of its bundle, and loads it.

    Args:
        folder: A folder written by `build`.
        threads: CPU threads; None takes `settings.default_threads`.

    Raises:
        ArtifactError: The engine or its bundle cannot be used.
        BackendError: The backend refuses it.
    """
    manifest = read_engine(folder)
    bundle = find_bundle(folder, manifest)
    session = OnnxRuntimeSession(
        folder,
        bundle,
        manifest.architecture,
        manifest.max_batch,
        manifest.max_length,
        threads or default_threads(),
        pack_for_prefill=manifest.precision in {"int8", "int4"},
    )
    has_tokenizer = (bundle / "tokenizer.json").is_file()
    tokenizer = Tokenizer(bundle) if has_tokenizer else None
    return LoadedEngine(session, tokenizer, manifest, folder, bundle)


def find_bundle(folder: Path, manifest: EngineManifest) -> Path:
    """Where the bundle of an engine lies.

    Raises:
        ArtifactError: It is not there, or has become another one.
    """
    bundle = Path(os.path.normpath(folder.resolve() / manifest.bundle))
    rebuild = f"build again: mamba-orin build BUNDLE --output {folder}"
    if not bundle.exists():
        raise ArtifactNotFoundError(
            f"engine {folder} was built from the bundle {bundle}, which is no longer there",
            fix=f"put the bundle back, or {rebuild}",
        )
    found = read_bundle(bundle).files[WEIGHT_FILE].sha256
    if found != manifest.weights_sha256:
        raise EngineMismatchError(
            f"engine {folder} was built for weights {manifest.weights_sha256[:12]}…, its bundle "
            f"{bundle} now holds {found[:12]}…",
            fix=rebuild,
        )
    return bundle


def _this_machine() -> dict[str, str]:
    board = read_board()
    return {
        "name": board.name,
        "instruction_set": board.instruction_set or "unknown",
        "operating_system": board.operating_system or "unknown",
    }


def _ask(session: Session, tolerance: float) -> SelfTest:
    """Reads a few tokens at once and one by one; both must come to the same logits.

    Args:
        session: The model.
        tolerance: Difference that is let pass, as a share of the largest logit (or of 1).
    """
    vocab_size = session.architecture.vocab_size
    token_ids = [(7 * i + 1) % vocab_size for i in range(_SELF_TEST_TOKENS)]
    ids = np.array([token_ids], dtype=np.int64)
    at_once, _ = session.prefill(ids)
    _, state = session.prefill(ids[:, :1])
    one_by_one = at_once
    for position in range(1, _SELF_TEST_TOKENS):
        one_by_one, state = session.step(ids[:, position], state)
    difference = float(np.abs(at_once - one_by_one).max())
    if not difference <= tolerance * max(1.0, float(np.abs(at_once).max())):
        raise BackendError(
            f"the engine contradicts itself: prefill and single steps differ by {difference:.3g}",
            fix="this is a fault of the backend on this machine; please report it with the output "
            "of 'mamba-orin board --json'",
        )
    logits = at_once[0].astype(np.float64)
    best = int(np.argmax(logits))
    logprob = float(-np.log(np.exp(logits - logits[best]).sum()))
    return SelfTest(token_ids=token_ids, next_token_id=best, logprob=logprob)
