# SPDX-License-Identifier: MIT
"""The manifests of bundles and engines, and the check that a folder is what its manifest says.

A bundle is a converted checkpoint: two graphs, one weight file, a tokenizer. An engine is what
one backend on one machine needs beside its bundle; it holds no weights and no tokenizer, so a
disk has one copy of them however many engines are built. Both hold a `manifest.json` with the
SHA-256 of every other file; loading checks each, so a half-written or changed file is never used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import __version__
from pipeline.architecture import MambaArchitecture
from pipeline.errors import ArtifactCorruptError, ArtifactNotFoundError
from pipeline.storage import sha256_of, write_atomically

MANIFEST_FILE = "manifest.json"
PREFILL_GRAPH = "prefill.onnx"
STEP_GRAPH = "step.onnx"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)

Precision = Literal["fp32", "fp16", "int8", "int4"]
Backend = Literal["onnxruntime", "cuda", "tensorrt"]
# What activations are where packed matrices are multiplied with many of them.
Activations = Literal["float", "int8"]

SCHEMA_VERSION = 1


class FileEntry(BaseModel):
    """Size and hash of one file beside the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    created: str
    generator: str = f"mamba-orin {__version__}"
    precision: Precision
    model: dict[str, Any]
    files: dict[str, FileEntry]

    @property
    def architecture(self) -> MambaArchitecture:
        """Sizes of the model."""
        return MambaArchitecture.from_dict(self.model)


class Calibration(BaseModel):
    """The text by which packed weights were chosen.

    Attributes:
        source: Name of the text file.
        sha256: Its hash.
        tokens: How many tokens of it were read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    sha256: str
    tokens: int


class Quantisation(BaseModel):
    """How a bundle's matrices were brought to 8 or 4 bits.

    Attributes:
        method: "rtn", each weight rounded to the nearest, or "gptq", calibrated by a text.
        embedding_precision: Of the embedding, and of the head where they are one.
        head_precision: Of the head.
        group_sizes: Inputs that share a scale, by matrix; of a block's matrices those of
            `layers.0`, all blocks being alike. A matrix that is not here stayed in float16.
        calibration: The text; None for "rtn".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["rtn", "gptq"]
    embedding_precision: Precision
    head_precision: Precision
    group_sizes: dict[str, int]
    calibration: Calibration | None = None


class BundleManifest(_Manifest):
    """What a bundle was converted from.

    Attributes:
        source: Name, format and SHA-256 of the checkpoint's files.
        quantisation: How the matrices were packed; None when they are not.
    """

    kind: Literal["bundle"] = "bundle"
    source: dict[str, Any]
    quantisation: Quantisation | None = None


class SelfTest(BaseModel):
    """A question with its answer, asked when the engine was built.

    Attributes:
        token_ids: The prompt.
        next_token_id: The most likely token after it.
        logprob: Its natural log-probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_ids: list[int]
    next_token_id: int
    logprob: float


@dataclass(frozen=True)
class EngineOptions:
    """What a user may choose about an engine beside its bundle and backend.

    Attributes:
        max_batch: Texts at once.
        max_length: Tokens of one prefill call; longer prompts are read in pieces.
        activations: "float" as they come, "int8" rounded; None what suits the backend: int8 for
            packed matrices on a CPU, else float.
    """

    max_batch: int
    max_length: int
    activations: Activations | None = None


class EngineManifest(_Manifest):
    """What an engine was built from, for which machine, by which versions.

    Attributes:
        backend: What runs it.
        backend_reason: Why it is this one.
        bundle: Where the bundle lies, relative to the engine's folder.
        model_name: Name of the checkpoint, for people.
        weights_sha256: Hash of the weight file; the same in every engine of a model.
        weights_bytes: Its size.
        max_batch: See `EngineOptions`.
        max_length: Likewise.
        activations: Likewise.
        machine: Identity of the machine that built it.
        target: What it is bound to, for example a GPU; with another it is refused.
        versions: Version of every library the engine depends on.
        self_test: A known answer.
    """

    kind: Literal["engine"] = "engine"
    backend: Backend
    backend_reason: str = ""
    bundle: str
    model_name: str
    weights_sha256: str
    weights_bytes: int
    max_batch: int
    max_length: int
    activations: Activations | None = None
    machine: dict[str, str]
    target: dict[str, str] = {}
    versions: dict[str, str]
    self_test: SelfTest

    @property
    def options(self) -> EngineOptions:
        """What was chosen when it was built."""
        return EngineOptions(self.max_batch, self.max_length, self.activations)


def now() -> str:
    """The current time, UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe_files(folder: Path, known: dict[str, str] | None = None) -> dict[str, FileEntry]:
    """Size and hash of every file in a folder but the manifest.

    Args:
        folder: The folder.
        known: Hashes that need not be computed again, by file name.
    """
    return {
        path.name: FileEntry(
            bytes=path.stat().st_size, sha256=(known or {}).get(path.name) or sha256_of(path)
        )
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_FILE
    }


