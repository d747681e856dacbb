# SPDX-License-Identifier: MIT
"""Prepares a bundle for one backend on this machine, and loads what was prepared."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipeline.board import read_board
from pipeline.errors import ArtifactNotFoundError, BackendError, EngineMismatchError, UsageError
from pipeline.manifest import (
    MANIFEST_FILE,
    Activations,
    Backend,
    BundleManifest,
    EngineManifest,
    EngineOptions,
    SelfTest,
    describe_files,
    now,
    read_bundle,
    read_engine,
    write_manifest,
)
from pipeline.session import Session
from pipeline.settings import Progress, no_progress
from pipeline.storage import new_folder, storage_errors
from pipeline.tokenizer import Tokenizer
from pipeline.weights import WEIGHT_FILE

logger = logging.getLogger(__name__)

BackendChoice = Literal["auto", "cuda", "tensorrt", "onnxruntime"]

DEFAULT_MAX_BATCH = 8

# More than a GPU multiplies by the kernel for a few (`s6_prefill.FEW_TOKENS`), so that a prefill
# is asked as it will be used.
_SELF_TEST_TOKENS = 12


class BackendModule(Protocol):
    """What the module of a backend offers; see `onnxruntime_backend` for each."""

    DEFAULT_MAX_LENGTH: int

    @staticmethod
    def why_not(bundle: BundleManifest, /) -> str | None:
        """Why this machine cannot run a bundle on this backend; None when it can."""

    @staticmethod
    def prepare(
        folder: Path, bundle: Path, manifest: BundleManifest, options: EngineOptions, /
    ) -> None:
        """Writes the files of an engine."""

    @staticmethod
    def open_session(
        folder: Path,
        bundle: Path,
        manifest: BundleManifest,
        options: EngineOptions,
        threads: int | None,
        progress: Progress,
        /,
    ) -> Session:
        """Loads an engine."""

    @staticmethod
    def versions() -> dict[str, str]:
        """Version of every library the engine depends on."""

    @staticmethod
    def target() -> dict[str, str]:
        """What the engine is bound to and checked against when it is loaded."""

    @staticmethod
    def tolerance(manifest: BundleManifest, options: EngineOptions, /) -> float:
        """By how much prefill and steps may differ, as a share of the largest logit."""

    @staticmethod
    def rounds_activations(manifest: BundleManifest, options: EngineOptions, /) -> bool:
        """Whether products take activations of 8 bits."""


# What "auto" takes, the fastest that was measured first; the last one runs everywhere.
BACKENDS: tuple[Backend, ...] = ("cuda", "onnxruntime")


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


def choose_backend(
    choice: BackendChoice, manifest: BundleManifest, *, fall_back: bool = False
) -> tuple[Backend, str]:
    """Decides what shall run a bundle on this machine.

    Args:
        choice: What is wanted; "auto" takes the fastest that runs here.
        manifest: The bundle's.
        fall_back: Whether the fastest that runs here will do where the wanted one does not.

    Returns:
        The backend, and why it is this one, for people.
    """
    wanted: tuple[Backend, ...] = () if choice == "auto" else (choice,)
    if wanted and not fall_back:
        return wanted[0], "asked for"
    reasons = []
    for backend in (*wanted, *(other for other in BACKENDS if other not in wanted)):
        reason = _why_not(backend, manifest)
        if reason is None:
            reasons.append("asked for" if backend in wanted else "the fastest that runs here")
            return backend, "; ".join(reasons)
        reasons.append(f"not {backend}: {reason}")
    raise AssertionError("the last backend runs everywhere")


def _why_not(backend: Backend, manifest: BundleManifest) -> str | None:
    try:
        return _module_of(backend).why_not(manifest)
    except ModuleNotFoundError as error:
        return f"the package {error.name} is not installed"


def build(
    bundle: Path,
    output: Path,
    backend: BackendChoice = "auto",
    max_batch: int = DEFAULT_MAX_BATCH,
    max_length: int | None = None,
    progress: Progress = no_progress,
    *,
    fall_back: bool = False,
    activations: Activations | None = None,
) -> EngineManifest:
    """Builds an engine and asks it a question before it appears under its name.

    Args:
        bundle: A folder written by `convert`.
        output: Folder of the engine; an older engine there is replaced at the very end.
        backend: What shall run it; "auto" takes the fastest that this machine has.
        max_batch: Texts at once.
        max_length: Tokens of one prefill call; longer prompts are read in pieces. None takes
            what suits the backend.
        progress: Told bytes of weights that are loaded and bytes in all.
        fall_back: Whether another backend will do where the wanted one does not run.
        activations: See `EngineOptions`.

    Returns:
        The manifest that was written.

    Raises:
        ArtifactError: The bundle cannot be used.
        StorageError: The engine cannot be written.
        BackendError: The backend cannot run here, refuses the model or contradicts itself.
    """
    for option, value in (("--max-batch", max_batch), ("--max-length", max_length)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}", fix=f"{option} must be 1 or more")
    manifest = read_bundle(bundle)
    chosen, reason = choose_backend(backend, manifest, fall_back=fall_back)
    logger.info("backend %s (%s)", chosen, reason)
    module = _module_of(chosen)
    options = EngineOptions(max_batch, max_length or module.DEFAULT_MAX_LENGTH, activations)
    weights = manifest.files[WEIGHT_FILE]
    with new_folder(output, marker=MANIFEST_FILE) as folder:
        with storage_errors(output):
            module.prepare(folder, bundle, manifest, options)
        session = module.open_session(folder, bundle, manifest, options, None, progress)
        self_test = _ask(
            session,
            module.tolerance(manifest, options),
            rounds_activations=module.rounds_activations(manifest, options),
        )
        engine = EngineManifest(
            created=now(),
            precision=manifest.precision,
            model=manifest.model,
            backend=chosen,
            backend_reason=reason,
            bundle=os.path.relpath(bundle.resolve(), output.resolve()),
            model_name=manifest.source["name"],
            weights_sha256=weights.sha256,
            weights_bytes=weights.bytes,
            max_batch=options.max_batch,
            max_length=options.max_length,
            activations=options.activations,
            machine=_this_machine(),
            target=module.target(),
            versions=module.versions(),
            self_test=self_test,
            files=describe_files(folder),
        )
        write_manifest(folder, engine)
    return engine


def load_engine(
    folder: Path, threads: int | None = None, progress: Progress = no_progress
) -> LoadedEngine:
    """Checks the files of an engine and of its bundle, and loads it.

    Args:
        folder: A folder written by `build`.
        threads: CPU threads; None takes `settings.default_threads`.
        progress: Told bytes of weights that are loaded and bytes in all.

    Raises:
        ArtifactError: The engine or its bundle cannot be used.
        BackendError: The backend refuses it.
    """
    manifest = read_engine(folder)
    bundle, bundle_manifest = _find_bundle(folder, manifest)
    module = _module_of(manifest.backend)
    _refuse_other_target(folder, manifest, module.target())
    session = module.open_session(
        folder, bundle, bundle_manifest, manifest.options, threads, progress
    )
    has_tokenizer = (bundle / "tokenizer.json").is_file()
    tokenizer = Tokenizer(bundle) if has_tokenizer else None
    return LoadedEngine(session, tokenizer, manifest, folder, bundle)


def _module_of(backend: Backend) -> BackendModule:
    """The module of a backend, imported only where it is wanted: each brings large libraries."""
    module: BackendModule = importlib.import_module(f"pipeline.{backend}_backend")  # type: ignore[assignment]
    return module


def _refuse_other_target(folder: Path, manifest: EngineManifest, target: dict[str, str]) -> None:
    differing = [
        f"{name.replace('_', ' ')} {manifest.target.get(name, 'unknown')[:12]} (here {found[:12]})"
        for name, found in target.items()
        if manifest.target.get(name) != found
    ]
    if differing:
        raise EngineMismatchError(
            f"engine {folder} was built for {', '.join(differing)}", fix=_rebuild(folder, manifest)
        )


def _rebuild(folder: Path, manifest: EngineManifest) -> str:
    bundle = os.path.normpath(folder / manifest.bundle)
    activations = f" --activations {manifest.activations}" if manifest.activations else ""
    return (
        f"build again: mamba-orin build {bundle} --output {folder} --backend {manifest.backend}"
        f"{activations}"
    )


def find_bundle(folder: Path, manifest: EngineManifest) -> Path:
    """Where the bundle of an engine lies.

    Raises:
        ArtifactError: It is not there, or has become another one.
    """
    return _find_bundle(folder, manifest)[0]


def _find_bundle(folder: Path, manifest: EngineManifest) -> tuple[Path, BundleManifest]:
    bundle = Path(os.path.normpath(folder.resolve() / manifest.bundle))
    rebuild = _rebuild(folder, manifest)
    if not bundle.exists():
        raise ArtifactNotFoundError(
            f"engine {folder} was built from the bundle {bundle}, which is no longer there",
            fix=f"put the bundle back, or {rebuild}",
        )
    bundle_manifest = read_bundle(bundle)
    found = bundle_manifest.files[WEIGHT_FILE].sha256
    if found != manifest.weights_sha256:
        raise EngineMismatchError(
            f"engine {folder} was built for weights {manifest.weights_sha256[:12]}…, its bundle "
            f"{bundle} now holds {found[:12]}…",
            fix=rebuild,
        )
    return bundle, bundle_manifest


def _this_machine() -> dict[str, str]:
    board = read_board()
    return {
        "name": board.name,
        "instruction_set": board.instruction_set or "unknown",
        "operating_system": board.operating_system or "unknown",
    }


def _ask(session: Session, tolerance: float, *, rounds_activations: bool) -> SelfTest:
    """Reads a few tokens at once and one by one; both must come to the same logits.

    Args:
        session: The model.
        tolerance: Difference that is let pass, as a share of the largest logit (or of 1).
        rounds_activations: Whether products take activations of 8 bits.

    Raises:
        BackendError: They do not.
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
        found = f"prefill and single steps differ by {difference:.3g}"
        if rounds_activations:
            # Where it does, both are as far from the model as from each other.
            raise BackendError(
                f"{found}: this model magnifies what rounding activations to 8 bits does to them",
                fix="build with --activations float, which is slower",
            )
        raise BackendError(
            f"the engine contradicts itself: {found}",
            fix="this is a fault of the backend on this machine; please report it with the output "
            "of 'mamba-orin board --json'",
        )
    logits = at_once[0].astype(np.float64)
    best = int(np.argmax(logits))
    logprob = float(-np.log(np.exp(logits - logits[best]).sum()))
    return SelfTest(token_ids=token_ids, next_token_id=best, logprob=logprob)
