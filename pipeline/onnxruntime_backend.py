# SPDX-License-Identifier: MIT
"""How an engine for ONNX Runtime on the CPU is built and loaded."""

from __future__ import annotations

from pathlib import Path

import onnx

from pipeline.errors import BackendError
from pipeline.manifest import BundleManifest, EngineOptions
from pipeline.onnx_export import export_graphs
from pipeline.onnxruntime_session import VERSION, OnnxRuntimeSession
from pipeline.session import Session
from pipeline.settings import Progress, default_threads
from pipeline.weights import WEIGHT_FILE, read_places

# Tokens of one prefill call: long enough to feed the matrix products, short enough that the
# scan's temporaries (l * n * d floats, twice) stay near the cache. Measured on 2 CPU cores.
DEFAULT_MAX_LENGTH = 128

# ONNX Runtime's MatMulNBits at this level rounds activations to 8 bits, by groups, and multiplies
# integers. docs/quantisation.md has what that costs and what it saves.
_LEVEL_INT8 = 4
# At this one it multiplies float32 activations.
_LEVEL_FLOAT = 0

# Prefill and single steps do the same arithmetic in another order. Where activations are rounded
# to 8 bits, the order decides now and then which way one is rounded: of the largest logit, 2 %
# was the most that was seen.
_TOLERANCE = 1e-3
_TOLERANCE_INT8 = 1e-1


def why_not(_bundle: BundleManifest) -> str | None:
    """Why this machine cannot run a bundle on this backend; None: it can, always."""
    return None


def prepare(folder: Path, bundle: Path, manifest: BundleManifest, options: EngineOptions) -> None:
    """Writes the graphs of an engine into its folder.

    Raises:
        BackendError: Activations of 8 bits are wanted, and no matrix is packed.
    """
    if options.activations == "int8" and manifest.quantisation is None:
        raise BackendError(
            f"int8 activations need packed weights; the bundle holds {manifest.precision}",
            fix="convert with --precision int8, or build without --activations int8",
        )
    level = _LEVEL_INT8 if rounds_activations(manifest, options) else _LEVEL_FLOAT
    # ONNX Runtime has no half-precision matrix product on the CPU: widen once, at load.
    export_graphs(
        folder,
        manifest.architecture,
        read_places(bundle / WEIGHT_FILE),
        activation="float32",
        accuracy_level=level,
    )


def open_session(
    folder: Path,
    bundle: Path,
    manifest: BundleManifest,
    options: EngineOptions,
    threads: int | None,
    _progress: Progress,
) -> Session:
    """Loads an engine.

    Raises:
        BackendError: ONNX Runtime refuses a graph.
    """
    return OnnxRuntimeSession(
        folder,
        bundle,
        manifest.architecture,
        options.max_batch,
        options.max_length,
        threads or default_threads(),
        pack_for_prefill=manifest.quantisation is not None,
    )


def versions() -> dict[str, str]:
    """Version of every library the engine depends on."""
    return {"onnxruntime": VERSION, "onnx": onnx.__version__}


def target() -> dict[str, str]:
    """What the engine is bound to and checked against when it is loaded: nothing."""
    return {}


def tolerance(manifest: BundleManifest, options: EngineOptions) -> float:
    """By how much prefill and steps may differ, as a share of the largest logit (or of 1)."""
    return _TOLERANCE_INT8 if rounds_activations(manifest, options) else _TOLERANCE


def rounds_activations(manifest: BundleManifest, options: EngineOptions) -> bool:
    """Whether products take activations of 8 bits."""
    return manifest.quantisation is not None and options.activations != "float"
