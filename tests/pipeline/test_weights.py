# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipeline.errors import ArtifactCorruptError
from pipeline.storage import sha256_of
from pipeline.weights import plan_places, read_places, read_weights, write_weights

SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)
DTYPES = st.sampled_from([np.float32, np.float16, np.int32]).map(np.dtype)


@given(plan=st.dictionaries(st.text(min_size=1, max_size=9), st.tuples(DTYPES, SHAPES), max_size=6))
def test_files_are_what_safetensors_reads(
    plan: dict[str, tuple[np.dtype, tuple[int, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plan.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    random = np.random.default_rng(0)
    values = {
        name: np.asarray(random.normal(size=shape) * 9).astype(dtype)
        for name, (dtype, shape) in plan.items()
    }
    digest = write_weights(path, plan, values.items())

    assert digest == sha256_of(path)
    by_library = load_file(path)
    assert set(by_library) == set(plan)
    for name, value in values.items():
        np.testing.assert_array_equal(by_library[name], value)
    content = path.read_bytes()
    assert plan_places(plan) == read_places(path)
    for name, place in plan_places(plan).items():
        assert content[place.offset : place.offset + place.length] == values[name].tobytes()


def test_tensors_come_back_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    dtype = np.dtype(np.float32)
    plan = {"z": (dtype, (2, 3)), "a": (dtype, (4,))}
    values = {"z": np.arange(6, dtype=dtype).reshape(2, 3), "a": np.ones(4, dtype=dtype)}
    write_weights(path, plan, values.items())
    read = dict(read_weights(path))
    assert list(read) == ["z", "a"]
    np.testing.assert_array_equal(read["z"], values["z"])


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 64, b"\x04\0\0\0\0\0\0\0nope"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match=r"weights\.safetensors"):
        read_places(path)
