# SPDX-License-Identifier: MIT
"""TensorRT: builds plans and runs them. The only module that imports tensorrt.

Takes 8.6 and 10 alike: what has another name or is new there is asked for here, and nowhere else.
Memory of the GPU, streams and graphs are the caller's, given as addresses and handles.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt as trt

from pipeline.errors import BackendError, EngineMismatchError, PluginError

VERSION: str = trt.__version__

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
#: Smallest, most usual and largest shape of each input whose shape changes.
Profile = Mapping[str, tuple[Shape, Shape, Shape]]

# The products of a network without convolutions lose nothing without these, and a board's memory
# gains some hundred megabytes; from TensorRT 10 on they are off by default.
_UNWANTED_SOURCES = ("CUBLAS", "CUBLAS_LT", "CUDNN")
_KEPT_COMPLAINTS = 4

# Of those in the plugin library.
_AN_OPERATOR = "MambaStep"


class _Log(trt.ILogger):  # type: ignore[misc]
    """Passes TensorRT's messages on and keeps its last complaints for our own."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.complaints: deque[str] = deque(maxlen=_KEPT_COMPLAINTS)

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT."""
        severities = trt.ILogger.Severity
        if severity in {severities.INTERNAL_ERROR, severities.ERROR}:
            self.complaints.append(message)
            logger.debug("TensorRT: %s", message)
        elif severity == severities.WARNING:
            logger.debug("TensorRT: %s", message)

    def reason(self) -> str:
        """The last complaints, which are then forgotten."""
        text = "; ".join(self.complaints) or "it does not say why"
        self.complaints.clear()
        return text


_log = _Log()


@dataclass(frozen=True)
class BuiltPlan:
    """What a build gives.

    Attributes:
        plan: The serialised engine.
        timings: What was measured on the way, for the next build on this board.
    """

    plan: bytes
    timings: bytes


def build_plan(
    graph: bytes,
    plugins: Path | None,
    profiles: Sequence[Profile],
    workspace_bytes: int,
    timings: bytes = b"",
) -> BuiltPlan:
    """Builds a plan from an ONNX graph without weights.

    Args:
        graph: The serialised model.
        plugins: The library with its operators; None for a graph without any of ours.
        profiles: Ranges of shapes the plan is made for.
        workspace_bytes: Most memory of the GPU that a kernel may want for itself.
        timings: Of an earlier build on the same board.

    Raises:
        BackendError: TensorRT cannot build it.
        PluginError: TensorRT does not take the library.
    """
    builder = trt.Builder(_log)
    _load_plugins(builder, plugins)
    network = builder.create_network(_network_flags())
    parser = trt.OnnxParser(network, _log)
    if not parser.parse(graph):
        errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise _failed("read its graph", "; ".join(errors) or _log.reason())
    config = builder.create_builder_config()
    _configure(config, workspace_bytes)
    if not config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed("build an engine", _log.reason())
    return BuiltPlan(bytes(plan), bytes(config.get_timing_cache().serialize()))


class Plan:
    """A plan that was loaded.

    Args:
        path: Its file.
        plugins: The library with its operators; None for a plan without any of ours.

    Raises:
        EngineMismatchError: TensorRT does not take it.
        PluginError: TensorRT does not take the library.
    """

    def __init__(self, path: Path, plugins: Path | None) -> None:
        self._runtime = trt.Runtime(_log)
        _load_plugins(self._runtime, plugins)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineMismatchError(
                f"TensorRT {VERSION} does not take {path}: {_log.reason()}",
                fix="build the engine again on this machine",
            )

    @property
    def scratch_bytes(self) -> int:
        """Memory of the GPU that a run needs beside inputs and outputs."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            if hasattr(self._engine, name):
                return int(getattr(self._engine, name))
        raise AssertionError("no TensorRT is without both")

    def new_run(self, profile: int, scratch: int, scratch_bytes: int, stream: int) -> Run:
        """Prepares runs of one shape at a time.

        Args:
            profile: Number of the profile the shapes are of.
            scratch: Address of at least `scratch_bytes` of the plan; runs on one stream share it.
            scratch_bytes: Size of that memory.
            stream: Handle of the stream it will run on.
        """
        engine = self._engine
        if hasattr(trt, "ExecutionContextAllocationStrategy"):
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise _failed("prepare a run", _log.reason())
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, scratch_bytes)
        else:
            context.device_memory = scratch
        if not context.set_optimization_profile_async(profile, stream):
            raise _failed("choose a profile", _log.reason())
        return Run(context)


