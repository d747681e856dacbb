# SPDX-License-Identifier: MIT
"""States that live on the GPU and come to the host only when somebody looks at them."""

from __future__ import annotations

import threading
from collections import defaultdict

import numpy as np

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_driver import DeviceMemory, Gpu, Stream
from pipeline.cuda_stretch_state import state_sizes
from pipeline.session import Floats, State

# Buffers that wait to be used again, of each number of texts: what one text after the other needs.
_KEPT_BUFFERS = 3


class StateBuffer:
    """The state of a few texts on the GPU; goes back to its pool when it is dropped.

    Attributes:
        batch: Texts, at most as many as are decoded at once.
        conv: Address of (layer, b, k-1, d) float32.
        ssm: Address of (layer, b, n, d) float32.
    """

    def __init__(self, pool: StatePool, batch: int, conv: DeviceMemory, ssm: DeviceMemory) -> None:
        self._pool, self._memory = pool, (conv, ssm)
        self.batch, self.conv, self.ssm = batch, conv.pointer, ssm.pointer

    def __del__(self) -> None:
        self._pool.take_back(self.batch, self._memory)


class StatePool:
    """Makes buffers for states and keeps a few to be used again.

    All work on them is enqueued on one stream, so a buffer may be handed out while work on its
    last content is still under way.

    Args:
        gpu: Where they are.
        stream: The stream of all work on them.
        architecture: Sizes of the model.
    """

    def __init__(self, gpu: Gpu, stream: Stream, architecture: MambaArchitecture) -> None:
        self.gpu, self.stream, self.architecture = gpu, stream, architecture
        self._idle: defaultdict[int, list[tuple[DeviceMemory, DeviceMemory]]] = defaultdict(list)
        # A state may be dropped by any thread.
        self._lock = threading.Lock()

    def new(self, batch: int) -> StateBuffer:
        """A buffer with arbitrary content."""
        with self._lock:
            memory = self._idle[batch].pop() if self._idle[batch] else None
        if memory is None:
            sizes = state_sizes(self.architecture, batch)
            memory = (
                self.gpu.allocate(sizes.conv, "a state"),
                self.gpu.allocate(sizes.ssm, "a state"),
            )
        return StateBuffer(self, batch, *memory)

    def take_back(self, batch: int, memory: tuple[DeviceMemory, DeviceMemory]) -> None:
        """Keeps the memory of a dropped buffer, or lets it go."""
        with self._lock:
            if len(self._idle[batch]) < _KEPT_BUFFERS:
                self._idle[batch].append(memory)

    def copy(self, buffer: StateBuffer) -> StateBuffer:
        """Another buffer with the same content."""
        twin = self.new(buffer.batch)
        sizes = state_sizes(self.architecture, buffer.batch)
        self.stream.copy(twin.conv, buffer.conv, sizes.conv)
        self.stream.copy(twin.ssm, buffer.ssm, sizes.ssm)
        return twin

    def upload(self, conv: Floats, ssm: Floats) -> StateBuffer:
        """A buffer with the content of (layer, b, …) arrays of the host."""
        buffer = self.new(conv.shape[1])
        self.stream.write(buffer.conv, np.ascontiguousarray(conv, np.float32))
        self.stream.write(buffer.ssm, np.ascontiguousarray(ssm, np.float32))
        return buffer

    def download(self, buffer: StateBuffer) -> tuple[Floats, Floats]:
        """The content as (layer, b, …) arrays of the host."""
        conv = np.empty(self.architecture.conv_state_shape(buffer.batch), np.float32)
        ssm = np.empty(self.architecture.ssm_state_shape(buffer.batch), np.float32)
        self.stream.read(conv.ctypes.data, buffer.conv, conv.nbytes)
        self.stream.read(ssm.ctypes.data, buffer.ssm, ssm.nbytes)
        self.stream.finish()
        return conv, ssm


class CudaState(State):
    """A state on the GPU; see `session.State`.

    `conv` and `ssm` are copies for reading, made when they are first asked for.

    Attributes:
        buffers: The texts in order, a few in each buffer.
    """

    def __init__(self, pool: StatePool, buffers: list[StateBuffer]) -> None:
        self._pool = pool
        self.buffers = buffers
        self._on_host: tuple[Floats, Floats] | None = None

    @property
    def conv(self) -> Floats:  # type: ignore[override]
        """(layer, b, k-1, d) float32."""
        return self._host_copy()[0]

    @property
    def ssm(self) -> Floats:  # type: ignore[override]
        """(layer, b, n, d) float32."""
        return self._host_copy()[1]

    @property
    def batch(self) -> int:
        """Number of texts this state remembers."""
        return sum(buffer.batch for buffer in self.buffers)

    @property
    def nbytes(self) -> int:
        """Bytes it takes on the GPU."""
        sizes = state_sizes(self._pool.architecture, self.batch)
        return sizes.conv + sizes.ssm

    def copy(self) -> CudaState:
        """An independent copy on the GPU."""
        self._pool.gpu.use_here()
        return CudaState(self._pool, [self._pool.copy(buffer) for buffer in self.buffers])

    def changed(self) -> CudaState:
        """This state after the GPU has written into it: what the host has read is stale."""
        self._on_host = None
        return self

    def _host_copy(self) -> tuple[Floats, Floats]:
        if self._on_host is None:
            self._pool.gpu.use_here()
            parts = [self._pool.download(buffer) for buffer in self.buffers]
            conv, ssm = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
            # Writing into them would not change the state.
            conv.flags.writeable = ssm.flags.writeable = False
            self._on_host = conv, ssm
        return self._on_host
