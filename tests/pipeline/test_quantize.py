# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from pipeline.architecture import PUBLISHED
from pipeline.bundle import convert
from pipeline.errors import CheckpointCorruptError
from pipeline.manifest import read_bundle
from pipeline.quantize import (
    Packing,
    QuantisationChoice,
    choose_packing,
    choose_packings,
    dequantise,
    pack,
    packings,
    read_dequantised,
    round_to_nearest,
    scales_name,
    unpack,
)
from pipeline.weights import WEIGHT_FILE, read_places, read_weights
from tests.checkpoints import RandomCheckpoint, hugging_face

PACKINGS = st.builds(Packing, st.sampled_from([4, 8]), st.sampled_from([16, 32, 64, 128]))


@st.composite
def codes(draw: st.DrawFn) -> tuple[int, Any]:
    bits = draw(st.sampled_from([4, 8]))
    shape = (draw(st.integers(0, 7)), 8 * draw(st.integers(1, 9)))
    return bits, draw(arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Packing, Any]:
    packing = draw(PACKINGS)
    shape = (draw(st.integers(1, 5)), packing.group_size * draw(st.integers(1, 5)))
    elements = st.floats(-(2.0**18), 2.0**18, width=32)
    return packing, draw(arrays(np.float32, shape, elements=elements))