class Run:
    """Shapes and addresses of a plan's tensors, and its execution; made by `Plan.new_run`."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def set_shape(self, name: str, shape: Shape) -> None:
        """Sets the shape of an input.

        Raises:
            BackendError: It is outside the profile.
        """
        if not self._context.set_input_shape(name, shape):
            raise _failed(f"give {name} the shape {shape}", _log.reason())

    def set_address(self, name: str, address: int) -> None:
        """Says where a tensor lies on the GPU."""
        if not self._context.set_tensor_address(name, address):
            raise _failed(f"find {name} at {address:#x}", _log.reason())

    def enqueue(self, stream: int) -> None:
        """Enqueues one execution on a stream.

        Raises:
            BackendError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise _failed("run", _log.reason())

    def layer_times(self, stream: int) -> list[tuple[str, float]]:
        """Executes once and tells what TensorRT's own profiler says: layers and milliseconds.

        Raises:
            BackendError: TensorRT refuses.
        """
        profiler = _LayerTimes()
        self._context.profiler = profiler
        self.enqueue(stream)
        return profiler.found


class _LayerTimes(trt.IProfiler):  # type: ignore[misc]
    """Keeps what TensorRT reports after a run."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.found: list[tuple[str, float]] = []

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT."""
        self.found.append((layer_name, ms))


def _network_flags() -> int:
    """Types are what the graph says where this TensorRT can be told so; batches are explicit."""
    flags = trt.NetworkDefinitionCreationFlag.__members__
    wanted = ("STRONGLY_TYPED",) if "STRONGLY_TYPED" in flags else ("EXPLICIT_BATCH",)
    return sum(1 << int(flags[name]) for name in wanted if name in flags)


def _configure(config: Any, workspace_bytes: int) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    # States are read and written in place, which work on a second stream could disturb.
    config.max_aux_streams = 0
    if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__:
        config.set_flag(trt.BuilderFlag.FP16)
    sources = trt.TacticSource.__members__
    wanted = [source for name, source in sources.items() if name not in _UNWANTED_SOURCES]
    config.set_tactic_sources(sum(1 << int(source) for source in wanted))
    previews = getattr(trt, "PreviewFeature", None)
    # Later versions let runs of one plan share a profile unasked.
    sharing = None if previews is None else previews.__members__.get("PROFILE_SHARING_0806")
    if sharing is not None:
        config.set_preview_feature(sharing, True)


def _failed(doing: str, reason: str) -> BackendError:
    return BackendError(
        f"TensorRT {VERSION} could not {doing}: {reason}",
        fix="build the engine again; if it fails again, use --backend cuda and report this with "
        "the output of 'mamba-orin board --json'",
    )


def _load_plugins(owner: Any, library: Path | None) -> None:
    """Makes a library's operators known to a builder or a runtime, which ask their own registry."""
    if library is None:
        return
    try:
        handle = owner.get_plugin_registry().load_library(str(library))
    except Exception as error:  # the binding raises its own types
        raise _refused_library(library, str(error)) from error
    if handle is None and not _registers_itself(library):
        raise _refused_library(library, _log.reason())


def _registers_itself(library: Path) -> bool:
    """Whether a library puts its operators into the registry that all share, as 8.6.0 needs it.

    That release takes no library from builders and runtimes; ours is then built with
    S6_REGISTER_ON_LOAD.
    """
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise _refused_library(library, str(error)) from error
    creators = trt.get_plugin_registry().plugin_creator_list
    return any(creator.name == _AN_OPERATOR for creator in creators)


def _refused_library(library: Path, reason: str) -> PluginError:
    return PluginError(
        f"TensorRT {VERSION} does not take the plugin library {library}: {reason}",
        fix="build it against this version of TensorRT: make plugin",
    )
