# SPDX-License-Identifier: MIT
"""The GPU of this process: its memory, streams, events and graphs.

The only module that imports the packages `cuda.bindings` and `cuda.pathfinder`. Works on the
driver API and the primary context, which the kernel library and cuBLAS share, so that all three
see the same memory and streams. Objects free what they own when they are dropped.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import BackendError
from pipeline.garbage_collection import without_garbage_collection

_RECOVERABLE_FIX = "run it again; if it fails again, report it with `mamba-orin board --json`"


@dataclass(frozen=True)
class GpuFacts:
    """What a GPU is.

    Attributes:
        name: As its driver says.
        compute_capability: For example "8.7".
        multiprocessors: How many it has.
        shared_bytes: Shared memory that a block of threads may have.
        driver: Newest CUDA version its driver runs, for example "12.6".
    """

    name: str
    compute_capability: str
    multiprocessors: int
    shared_bytes: int
    driver: str


class Gpu:
    """The first GPU this process may use; made by `open_gpu`."""

    def __init__(self, driver: Any, context: Any, facts: GpuFacts) -> None:
        self.driver = driver
        self.facts = facts
        self._context = context
        self._out_of_memory = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY

    def use_here(self) -> None:
        """Makes the GPU current for the calling thread; every thread must, before other calls."""
        self.checked(self.driver.cuCtxSetCurrent(self._context), "use the GPU")

    def checked(self, result: tuple[Any, ...], doing: str) -> Any:
        """The values of a driver call.

        Raises:
            BackendError: It failed.
        """
        error, *values = result
        if int(error) != 0:
            _, text = self.driver.cuGetErrorString(error)
            reason = text.decode() if isinstance(text, bytes) else str(error)
            raise BackendError(f"CUDA could not {doing}: {reason}", fix=_RECOVERABLE_FIX)
        return values[0] if len(values) == 1 else tuple(values)

    def free_bytes(self) -> tuple[int, int]:
        """Memory of the GPU that is free, and all of it."""
        free, total = self.checked(self.driver.cuMemGetInfo(), "read its memory")
        return int(free), int(total)

    def allocate(self, size: int, purpose: str) -> DeviceMemory:
        """Memory of the GPU, not cleared.

        Args:
            size: Bytes.
            purpose: What for, for the message when there is not enough.

        Raises:
            BackendError: There is not enough.
        """
        error, pointer = self.driver.cuMemAlloc(max(size, 1))
        if error == self._out_of_memory:
            free, total = self.free_bytes()
            raise BackendError(
                f"the GPU has no room for {purpose}: {size / 1e6:,.0f} MB are needed, "
                f"{free / 1e6:,.0f} of {total / 1e6:,.0f} MB are free",
                fix="convert with a lower --precision, build with a smaller --max-length or "
                "--max-batch, or end other programs that use this memory",
            )
        self.checked((error,), f"allocate {size} bytes for {purpose}")
        return DeviceMemory(self, int(pointer), size)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> PinnedArray:
        """An array of the host that the GPU copies to and from without a stop."""
        return PinnedArray(self, shape, np.dtype(dtype))

    def new_stream(self) -> Stream:
        """A stream that waits for no other."""
        flag = self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        return Stream(self, self.checked(self.driver.cuStreamCreate(flag), "make a stream"))

    def new_event(self, *, timed: bool = False) -> Event:
        """An event; a timed one can say when it happened."""
        flags = self.driver.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        return Event(self, self.checked(self.driver.cuEventCreate(flag.value), "make an event"))


class DeviceMemory:
    """A piece of the GPU's memory.

    Attributes:
        pointer: Its address there.
        size: Bytes.
    """

    def __init__(self, gpu: Gpu, pointer: int, size: int) -> None:
        self._gpu, self.pointer, self.size = gpu, pointer, size

    def __del__(self) -> None:
        with contextlib.suppress(BackendError):  # the context may be gone at exit
            self._gpu.use_here()
            self._gpu.driver.cuMemFree(self.pointer)


class PinnedArray:
    """An array of the host with pages that stay where they are.

    Attributes:
        array: The numpy array.
        pointer: Its address.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._gpu = gpu
        size = int(np.prod(shape)) * dtype.itemsize
        result = gpu.driver.cuMemHostAlloc(size, 0)
        self.pointer = int(gpu.checked(result, f"allocate {size} bytes of host memory"))
        memory = (ctypes.c_uint8 * size).from_address(self.pointer)
        self.array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            with contextlib.suppress(BackendError):
                self._gpu.use_here()
                self._gpu.driver.cuMemFreeHost(self.pointer)


class Event:
    """A moment in the work of a stream."""

    def __init__(self, gpu: Gpu, handle: Any) -> None:
        self._gpu, self.handle = gpu, handle

    def __del__(self) -> None:
        with contextlib.suppress(BackendError):
            self._gpu.use_here()
            self._gpu.driver.cuEventDestroy(self.handle)

    def wait(self) -> None:
        """Stops the calling thread until the work before the event is done."""
        self._gpu.checked(self._gpu.driver.cuEventSynchronize(self.handle), "finish its work")

    def milliseconds_since(self, earlier: Event) -> float:
        """Time between two timed events that have happened."""
        result = self._gpu.driver.cuEventElapsedTime(earlier.handle, self.handle)
        return float(self._gpu.checked(result, "read its clock"))


