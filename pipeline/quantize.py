# SPDX-License-Identifier: MIT
"""Matrices in 8 or 4 bits: the packed format, rounding to nearest, and the way back.

A row is cut into groups of inputs that share one scale; a weight is (code - zero point) * scale.
Codes stand in ascending bit positions of little-endian int32 words, four of 8 bits or eight of
4 bits. docs/quantisation.md says who reads this format and why it is what it is; which numbers
the codes get, when text is at hand to choose them by, is the business of `calibration`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.architecture import MambaArchitecture
from pipeline.errors import CheckpointCorruptError
from pipeline.weights import TensorPlace, read_weights

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]
Scales = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]

# Embedding and head may stay wider than the blocks between them.
EndPrecision = Literal["fp16", "int8", "int4"]

WORD_BITS = 32
_BITS: dict[str, int] = {"int8": 8, "int4": 4}
# Inputs a scale covers where nothing else is asked for: 8 bits have room for the spread within
# 128 weights; at 4 bits half of that costs 0.125 bits a weight more and is worth it.
_WANTED_GROUP: dict[str, int] = {"int8": 128, "int4": 64}
# What ONNX Runtime's MatMulNBits takes at least.
_SMALLEST_GROUP = 16
# Rows are quantised in slabs of about this many weights, so that temporaries stay at a few
# times 16 MB whatever the size of the matrix.
_SLAB_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class Packing:
    """How one matrix is packed.

    Attributes:
        bits: 8 or 4, of one code.
        group_size: Inputs that share a scale; a power of two that divides the columns.
    """

    bits: int
    group_size: int

    @property
    def zero_point(self) -> int:
        """The code of the weight 0."""
        return int(2 ** (self.bits - 1))

    @property
    def largest(self) -> int:
        """Steps from 0 to the largest weight of a group, which its scale is made for."""
        return self.zero_point - 1

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the words and the scales of a matrix."""
        return (rows, columns * self.bits // WORD_BITS), (rows, columns // self.group_size)


@dataclass(frozen=True)
class QuantisationChoice:
    """What a user may choose about matrices of 8 or 4 bits.

    Attributes:
        embedding_precision: Of the embedding, and of the head where they are one.
        head_precision: Of a head of its own.
        group_size: Inputs that share a scale in the blocks; None takes 128 for int8 and 64
            for int4.
        calibration_text: Text to choose the weights by; None rounds each to the nearest.
        calibration_tokens: How many tokens of it to read at most.
    """

    embedding_precision: EndPrecision = "int8"
    head_precision: EndPrecision = "int8"
    group_size: int | None = None
    calibration_text: Path | None = None
    calibration_tokens: int = 16384


def choose_packings(
    architecture: MambaArchitecture, precision: str, choice: QuantisationChoice
) -> dict[str, Packing]:
    """How each matrix shall be packed, by its name; none for fp32 and fp16.

    A matrix that is left out of an int8 or int4 bundle stays in float16.
    """
    if precision not in _BITS:
        return {}
    ends = {
        "embedding.weight": choice.embedding_precision,
        "head.weight": choice.head_precision,
    }
    chosen: dict[str, Packing] = {}
    for name, weight in architecture.weights().items():
        of_matrix = ends.get(name, precision)
        if weight.kind == "matrix" and of_matrix in _BITS:
            group_size = None if name in ends else choice.group_size
            packing = choose_packing(of_matrix, weight.shape[1], group_size)
            if packing is not None:
                chosen[name] = packing
    return chosen


def scales_name(weight: str) -> str:
    """Name of the scales that belong to a packed matrix: `….weight` becomes `….scales`."""
    return weight.removesuffix("weight") + "scales"


def choose_packing(precision: str, columns: int, group_size: int | None = None) -> Packing | None:
    """The packing of a matrix with rows of this length.

    Args:
        precision: "int8" or "int4".
        columns: Inputs, the length of a row.
        group_size: Inputs that shall share a scale; None takes the default.

    Returns:
        The packing with the largest group up to the wanted one: a power of two from 16 on that
        divides the columns. None when there is no such group; the matrix then stays in float16.
    """
    group = group_size or _WANTED_GROUP[precision]
    while columns % group:
        group //= 2
    return Packing(_BITS[precision], group) if group >= _SMALLEST_GROUP else None


def packings(
    architecture: MambaArchitecture, places: Mapping[str, TensorPlace]
) -> dict[str, Packing]:
    """How each packed matrix of a weight file is packed, by its name, read off the shapes."""
    found = {}
    for name, weight in architecture.weights().items():
        if places[name].dtype == np.int32:
            columns = weight.shape[1]
            bits = WORD_BITS * places[name].shape[1] // columns
            found[name] = Packing(bits, columns // places[scales_name(name)].shape[1])
    return found


def pack(codes: Codes, bits: int) -> Words:
    """Codes (rows, columns) to words (rows, columns * bits / 32)."""
    whole_bytes = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
    return np.ascontiguousarray(whole_bytes).view("<i4")


def unpack(words: npt.NDArray[np.generic], bits: int) -> Codes:
    """The inverse of `pack`."""
    whole_bytes = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    if bits == 8:
        return whole_bytes
    codes = np.empty((len(words), 2 * whole_bytes.shape[1]), dtype=np.uint8)
    codes[:, 0::2] = whole_bytes & 0xF
    codes[:, 1::2] = whole_bytes >> 4
    return codes


def round_to_nearest(name: str, matrix: Floats, packing: Packing) -> tuple[Words, Scales]:
    """Packs a matrix without looking at any text.

    Args:
        name: Of the matrix, for the message.
        matrix: (rows, columns).
        packing: How.

    Returns:
        Words and scales, with the shapes of `Packing.shapes`.

    Raises:
        CheckpointCorruptError: A weight is not a number a scale can stand for.
    """
    rows, columns = matrix.shape
    words_shape, scales_shape = packing.shapes(rows, columns)
    words, scales = np.empty(words_shape, "<i4"), np.empty(scales_shape, np.float16)
    slab = max(1, _SLAB_WEIGHTS // columns)
    for start in range(0, rows, slab):
        part = matrix[start : start + slab]
        groups = part.reshape(len(part), -1, packing.group_size)
        chosen = _grid_scales(groups, group_scales(name, groups, packing), packing)
        codes = nearest_codes(groups, chosen[..., None], packing).reshape(part.shape)
        words[start : start + slab] = pack(codes, packing.bits)
        scales[start : start + slab] = chosen
    return words, scales


def group_scales(name: str, groups: Floats, packing: Packing) -> Scales:
    """The scale with which the largest weight of each group (…, group size) just fits.

    Raises:
        CheckpointCorruptError: A weight is infinite or not a number, or too large for float16
            scales.
    """
    largest = np.abs(groups).max(axis=-1, initial=0)
    limit = float(np.finfo(np.float16).max) * packing.largest
    if not bool((largest <= limit).all()):  # also false for NaN
        raise CheckpointCorruptError(
            f"tensor {name} holds {largest.max():.3g}, more than int{packing.bits} with float16 "
            f"scales can ({limit:.3g})",
            fix="convert with --precision fp32",
        )
    return np.asarray(largest / packing.largest, dtype=np.float16)


def _grid_scales(groups: Floats, scales: Scales, packing: Packing) -> Scales:
    """Lets groups (…, group size) that lie on a grid of our codes keep it, and so stay exact.

    Weights unpacked from llama.cpp's Q4_0 do: their largest has the lowest code, so the usual
    scale, under which it has the highest, would round all others once more.
    """
    widest = np.abs(groups).argmax(axis=-1, keepdims=True)
    extremes = np.take_along_axis(groups, widest, axis=-1)
    found = np.asarray(extremes / -packing.zero_point, dtype=np.float16)
    steps = found.astype(np.float32)
    steps[steps == 0] = np.inf

    def lie_on(values: Floats, step: Floats) -> npt.NDArray[np.bool_]:
        codes = np.rint(values / step)
        with np.errstate(invalid="ignore"):  # 0 * infinity, of which nothing comes
            is_exact = codes * step == values
        # Codes reach one step further on the side of the largest than on the other.
        return np.asarray((is_exact & (codes <= packing.largest)).all(axis=-1))

    # Few groups get past their largest and their first weight.
    likely = (steps * -packing.zero_point == extremes)[..., 0] & lie_on(groups[..., :1], steps)
    likely[likely] = lie_on(groups[likely], steps[likely])
    return np.where(likely, found[..., 0], scales)


def nearest_codes(weights: Floats, scales: Scales, packing: Packing) -> Codes:
    """The code nearest to each weight, given its scale (broadcast against the weights)."""
    # A scale of 0 belongs to a group of zeros, or of weights below what float16 resolves.
    divisor = np.where(scales == 0, np.float32(np.inf), scales.astype(np.float32))
    steps = np.rint(weights / divisor)
    np.clip(steps, -packing.zero_point, packing.largest, out=steps)
    return np.asarray(steps + packing.zero_point, dtype=np.uint8)


def dequantise(
    words: npt.NDArray[np.generic], scales: npt.NDArray[np.generic], bits: int
) -> Floats:
    """The float32 matrix (rows, columns) that words and scales stand for."""
    packing = Packing(bits, words.shape[1] * WORD_BITS // bits // scales.shape[1])
    codes = unpack(words, bits).reshape(*scales.shape, packing.group_size)
    values = (codes.astype(np.float32) - packing.zero_point) * scales[..., None].astype(np.float32)
    return values.reshape(len(words), -1)


def dequantised(
    stored: Mapping[str, npt.NDArray[np.generic]], architecture: MambaArchitecture
) -> Iterator[tuple[str, Floats]]:
    """Yields those of `architecture.weights()` that are there, float32, packed or not."""
    for name, weight in architecture.weights().items():
        value = stored.get(name)
        if value is None:
            continue
        if value.dtype == np.int32:
            bits = WORD_BITS * value.shape[1] // weight.shape[1]
            yield name, dequantise(value, stored[scales_name(name)], bits)
        else:
            yield name, value.astype(np.float32)


def read_dequantised(path: Path, architecture: MambaArchitecture) -> Iterator[tuple[str, Floats]]:
    """Yields each of `architecture.weights()` from a weight file, float32, packed or not."""
    return dequantised(dict(read_weights(path)), architecture)
