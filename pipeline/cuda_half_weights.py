# SPDX-License-Identifier: MIT
"""Float16 matrices for the products of a prefill, whatever the weights are stored in.

Matrices of 8 or 4 bits are unpacked on a second stream, into room for one block, while the scan of
a block runs: it waits for arithmetic and leaves the memory to others. When it begins, all matrices
of the block but `out_proj` have been used, so their places can be filled for the next block, after
`out_proj` has been filled for this one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from pipeline.cuda_driver import Gpu, Stream
from pipeline.cuda_weights import DeviceMatrix, DeviceWeights, layer_at
from pipeline.s6_library import call
from pipeline.s6_prefill import DequantiseProblem

# What is unpacked together: the matrices that are used before a scan, and the one after it.
IN_TO_STEP = ("in_proj.weight", "x_proj.weight", "dt_proj.weight")
OUT = ("out_proj.weight",)
_ALIGNMENT = 256


class HalfWeights:
    """Gives addresses of float16 matrices to one stream of products.

    Attributes:
        scratch_bytes: Memory it holds for unpacked matrices.

    Args:
        gpu: Where they are.
        stream: The stream of the products.
        weights: The weights as stored.
        n_layer: Number of blocks.
        never_taken: Matrices of a block for which no room is wanted.
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        weights: DeviceWeights,
        n_layer: int,
        never_taken: Collection[str] = (),
    ) -> None:
        self._main, self._n_layer = stream, n_layer
        self._matrices = weights.matrices
        self._offsets: dict[str, int] = {}
        size = 0
        for name in (*IN_TO_STEP, *OUT):
            if self._matrices[name].bits != 16 and name not in never_taken:
                self._offsets[name] = size
                size += -(-self._matrices[name].half_bytes // _ALIGNMENT) * _ALIGNMENT
        head = self._matrices["head.weight"]
        if head.bits != 16:
            # Room for some rows of the head at least, where the blocks leave none.
            size = max(size, 2 * head.columns * min(head.rows, 1024))
        self.scratch_bytes = size
        self._scratch = gpu.allocate(size, "unpacked weights")
        self._side = gpu.new_stream()
        self._unused = gpu.new_event()
        self._filled = {IN_TO_STEP: gpu.new_event(), OUT: gpu.new_event()}
        self._awaited: set[tuple[str, ...]] = set()

    def begin(self) -> None:
        """Lets the unpacking start with the first block."""
        self._fill([(IN_TO_STEP, 0)])

    def take(self, name: str, layer: int) -> int:
        """Address of a matrix of a block, which a product enqueued next may read."""
        matrix = self._matrices[name]
        if name not in self._offsets:
            return matrix.data + layer * matrix.layer_bytes
        together = OUT if name in OUT else IN_TO_STEP
        if together not in self._awaited:
            self._main.wait_for(self._filled[together])
            self._awaited.add(together)
        return self._scratch.pointer + self._offsets[name]

    def unpack_meanwhile(self, layer: int) -> None:
        """Tells that of a block all products but the last are enqueued; its scan is next."""
        following = [(IN_TO_STEP, layer + 1)] if layer + 1 < self._n_layer else []
        self._fill([(OUT, layer), *following])

    def head_parts(self) -> Iterator[tuple[int, int, int]]:
        """First row, rows and address of each part of the head; use one before asking the next.

        All blocks must be enqueued before.
        """
        head = self._matrices["head.weight"]
        if head.bits == 16:
            yield 0, head.rows, head.data
            return
        most = self.scratch_bytes // (2 * head.columns) // 16 * 16
        for first in range(0, head.rows, most):
            rows = min(most, head.rows - first)
            _dequantise(self._main, head, self._scratch.pointer, 0, first, rows)
            yield first, rows, self._scratch.pointer

    def _fill(self, wanted: Sequence[tuple[tuple[str, ...], int]]) -> None:
        """Enqueues the unpacking of matrices of a block, after what the products have enqueued."""
        packed = [
            (together, names, layer)
            for together, layer in wanted
            if (names := [name for name in together if name in self._offsets])
        ]
        if not packed:
            return
        self._main.record(self._unused)
        self._side.wait_for(self._unused)
        for together, names, layer in packed:
            for name in names:
                matrix, to = self._matrices[name], self._scratch.pointer + self._offsets[name]
                _dequantise(self._side, matrix, to, layer, 0, matrix.rows)
            self._side.record(self._filled[together])
            self._awaited.discard(together)


def _dequantise(
    stream: Stream, matrix: DeviceMatrix, to: int, layer: int, first_row: int, rows: int
) -> None:
    scales = layer_at(matrix.scales, matrix.layer_bytes, layer)
    row_bytes = matrix.columns * matrix.bits // 8
    problem = DequantiseProblem(
        rows=rows,
        columns=matrix.columns,
        bits=matrix.bits,
        group_size=matrix.group_size,
        words=matrix.data + layer * matrix.layer_bytes + first_row * row_bytes,
        scales=None if scales is None else scales + 2 * first_row,
        y=to,
        scale_group=matrix.rows,
    )
    call("s6_dequantise", problem, stream.handle)