class Stream:
    """A sequence of work on the GPU.

    Attributes:
        handle: What C calls it, an address.
    """

    def __init__(self, gpu: Gpu, stream: Any) -> None:
        self._gpu, self._driver, self._stream = gpu, gpu.driver, stream
        self.handle = int(stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """Enqueues a copy from one place on the GPU to another, in bytes."""
        result = self._driver.cuMemcpyDtoDAsync(to, source, size, self._stream)
        self._gpu.checked(result, "copy its memory")

    def write(self, to: int, values: npt.NDArray[Any]) -> None:
        """Enqueues a copy of a contiguous array of the host, which may be changed at once.

        Pinned memory is read later: leave it as it is until the copy is done.
        """
        result = self._driver.cuMemcpyHtoDAsync(to, values.ctypes.data, values.nbytes, self._stream)
        self._gpu.checked(result, "copy to the GPU")

    def read(self, to: int, source: int, size: int) -> None:
        """Enqueues a copy from the GPU to memory of the host, in bytes; best to pinned memory."""
        result = self._driver.cuMemcpyDtoHAsync(to, source, size, self._stream)
        self._gpu.checked(result, "copy to the host")

    def clear(self, pointer: int, size: int) -> None:
        """Enqueues zeros, in bytes."""
        result = self._driver.cuMemsetD8Async(pointer, 0, size, self._stream)
        self._gpu.checked(result, "clear its memory")

    def record(self, event: Event) -> None:
        """Lets the event happen when all work so far is done."""
        self._gpu.checked(self._driver.cuEventRecord(event.handle, self._stream), "mark an event")

    def record_in_graph(self, event: Event) -> None:
        """Inside `capture`: lets the event happen each time the graph comes to this place."""
        external = self._driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL.value
        result = self._driver.cuEventRecordWithFlags(event.handle, self._stream, external)
        self._gpu.checked(result, "mark an event")

    def wait_for(self, event: Event) -> None:
        """Lets work from now on wait for the event, without stopping the host."""
        result = self._driver.cuStreamWaitEvent(self._stream, event.handle, 0)
        self._gpu.checked(result, "wait for an event")

    def finish(self) -> None:
        """Stops the calling thread until all work is done."""
        self._gpu.checked(self._driver.cuStreamSynchronize(self._stream), "finish its work")

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Makes a graph of what a function enqueues, instead of running it.

        Other streams may take part if they begin by waiting for an event of this one and end by
        being waited for.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._gpu.checked(self._driver.cuStreamBeginCapture(self._stream, mode), "begin a graph")
        try:
            with without_garbage_collection():  # freeing memory would spoil the graph
                enqueue()
        except BaseException:
            self._driver.cuStreamEndCapture(self._stream)
            raise
        graph = self._gpu.checked(self._driver.cuStreamEndCapture(self._stream), "end a graph")
        try:
            executable = self._gpu.checked(
                self._driver.cuGraphInstantiate(graph, 0), "prepare a graph"
            )
        finally:
            self._driver.cuGraphDestroy(graph)
        return Graph(self._gpu, executable)

    def launch(self, graph: Graph) -> None:
        """Enqueues a graph."""
        self._gpu.checked(self._driver.cuGraphLaunch(graph.handle, self._stream), "run a graph")


class Graph:
    """Work that was recorded once and runs with one call."""

    def __init__(self, gpu: Gpu, handle: Any) -> None:
        self._gpu, self.handle = gpu, handle

    def __del__(self) -> None:
        with contextlib.suppress(BackendError):
            self._gpu.use_here()
            self._gpu.driver.cuGraphExecDestroy(self.handle)


def open_gpu() -> Gpu:
    """Opens the first GPU and makes it current for the calling thread.

    Raises:
        ModuleNotFoundError: The package cuda-bindings is not installed.
        BackendError: There is no GPU or no driver.
    """
    from cuda.bindings import driver

    try:
        error, *_ = driver.cuInit(0)
    except Exception as failure:  # the library raises its own types where there is no driver
        raise _no_gpu("no NVIDIA driver was found") from failure
    if int(error) != 0:
        raise _no_gpu(f"its driver says {error.name}")
    error, count = driver.cuDeviceGetCount()
    if int(error) != 0 or count == 0:
        raise _no_gpu("its driver sees none")
    version = _value(driver.cuDriverGetVersion())
    device = _value(driver.cuDeviceGet(0))

    def attribute(name: str) -> int:
        kind = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_value(driver.cuDeviceGetAttribute(kind, device)))

    major, minor = (attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
    facts = GpuFacts(
        name=_value(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode(),
        compute_capability=f"{major}.{minor}",
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        shared_bytes=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )
    gpu = Gpu(driver, _value(driver.cuDevicePrimaryCtxRetain(device)), facts)
    gpu.use_here()
    return gpu


def find_nvidia_library(name: str) -> str:
    """Where a library of NVIDIA's is, for example "cublas": among packages, then in the system.

    Raises:
        ModuleNotFoundError: The package cuda-pathfinder is not installed.
        FileNotFoundError: The library is nowhere.
    """
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        return str(load_nvidia_dynamic_lib(name).abs_path)
    except DynamicLibNotFoundError as error:
        raise FileNotFoundError(str(error)) from error


def _value(result: tuple[Any, ...]) -> Any:
    """The value of a driver call made before there is a context.

    Raises:
        BackendError: It failed.
    """
    error, value = result
    if error.name == "CUDA_ERROR_OUT_OF_MEMORY":
        raise BackendError(
            "the GPU has no room for another program: others hold its memory",
            fix="end other programs that use the GPU, or build with --backend onnxruntime",
        )
    if int(error) != 0:
        raise _no_gpu(f"its driver says {error.name}")
    return value


def _no_gpu(reason: str) -> BackendError:
    return BackendError(
        f"there is no GPU to run on: {reason}",
        fix="build with --backend onnxruntime; on a Jetson check `mamba-orin board`, in a "
        "container start it with the NVIDIA runtime",
    )
