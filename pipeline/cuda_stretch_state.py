# SPDX-License-Identifier: MIT
"""The state a prefill works on: at fixed addresses, the convolutions' part in float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_driver import DeviceMemory, Gpu, Stream
from pipeline.s6_library import call
from pipeline.s6_prefill import FLOAT16, FLOAT32, ConvertProblem

_HALF, _FLOAT = 2, 4


@dataclass(frozen=True)
class StateSizes:
    """Bytes of the states of some texts."""

    conv: int
    ssm: int


def state_sizes(architecture: MambaArchitecture, batch: int) -> StateSizes:
    """Bytes of the float32 states (layer, batch, …) of some texts."""
    a = architecture
    of_text = _FLOAT * a.n_layer * a.d_inner
    return StateSizes(batch * of_text * (a.d_conv - 1), batch * of_text * a.d_state)


class StretchState:
    """The state that stretches of text are read from and into; work is enqueued on one stream.

    Args:
        gpu: Where it is.
        stream: Where to enqueue.
        architecture: Sizes of the model.
        on_move: Called when the addresses change: graphs that know the old ones are void.
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        architecture: MambaArchitecture,
        on_move: Callable[[], None],
    ) -> None:
        self._gpu, self._stream, self._architecture = gpu, stream, architecture
        self._on_move = on_move
        self._batch = 0
        self._conv: DeviceMemory | None = None
        self._ssm: DeviceMemory | None = None

    def addresses(self, batch: int) -> tuple[int, int]:
        """Where they are: (layer, b, k-1, d) float16 and (layer, b, n, d) float32."""
        if batch > self._batch or self._conv is None or self._ssm is None:
            sizes = state_sizes(self._architecture, batch)
            self._stream.finish()
            self._on_move()
            self._conv = self._gpu.allocate(sizes.conv * _HALF // _FLOAT, "states")
            self._ssm = self._gpu.allocate(sizes.ssm, "states")
            self._batch = batch
        return self._conv.pointer, self._ssm.pointer

    def enter(self, batch: int, conv: int | None, ssm: int | None) -> None:
        """Enqueues that the next stretch goes on from a state.

        Args:
            batch: Texts.
            conv: Address of (layer, b, k-1, d) float32; None for the beginning of the texts.
            ssm: Address of (layer, b, n, d) float32; likewise.
        """
        conv_here, ssm_here = self.addresses(batch)
        sizes = state_sizes(self._architecture, batch)
        if conv is None or ssm is None:
            self._stream.clear(conv_here, sizes.conv * _HALF // _FLOAT)
            self._stream.clear(ssm_here, sizes.ssm)
            return
        count = sizes.conv // _FLOAT
        narrow = ConvertProblem(
            from_dtype=FLOAT32, to_dtype=FLOAT16, count=count, x=conv, y=conv_here
        )
        call("s6_convert", narrow, self._stream.handle)
        self._stream.copy(ssm_here, ssm, sizes.ssm)

    def leave(self, batch: int, conv: int, ssm: int) -> None:
        """Enqueues a copy of the state after the last stretch; arguments as those of `enter`."""
        conv_here, ssm_here = self.addresses(batch)
        sizes = state_sizes(self._architecture, batch)
        count = sizes.conv // _FLOAT
        widen = ConvertProblem(
            from_dtype=FLOAT16, to_dtype=FLOAT32, count=count, x=conv_here, y=conv
        )
        call("s6_convert", widen, self._stream.handle)
        self._stream.copy(ssm, ssm_here, sizes.ssm)
