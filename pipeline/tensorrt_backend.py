# SPDX-License-Identifier: MIT
"""How an engine for TensorRT is built and loaded: two graphs, two plans, no weights.

A plan belongs to one TensorRT, one GPU, its clocks and one plugin library; all are part of what an
engine is checked against when it is loaded. What TensorRT measured while it built is kept by the
board's identity, so that a second model or precision builds faster.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import time
from hashlib import sha256
from pathlib import Path

import onnx

from pipeline import cuda_backend, s6_library
from pipeline.board import read_board
from pipeline.cuda_driver import open_gpu
from pipeline.cuda_session import refuse_float32, refuse_odd_widths
from pipeline.cuda_weights import plan_image
from pipeline.errors import BackendError, PipelineError
from pipeline.manifest import PREFILL_GRAPH, STEP_GRAPH, BundleManifest, EngineOptions
from pipeline.session import Session
from pipeline.settings import Progress, cache_folder
from pipeline.storage import sha256_of, write_atomically
from pipeline.tensorrt_graphs import prefill_graph, step_graph
from pipeline.tensorrt_runtime import VERSION, Profile, build_plan
from pipeline.tensorrt_session import (
    PREFILL_PLAN,
    STEP_PLAN,
    TensorRtSession,
    prefill_profiles,
    step_profile,
    stretch_limits,
)
from pipeline.weights import WEIGHT_FILE, read_places

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = cuda_backend.DEFAULT_MAX_LENGTH

# A kernel of TensorRT's may want this share of the memory for itself: 500 MB of 8 GB.
_WORKSPACE_SHARE = 16


def why_not(bundle: BundleManifest) -> str | None:
    """Why this machine cannot run a bundle on TensorRT; None when it can."""
    try:
        refuse_float32(bundle.precision)
        refuse_odd_widths(bundle.architecture)
    except PipelineError as error:
        return str(error)
    return why_not_here()


def why_not_here() -> str | None:
    """Why this machine cannot run any bundle on TensorRT; None when it can."""
    try:
        open_gpu()
        s6_library.load_library()
        s6_library.find_plugin_library()
    except ModuleNotFoundError as error:
        return f"the package {error.name} is not installed"
    except PipelineError as error:
        return str(error)
    return None


def prepare(folder: Path, bundle: Path, manifest: BundleManifest, options: EngineOptions) -> None:
    """Writes the graphs and builds the plans.

    Raises:
        BackendError: There is no GPU, the model is not one this backend runs, or TensorRT cannot
            build it.
        PluginError: A library of plugin/ is missing or refused.
    """
    refuse_float32(manifest.precision)
    refuse_odd_widths(manifest.architecture)
    if options.activations == "int8":
        raise BackendError(
            "TensorRT multiplies float16 activations",
            fix="build without --activations int8, or with --backend cuda",
        )
    gpu = open_gpu()
    s6_library.load_library()
    plugins = s6_library.find_plugin_library()
    a, places = manifest.architecture, read_places(bundle / WEIGHT_FILE)
    _, total = gpu.free_bytes()
    limits = stretch_limits(options.max_batch, options.max_length)
    for graph_file, plan_file, graph, profiles in (
        (PREFILL_GRAPH, PREFILL_PLAN, prefill_graph(a, places), prefill_profiles(a, limits)),
        (
            STEP_GRAPH,
            STEP_PLAN,
            step_graph(a, places, plan_image(places, a)),
            [step_profile(a, options.max_batch)],
        ),
    ):
        onnx.save(graph, folder / graph_file)
        _build(folder / plan_file, graph, plugins, profiles, total // _WORKSPACE_SHARE)


def open_session(
    folder: Path,
    bundle: Path,
    manifest: BundleManifest,
    options: EngineOptions,
    _threads: int | None,
    progress: Progress,
) -> Session:
    """Loads the plans and copies the weights to the GPU.

    Raises:
        BackendError: There is no GPU, or the weights do not fit.
        EngineMismatchError: TensorRT does not take a plan.
        PluginError: A library of plugin/ is missing or refused.
    """
    plugins = s6_library.find_plugin_library()
    return TensorRtSession(
        folder,
        plugins,
        bundle,
        manifest.architecture,
        options.max_batch,
        options.max_length,
        progress,
    )


def versions() -> dict[str, str]:
    """Version of every library the engine depends on."""
    return {
        "tensorrt": VERSION,
        "libs6": s6_library.version(),
        "onnx": onnx.__version__,
        "cuda-bindings": importlib.metadata.version("cuda-bindings"),
    }


def target() -> dict[str, str]:
    """What the engine is bound to and checked against when it is loaded."""
    facts = open_gpu().facts
    jetson = read_board().jetson
    clock = None if jetson is None else jetson.gpu_clock_limit_mhz
    return {
        "tensorrt": VERSION,
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "multiprocessors": str(facts.multiprocessors),
        "gpu_clock_limit_mhz": "unknown" if clock is None else str(clock),
        "cuda_driver": facts.driver,
        "libs6_sha256": sha256_of(s6_library.find_library()),
        "plugin_sha256": sha256_of(s6_library.find_plugin_library()),
    }


def tolerance(manifest: BundleManifest, options: EngineOptions) -> float:
    """By how much prefill and steps may differ, as a share of the largest logit (or of 1)."""
    return cuda_backend.tolerance(manifest, options)


def rounds_activations(_manifest: BundleManifest, _options: EngineOptions) -> bool:
    """Whether products take activations of 8 bits."""
    return False


def _build(
    path: Path,
    graph: onnx.ModelProto,
    plugins: Path,
    profiles: list[Profile],
    workspace_bytes: int,
) -> None:
    """Builds one plan, with what earlier builds on this board have measured."""
    known = _timings_of_this_board()
    timings = known.read_bytes() if known.is_file() else b""
    logger.info("TensorRT %s builds %s, which takes a minute or more", VERSION, path.name)
    began = time.monotonic()
    built = build_plan(graph.SerializeToString(), plugins, profiles, workspace_bytes, timings)
    path.write_bytes(built.plan)
    known.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(known, built.timings)
    logger.info("%s: %.1f MB in %.0f s", path.name, len(built.plan) / 1e6, time.monotonic() - began)


def _timings_of_this_board() -> Path:
    """Where timings are kept: one file for each TensorRT, GPU, clock and plugin library."""
    identity = target()
    digest = sha256(repr(sorted(identity.items())).encode()).hexdigest()[:12]
    name = re.sub(r"[^a-z0-9]+", "-", identity["gpu"].lower()).strip("-")
    return cache_folder() / "tensorrt" / f"{name}-{digest}.timings"