@given(codes())
def test_codes_come_back_from_words(case: tuple[int, Any]) -> None:
    bits, before = case
    words = pack(before, bits)
    assert words.dtype == np.int32
    assert words.shape == (len(before), before.shape[1] * bits // 32)
    np.testing.assert_array_equal(unpack(words, bits), before)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_stand_in_ascending_bit_positions(bits: int) -> None:
    """The format as docs/quantisation.md states it, computed with Python's own integers."""
    row = list(np.random.default_rng(bits).integers(0, 2**bits, 32))
    per_word = 32 // bits
    words = [
        sum(int(code) << (bits * position) for position, code in enumerate(row[start:][:per_word]))
        for start in range(0, 32, per_word)
    ]
    found = pack(np.array([row], dtype=np.uint8), bits)
    assert found.view(np.uint32).tolist() == [words]


@given(matrices())
@example((Packing(4, 16), np.array([[-8.0, *[8.0] * 15]], dtype=np.float32)))
def test_rounding_is_off_by_half_a_step_at_most(case: tuple[Packing, Any]) -> None:
    packing, matrix = case
    words, scales = round_to_nearest("some.weight", matrix, packing)
    assert (words.shape, scales.shape) == packing.shapes(*matrix.shape)
    again = dequantise(words, scales, packing.bits)
    step = np.repeat(np.abs(scales.astype(np.float64)), packing.group_size, axis=1)
    # A scale is a float16: its own rounding moves the largest weight by 2^-11 of it, or by what
    # the smallest float16 (6e-8) leaves unresolved.
    slack = np.abs(matrix) * 2.0**-11 + packing.zero_point * 2.0**-24
    assert (np.abs(again - matrix) <= step / 2 + slack).all()


@given(
    PACKINGS,
    st.data(),
    st.floats(2.0**-10, 8.0).map(np.float16),
    st.sampled_from([1, -1]),
)
def test_weights_on_a_grid_of_the_codes_stay_as_they_are(
    packing: Packing, data: st.DataObject, scale: np.float16, sign: int
) -> None:
    """As Q4_0's do, whose largest weight has the lowest code, whatever its sign."""
    element = st.integers(-packing.zero_point, packing.largest)
    steps = data.draw(arrays(np.int64, packing.group_size, elements=element))
    steps[data.draw(st.integers(0, packing.group_size - 1))] = -packing.zero_point
    matrix = (steps * np.float32(scale) * sign).astype(np.float32)[None]
    words, scales = round_to_nearest("some.weight", matrix, packing)
    np.testing.assert_array_equal(dequantise(words, scales, packing.bits), matrix)


@given(PACKINGS, st.integers(1, 4))
def test_zeros_stay_zeros(packing: Packing, rows: int) -> None:
    words, scales = round_to_nearest(
        "zeros", np.zeros((rows, packing.group_size), np.float32), packing
    )
    assert not scales.any()
    assert not dequantise(words, scales, packing.bits).any()
    assert (unpack(words, packing.bits) == packing.zero_point).all()


@given(matrices(), st.sampled_from([np.inf, -np.inf, np.nan, 3e38]), st.data())
def test_what_no_scale_can_stand_for_is_refused_by_name(
    case: tuple[Packing, Any], value: float, data: st.DataObject
) -> None:
    packing, matrix = case
    matrix.flat[data.draw(st.integers(0, matrix.size - 1))] = value
    with pytest.raises(CheckpointCorruptError, match=r"layers\.7\.in_proj\.weight") as caught:
        round_to_nearest("layers.7.in_proj.weight", matrix, packing)
    assert caught.value.fix


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).normal(size=(37, 64)).astype(np.float32)
    whole = round_to_nearest("m", matrix, Packing(4, 32))
    monkeypatch.setattr("pipeline.quantize._SLAB_WEIGHTS", 300)
    for part, expected in zip(round_to_nearest("m", matrix, Packing(4, 32)), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(
    ("columns", "group_int8", "group_int4"),
    [(48, 16, 16), (64, 64, 64), (96, 32, 32), (160, 32, 32), (768, 128, 64), (5120, 128, 64)],
)
def test_groups_are_the_largest_power_of_two_that_divides_a_row(
    columns: int, group_int8: int, group_int4: int
) -> None:
    assert choose_packing("int8", columns) == Packing(8, group_int8)
    assert choose_packing("int4", columns) == Packing(4, group_int4)
    assert choose_packing("int4", columns, 16) == Packing(4, 16)


@pytest.mark.parametrize("columns", [1, 5, 8, 24, 1000])
def test_rows_that_cannot_be_cut_into_groups_are_not_packed(columns: int) -> None:
    assert choose_packing("int4", columns) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_matrix_of_the_published_models_is_packed(name: str) -> None:
    architecture = PUBLISHED[name]
    matrices = {n for n, weight in architecture.weights().items() if weight.kind == "matrix"}
    assert set(choose_packings(architecture, "int4", QuantisationChoice())) == matrices


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_bundle_says_what_it_holds(tmp_path: Path, precision: Any, is_tied: bool) -> None:
    checkpoint = hugging_face(tmp_path / "checkpoint", tied=is_tied)
    choice = QuantisationChoice(embedding_precision="fp16", head_precision="int4", group_size=16)
    convert(checkpoint.path, tmp_path / "bundle", precision, choice=choice)

    manifest = read_bundle(tmp_path / "bundle")
    places = read_places(tmp_path / "bundle" / WEIGHT_FILE)
    packed = packings(manifest.architecture, places)
    bits = {"int8": 8, "int4": 4}[precision]
    assert manifest.quantisation is not None
    assert manifest.quantisation.method == "rtn"
    assert manifest.quantisation.head_precision == ("fp16" if is_tied else "int4")
    in_block_and_head = {"layers.0.in_proj.weight", "layers.0.x_proj.weight"}
    in_block_and_head |= {"layers.0.out_proj.weight"} | (set() if is_tied else {"head.weight"})
    assert manifest.quantisation.group_sizes == dict.fromkeys(in_block_and_head, 16)
    assert packed["layers.2.out_proj.weight"] == Packing(bits, 16)
    # The rank of the step size is 5 here: no group divides it.
    assert places["layers.0.dt_proj.weight"].dtype == np.float16
    assert places["embedding.weight"].dtype == np.float16
    assert places[scales_name("layers.1.in_proj.weight")].shape == (2 * 96, 3)
    if not is_tied:
        assert packed["head.weight"] == Packing(4, 16)


@pytest.mark.parametrize(("precision", "share"), [("int8", 1 / 254), ("int4", 1 / 14)])
def test_weights_come_back_within_half_a_step(
    checkpoint: RandomCheckpoint, bundle: Path, tmp_path: Path, precision: Any, share: float
) -> None:
    convert(checkpoint.path, tmp_path / "bundle", precision)
    architecture = read_bundle(tmp_path / "bundle").architecture
    found = dict(read_dequantised(tmp_path / "bundle" / WEIGHT_FILE, architecture))
    for name, exact in read_weights(bundle / WEIGHT_FILE):
        assert found[name].shape == exact.shape
        error = np.abs(found[name] - exact.astype(np.float32)).max()
        assert error <= 1.01 * share * np.abs(exact.astype(np.float32)).max()


def test_infinity_in_a_checkpoint_is_refused_by_the_name_of_its_tensor(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint.path / "model.safetensors")
    tensors["backbone.layers.1.mixer.out_proj.weight"][0, 0] = float("inf")
    (tmp_path / "config.json").write_bytes((checkpoint.path / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointCorruptError, match=r"layers\.1\.mixer\.out_proj"):
        convert(tmp_path, tmp_path / "bundle", "int4")
    assert not (tmp_path / "bundle").exists()
