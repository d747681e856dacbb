# SPDX-License-Identifier: MIT
"""Activations rounded to 8 bits at run time (W8A8): which products take them, and how in numpy.

A row of activations is cut into groups of `GROUP` inputs, as the weights' rows are, and the largest
magnitude of a group gets the code 127. Mamba's activations have outliers, most of all what out_proj
reads, and one scale a row has them coarsen all others (Quamba, arXiv:2410.13229, turns them away by
a Hadamard transform). A scale a group keeps that within the group and needs no transform, since the
product applies the weights' scales group by group anyway.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import BackendError
from pipeline.manifest import BundleManifest
from pipeline.quantize import Floats, unpack

#: Inputs that share a scale: S6_INT8_GROUP of include/s6/int8_linear.h.
GROUP = 128

#: The products of a block that take them: the large ones. x_proj and dt_proj are a few percent of
#: the arithmetic, and what they give is exponentiated.
PRODUCTS = ("in_proj.weight", "out_proj.weight")

_LARGEST_CODE = 127

ActivationCodes = npt.NDArray[np.int8]


def round_activations(x: Floats, group: int = GROUP) -> tuple[ActivationCodes, Floats]:
    """Codes and scales of some rows, as s6_quantise_rows and the norm give them.

    Args:
        x: (tokens, columns) float32.
        group: Inputs that share a scale, a divisor of the columns.

    Returns:
        Codes (tokens, columns) and scales (columns / group, tokens).
    """
    groups = x.reshape(len(x), -1, group)
    largest = np.abs(groups).max(axis=-1)
    factors = np.zeros_like(largest)
    np.divide(np.float32(_LARGEST_CODE), largest, out=factors, where=largest > 0)
    codes = np.rint(groups * factors[..., None]).astype(np.int8)
    return codes.reshape(x.shape), np.ascontiguousarray(largest.T / np.float32(_LARGEST_CODE))


def widen_activations(codes: ActivationCodes, scales: Floats) -> Floats:
    """The float32 rows (tokens, columns) that codes and scales stand for."""
    groups = codes.reshape(len(codes), len(scales), -1).astype(np.float32)
    values: Floats = groups * scales.T[..., None]
    return values.reshape(codes.shape)


def int8_product(
    codes: ActivationCodes,
    scales: Floats,
    words: npt.NDArray[np.int32],
    weight_scales: npt.NDArray[np.float16],
) -> npt.NDArray[np.float64]:
    """What s6_int8_linear computes, its sums over the groups in float64.

    Args:
        codes: (tokens, columns).
        scales: (columns / `GROUP`, tokens).
        words: (rows, columns / 4), of 8 bits.
        weight_scales: (rows, groups), of `GROUP` columns or a multiple each.

    Returns:
        (tokens, rows).
    """
    weights = unpack(words, 8).astype(np.int32) - 128
    total = np.zeros((len(codes), len(words)))
    for group, scale in enumerate(scales):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        sums = codes[:, columns].astype(np.int32) @ weights[:, columns].T
        of_rows = weight_scales[:, group * weight_scales.shape[1] // len(scales)]
        total += sums * scale[:, None].astype(np.float64) * of_rows.astype(np.float64)
    return total


def refuse_other_weights(bundle: BundleManifest) -> None:
    """Refuses bundles whose matrices int8 activations cannot be multiplied with.

    Raises:
        BackendError: The matrices of `PRODUCTS` are not int8, or a scale covers less than `GROUP`
            inputs.
    """
    if bundle.precision != "int8" or bundle.quantisation is None:
        raise BackendError(
            f"int8 activations need int8 weights; the bundle holds {bundle.precision}",
            fix="convert with --precision int8, or build without --activations int8",
        )
    for name in PRODUCTS:
        group = bundle.quantisation.group_sizes.get(f"layers.0.{name}", 0)
        if group == 0 or group % GROUP:
            raise BackendError(
                f"int8 activations need weights with a scale for {GROUP} inputs; "
                f"{name.removesuffix('.weight')} has one for {group or 'none'}",
                fix="convert without --group-size if the model's width is a multiple of "
                f"{GROUP}, else build without --activations int8",
            )