def write_manifest(folder: Path, manifest: BundleManifest | EngineManifest) -> None:
    """Writes `manifest.json`, the last file of a folder."""
    text = manifest.model_dump_json(indent=2) + "\n"
    write_atomically(folder / MANIFEST_FILE, text.encode())


def read_bundle(folder: Path) -> BundleManifest:
    """Reads a bundle's manifest and checks every file against it.

    Raises:
        ArtifactNotFoundError: There is no bundle here.
        ArtifactCorruptError: A file is missing or is not what was written.
    """
    return _read(folder, BundleManifest, "bundle", "mamba-orin convert CHECKPOINT --output")


def read_engine(folder: Path) -> EngineManifest:
    """Reads an engine's manifest and checks every file against it.

    Raises:
        ArtifactNotFoundError: There is no engine here.
        ArtifactCorruptError: A file is missing or is not what was written.
    """
    return _read(folder, EngineManifest, "engine", "mamba-orin build BUNDLE --output")


_AnyManifest = TypeVar("_AnyManifest", BundleManifest, EngineManifest)


def _read(folder: Path, manifest_type: type[_AnyManifest], kind: str, command: str) -> _AnyManifest:
    rebuild = f"make it with: {command} {folder}"
    values = _read_json(folder, kind, rebuild)
    found = values.get("kind")
    if found != kind:
        hint = f"build it first: mamba-orin build {folder} --output ENGINE"
        raise ArtifactNotFoundError(
            f"{folder} is not an {kind}: its manifest says {found!r}"
            if kind == "engine"
            else f"{folder} is not a {kind}: its manifest says {found!r}",
            fix=hint if (kind, found) == ("engine", "bundle") else rebuild,
        )
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactCorruptError(
            f"{folder / MANIFEST_FILE} has schema version {values.get('schema_version')!r}; "
            f"this mamba-orin ({__version__}) reads {SCHEMA_VERSION}",
            fix=rebuild,
        )
    try:
        manifest = manifest_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactCorruptError(
            f"{folder / MANIFEST_FILE} is damaged: {place}: {first['msg']}", fix=rebuild
        ) from error
    _check_files(folder, manifest.files, rebuild)
    return manifest


def _read_json(folder: Path, kind: str, rebuild: str) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not folder.is_dir() or not path.is_file():
        state = "has no manifest.json" if folder.exists() else "does not exist"
        raise ArtifactNotFoundError(f"no {kind} at {folder}: the folder {state}", fix=rebuild)
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactCorruptError(f"{path} is not JSON: {error}", fix=rebuild) from error
    if not isinstance(values, dict):
        raise ArtifactCorruptError(f"{path} is not a manifest", fix=rebuild)
    return values


def _check_files(folder: Path, files: dict[str, FileEntry], rebuild: str) -> None:
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactCorruptError(f"{path} is missing", fix=rebuild)
        size = path.stat().st_size
        if size != entry.bytes:
            raise ArtifactCorruptError(
                f"{path} has {size} bytes, its manifest says {entry.bytes}", fix=rebuild
            )
        found = sha256_of(path)
        if found != entry.sha256:
            raise ArtifactCorruptError(
                f"{path} has changed: SHA-256 {found[:12]}…, its manifest says "
                f"{entry.sha256[:12]}…",
                fix=rebuild,
            )
