# SPDX-License-Identifier: MIT
"""The weights of a bundle on the GPU: one image, in which all layers look alike.

Tensors lie in file order, each at a multiple of `LINE_BYTES`, so that from a tensor of one block to
the same tensor of the next it is always the same distance: one address and one step describe it
for all blocks. Scales lie groups first, the order in which the kernels read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_driver import DeviceMemory, Gpu, Stream
from pipeline.errors import BackendError
from pipeline.quantize import packings, scales_name
from pipeline.settings import Progress, no_progress
from pipeline.weights import WEIGHT_FILE, TensorPlace, read_places, read_weights

#: Tensors begin at multiples of this: a line of the L2 cache, and more than any vector load or bulk
#: copy asks for.
LINE_BYTES = 128
# Copied at once: boards fail on large host transfers long before they run out of memory.
_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class ImagePlan:
    """Where each tensor of a weight file lies in the image.

    Attributes:
        offsets: First byte of each tensor, by its name.
        size: Bytes of the whole image.
        layer_bytes: From any tensor of a block to the same of the next block.
    """

    offsets: Mapping[str, int]
    size: int
    layer_bytes: int


@dataclass(frozen=True)
class DeviceMatrix:
    """A weight matrix of every block, or one of embedding and head.

    Attributes:
        rows: Outputs.
        columns: Inputs.
        bits: 16, 8 or 4.
        group_size: Columns that share a scale; 0 for 16 bits.
        data: Address of the first block's.
        scales: Address of its scales (columns / group_size, rows); None for 16 bits.
        layer_bytes: From a block's to the next block's, for both.
    """

    rows: int
    columns: int
    bits: int
    group_size: int
    data: int
    scales: int | None
    layer_bytes: int

    @property
    def half_bytes(self) -> int:
        """Bytes of one block's matrix in float16."""
        return 2 * self.rows * self.columns


@dataclass(frozen=True)
class DeviceVector:
    """A float32 vector or small table of every block."""

    data: int
    layer_bytes: int


@dataclass(frozen=True)
class DeviceWeights:
    """All weights of a model on the GPU.

    Attributes:
        memory: What they lie in.
        addresses: Of each tensor of the weight file, by its name.
        matrices: Of a block, by the name after `layers.{i}.`; also "embedding.weight" and, for
            the head, "head.weight", which may be the same.
        vectors: Likewise; also "norm.weight" with the key "final_norm".
    """

    memory: DeviceMemory
    addresses: Mapping[str, int]
    matrices: Mapping[str, DeviceMatrix]
    vectors: Mapping[str, DeviceVector]

    @property
    def is_packed(self) -> bool:
        """Whether some matrix has 8 or 4 bits."""
        return any(matrix.bits != 16 for matrix in self.matrices.values())


def plan_image(places: Mapping[str, TensorPlace], architecture: MambaArchitecture) -> ImagePlan:
    """Decides where each tensor will lie.

    Raises:
        BackendError: The blocks differ in the layout of their tensors.
    """
    offsets, size = {}, 0
    for name, place in places.items():
        offsets[name] = size
        size += -(-place.length // LINE_BYTES) * LINE_BYTES
    first = [name for name in places if name.startswith("layers.0.")]
    following = "norm.weight" if architecture.n_layer == 1 else first[0].replace("0", "1", 1)
    layer_bytes = offsets[following] - offsets[first[0]]
    for layer in range(architecture.n_layer):
        for name in first:
            of_layer = name.replace("layers.0.", f"layers.{layer}.", 1)
            if offsets.get(of_layer) != offsets[name] + layer * layer_bytes:
                raise BackendError(
                    f"block {layer} does not hold its tensors as block 0 does ({of_layer})",
                    fix="convert the checkpoint again with this version of mamba-orin",
                )
    return ImagePlan(offsets, size, layer_bytes)


def upload(
    gpu: Gpu,
    stream: Stream,
    bundle: Path,
    architecture: MambaArchitecture,
    progress: Progress = no_progress,
) -> DeviceWeights:
    """Copies a bundle's weights to the GPU, straight from the mapped file.

    Args:
        gpu: Where to.
        stream: The copies are enqueued here, and are done when this returns.
        bundle: The folder; the caller has checked its manifest.
        architecture: Its sizes.
        progress: Told bytes that are there and bytes in all.

    Raises:
        BackendError: They do not fit.
    """
    path = bundle / WEIGHT_FILE
    places = read_places(path)
    plan = plan_image(places, architecture)
    free, total = gpu.free_bytes()
    if plan.size > total:
        raise BackendError(
            f"the weights need {plan.size / 1e6:,.0f} MB and this GPU has {total / 1e6:,.0f} MB "
            f"({free / 1e6:,.0f} free)",
            fix="convert with --precision int8 or int4, or use a smaller model",
        )
    memory = gpu.allocate(plan.size, "the weights")
    done = 0
    for name, values in read_weights(path):
        flat = np.ascontiguousarray(values.T if name.endswith(".scales") else values).reshape(-1)
        flat = flat.view(np.uint8)
        for begin in range(0, flat.nbytes, _CHUNK_BYTES):
            part = flat[begin : begin + _CHUNK_BYTES]
            stream.write(memory.pointer + plan.offsets[name] + begin, part)
            done += part.nbytes
            progress(done, plan.size)
    stream.finish()
    progress(plan.size, plan.size)
    return describe(memory, plan, places, architecture)


def describe(
    memory: DeviceMemory,
    plan: ImagePlan,
    places: Mapping[str, TensorPlace],
    architecture: MambaArchitecture,
) -> DeviceWeights:
    """Says where each weight is in an image that has been filled."""
    packed = packings(architecture, places)
    matrices, vectors = {}, {}

    def at(name: str) -> int:
        return memory.pointer + plan.offsets[name]

    def matrix(name: str) -> DeviceMatrix:
        rows, columns = architecture.weights()[name].shape
        packing = packed.get(name)
        return DeviceMatrix(
            rows=rows,
            columns=columns,
            bits=packing.bits if packing else 16,
            group_size=packing.group_size if packing else 0,
            data=at(name),
            scales=at(scales_name(name)) if packing else None,
            layer_bytes=plan.layer_bytes,
        )

    for name, weight in architecture.layer_weights().items():
        if weight.kind == "matrix":
            matrices[name] = matrix(f"layers.0.{name}")
        else:
            vectors[name] = DeviceVector(at(f"layers.0.{name}"), plan.layer_bytes)
    matrices["embedding.weight"] = matrix("embedding.weight")
    matrices["head.weight"] = matrix(architecture.head_weight)
    vectors["final_norm"] = DeviceVector(at("norm.weight"), 0)
    addresses = {name: at(name) for name in places}
    return DeviceWeights(memory, addresses, matrices, vectors)


def layer_at(address: int | None, layer_bytes: int, layer: int) -> int | None:
    """The address of a block's tensor, given the first block's."""
    return None if address is None else address + layer * layer_bytes
