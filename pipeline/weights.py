# SPDX-License-Identifier: MIT
"""The weight file of a bundle: one safetensors file, written tensor by tensor.

The safetensors package writes a file only from tensors that are all in memory; here a model of
any size passes through one tensor at a time, and each tensor's place in the file is known
beforehand, because the ONNX graphs point straight into it. Reading is left to the package.

Format: https://github.com/huggingface/safetensors#format (8 bytes of header size, little
endian; the header, JSON padded with spaces; the tensors without gaps).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ArtifactCorruptError
from pipeline.storage import storage_errors

WEIGHT_FILE = "weights.safetensors"

# Type and shape of each tensor by its name, in file order.
Plan = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

# Safetensors names of the numpy types that a bundle holds.
_TYPE_NAMES = {"float32": "F32", "float16": "F16", "int32": "I32"}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _TYPE_NAMES.items()}
# Tensors start at a multiple of this many bytes: a cache line, and more than any vector load.
_HEADER_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in the file.

    Attributes:
        dtype: Its type.
        shape: Its sizes, outermost first.
        offset: First byte, from the beginning of the file.
        length: Number of bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    length: int


def plan_places(tensors: Plan) -> dict[str, TensorPlace]:
    """Decides where each tensor will lie, in the order of the plan."""
    header_bytes = len(_header(tensors))
    places = {}
    offset = header_bytes
    for name, (dtype, shape) in tensors.items():
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        places[name] = TensorPlace(dtype, shape, offset, length)
        offset += length
    return places


def write_weights(
    path: Path,
    tensors: Plan,
    values: Iterable[tuple[str, npt.NDArray[np.generic]]],
) -> str:
    """Writes the file tensor by tensor.

    Args:
        path: The file to write; the caller renames it into place.
        tensors: What the file shall hold, as given to `plan_places`.
        values: Name and content of every tensor, in the same order.

    Returns:
        The SHA-256 of the file.

    Raises:
        StorageError: The file cannot be written (DiskFullError when there is no room).
    """
    digest = hashlib.sha256()
    expected = iter(tensors.items())
    with storage_errors(path), path.open("wb") as file:
        header = _header(tensors)
        file.write(header)
        digest.update(header)
        for name, value in values:
            planned_name, (dtype, shape) = next(expected)
            if (name, value.dtype, value.shape) != (planned_name, dtype, shape):
                raise AssertionError(
                    f"{name} {value.dtype} {value.shape} does not follow the plan: "
                    f"{planned_name} {dtype} {shape}"
                )
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Reads the header of a weight file.

    Raises:
        ArtifactCorruptError: The file is not one of ours.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise ArtifactCorruptError(
            f"{path} is not a safetensors file: {error}",
            fix="run convert again to write the bundle anew",
        ) from error
    header.pop("__metadata__", None)
    return {
        name: TensorPlace(
            dtype=_DTYPES[entry["dtype"]],
            shape=tuple(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0],
            length=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def read_weights(path: Path) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yields every tensor of a weight file, mapped from disk and read only, in file order."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    for name, place in read_places(path).items():
        flat = content[place.offset : place.offset + place.length]
        yield name, flat.view(place.dtype).reshape(place.shape)


def _header(tensors: Plan) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        entries[name] = {
            "dtype": _TYPE_NAMES[dtype.name],
            "shape": list(shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
