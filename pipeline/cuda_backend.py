# SPDX-License-Identifier: MIT
"""How an engine for the GPU is built and loaded: it is a bundle, a library and a promise.

The engine's folder holds its manifest alone. What it promises is that this GPU, driver and kernel
library gave the answer of its self-test; with another of them it is built again in seconds.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from pipeline import s6_library
from pipeline.cuda_driver import find_nvidia_library, open_gpu
from pipeline.cuda_session import CudaSession, refuse_float32, refuse_odd_widths
from pipeline.errors import PipelineError
from pipeline.int8_activations import refuse_other_weights
from pipeline.manifest import BundleManifest, EngineOptions
from pipeline.session import Session
from pipeline.settings import Progress
from pipeline.storage import sha256_of

# Tokens of one prefill: enough to fill the tensor cores of a large GPU. On a board it bounds the
# memory of activations, 31 MB for mamba-130m and 105 MB for mamba-2.8b.
DEFAULT_MAX_LENGTH = 2048

# Prefill rounds activations to float16 between products; a step keeps them in float32.
_TOLERANCE = 3e-2
# A prefill with int8 activations rounds to 8 bits, by groups; a step does not.
_TOLERANCE_INT8 = 1e-1


def why_not(bundle: BundleManifest) -> str | None:
    """Why this machine cannot run a bundle on its GPU; None when it can."""
    try:
        refuse_float32(bundle.precision)
        refuse_odd_widths(bundle.architecture)
    except PipelineError as error:
        return str(error)
    return why_not_here()


def why_not_here() -> str | None:
    """Why this machine cannot run any bundle on its GPU; None when it can."""
    try:
        open_gpu()
        s6_library.load_library()
        find_nvidia_library("cublas")
    except ModuleNotFoundError:
        return "its packages are not installed (pip install 'mamba-orin[cuda]')"
    except (PipelineError, FileNotFoundError) as error:
        return str(error)
    return None


def prepare(_folder: Path, _bundle: Path, manifest: BundleManifest, options: EngineOptions) -> None:
    """Writes nothing, and refuses what cannot run before the weights are read.

    Raises:
        BackendError: There is no GPU, or the model is not one this backend runs, or not with
            int8 activations where they are wanted.
        PluginError: libs6.so is missing.
    """
    refuse_float32(manifest.precision)
    refuse_odd_widths(manifest.architecture)
    if options.activations == "int8":
        refuse_other_weights(manifest)
    s6_library.load_library()


def open_session(
    _folder: Path,
    bundle: Path,
    manifest: BundleManifest,
    options: EngineOptions,
    _threads: int | None,
    progress: Progress,
) -> Session:
    """Copies the weights to the GPU.

    Raises:
        BackendError: There is no GPU, a library is missing, or the weights do not fit.
        PluginError: libs6.so is missing, or was built for another GPU.
    """
    return CudaSession(
        bundle,
        manifest.architecture,
        options.max_batch,
        options.max_length,
        progress,
        activations=options.activations,
    )


def versions() -> dict[str, str]:
    """Version of every library the engine depends on."""
    return {
        "libs6": s6_library.version(),
        "cublas": Path(find_nvidia_library("cublas")).resolve().name,
        "cuda-bindings": importlib.metadata.version("cuda-bindings"),
    }


def target() -> dict[str, str]:
    """What the engine is bound to and checked against when it is loaded."""
    facts = open_gpu().facts
    return {
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "multiprocessors": str(facts.multiprocessors),
        "cuda_driver": facts.driver,
        "libs6_sha256": sha256_of(s6_library.find_library()),
    }


def tolerance(_manifest: BundleManifest, options: EngineOptions) -> float:
    """By how much prefill and steps may differ, as a share of the largest logit (or of 1)."""
    return _TOLERANCE_INT8 if options.activations == "int8" else _TOLERANCE


def rounds_activations(_manifest: BundleManifest, options: EngineOptions) -> bool:
    """Whether products take activations of 8 bits."""
    return options.activations == "int8"
