# SPDX-License-Identifier: MIT
"""The tensors of a bundle's weight file, made one after the other from those of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.architecture import MambaArchitecture
from pipeline.calibration import Calibrator
from pipeline.errors import CheckpointCorruptError
from pipeline.manifest import Precision
from pipeline.quantize import Packing, dequantised, round_to_nearest, scales_name
from pipeline.resumption import KeptParts, Tensors
from pipeline.weights import Plan

if TYPE_CHECKING:
    import torch

NamedTensors = Iterator[tuple[str, npt.NDArray[np.generic]]]

_FLOAT32, _FLOAT16, _INT32 = (np.dtype(kind) for kind in (np.float32, np.float16, np.int32))


def plan_tensors(
    architecture: MambaArchitecture, precision: Precision, packed: Mapping[str, Packing]
) -> Plan:
    """Type and shape of each tensor, in file order; scales follow their matrix."""
    matrix_dtype = _FLOAT32 if precision == "fp32" else _FLOAT16
    plan: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for name, weight in architecture.weights().items():
        if name in packed:
            rows, columns = weight.shape
            words, scales = packed[name].shapes(rows, columns)
            plan[name], plan[scales_name(name)] = (_INT32, words), (_FLOAT16, scales)
        else:
            plan[name] = (matrix_dtype if weight.kind == "matrix" else _FLOAT32, weight.shape)
    return plan


def unpacked_tensors(tensors: Iterable[tuple[str, torch.Tensor]], plan: Plan) -> NamedTensors:
    """Yields the tensors in the types of the plan.

    Raises:
        CheckpointCorruptError: A value is too large for its type.
    """
    for name, tensor in tensors:
        yield name, _narrowed(name, tensor, plan)


def packed_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]],
    plan: Plan,
    architecture: MambaArchitecture,
    packed: Mapping[str, Packing],
    kept: KeptParts,
    calibrator: Calibrator | None,
) -> NamedTensors:
    """Yields the tensors in the types of the plan, the packed ones as words and scales.

    Args:
        tensors: Of the checkpoint, in the order of `architecture.weights()`, float32.
        plan: From `plan_tensors`.
        architecture: Sizes.
        packed: The matrices to pack.
        kept: Parts that an earlier run has finished, and where to keep those of this one.
        calibrator: Chooses the weights of the blocks; None rounds each to the nearest.

    Raises:
        CheckpointCorruptError: A value is too large for its type.
        StorageError: A finished part cannot be kept.
    """
    for part, group in groupby(tensors, key=lambda item: _part_of(item[0])):
        exact = dict(group)
        stored = kept.load(part)
        if stored is None:
            stored = _packed_part(part, exact, plan, packed, calibrator)
            kept.keep(part, stored)
        if calibrator is not None:
            calibrator.follow(part, dict(dequantised(stored, architecture)))
        yield from stored.items()


def _packed_part(
    part: str,
    exact: Mapping[str, torch.Tensor],
    plan: Plan,
    packed: Mapping[str, Packing],
    calibrator: Calibrator | None,
) -> Tensors:
    chosen = calibrator.choose(part, exact, packed) if calibrator is not None else {}
    stored: Tensors = {}
    for name, tensor in exact.items():
        if name in chosen:
            stored[name], stored[scales_name(name)] = chosen[name]
        elif name in packed:
            stored[name], stored[scales_name(name)] = round_to_nearest(
                name, tensor.numpy(), packed[name]
            )
        else:
            stored[name] = _narrowed(name, tensor, plan)
    return stored


def _part_of(name: str) -> str:
    """`layers.7` for the weights of a block, else the name of the only weight of the part."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "layers" else words[0]


def _narrowed(name: str, tensor: torch.Tensor, plan: Plan) -> npt.NDArray[np.generic]:
    dtype = plan[name][0]
    value = tensor.numpy()
    limit = np.finfo(dtype).max
    largest = np.abs(value).max(initial=0)
    if largest > limit:
        raise CheckpointCorruptError(
            f"tensor {name} holds {largest:.3g}, more than {dtype} can ({limit:.3g})",
            fix="convert with --precision fp32",
        )
    narrowed: npt.NDArray[np.generic] = value.astype(dtype, copy=False)
    return narrowed
