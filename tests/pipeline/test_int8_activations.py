# SPDX-License-Identifier: MIT
"""Rounding of activations, their product with packed weights, and what is refused; no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import cuda_backend
from pipeline.bundle import convert
from pipeline.engine import build
from pipeline.errors import BackendError
from pipeline.int8_activations import (
    GROUP,
    PRODUCTS,
    int8_product,
    refuse_other_weights,
    round_activations,
    widen_activations,
)
from pipeline.manifest import EngineManifest, EngineOptions, read_bundle
from pipeline.quantize import Packing, QuantisationChoice, dequantise, round_to_nearest
from pipeline.torch_session import open_torch_session
from tests.checkpoints import hugging_face

# As wide as activations are, and not so small that a scale falls below float32's normal numbers.
VALUES = st.floats(-60000, 60000, width=16).map(lambda v: v if abs(v) > 1e-4 else 0.0)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(2 * GROUP)), elements=VALUES))
def test_rounding_is_to_the_nearest_of_255_steps(x: Any) -> None:
    codes, scales = round_activations(x)
    assert codes.shape == x.shape
    assert scales.shape == (2, len(x))
    largest = np.abs(x.reshape(len(x), 2, GROUP)).max(axis=-1)
    np.testing.assert_allclose(127 * scales.T, largest, rtol=1e-6)
    half_steps = np.repeat(scales.T, GROUP, axis=1) / 2
    assert (np.abs(widen_activations(codes, scales) - x) <= half_steps * (1 + 1e-4)).all()


def test_an_outlier_coarsens_its_own_group_only() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2 * GROUP)).astype(np.float32)
    alone = widen_activations(*round_activations(x))
    x[0, 3] = 1000
    beside = widen_activations(*round_activations(x))
    np.testing.assert_array_equal(beside[0, GROUP:], alone[0, GROUP:])
    assert np.abs(beside - x)[0, :GROUP].max() > 10 * np.abs(alone - x)[0, GROUP:].max()


@pytest.mark.parametrize("group_size", [GROUP, 2 * GROUP])
def test_a_product_is_that_of_what_the_codes_stand_for(group_size: int) -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(5, 4 * GROUP)).astype(np.float32)
    matrix = generator.normal(size=(8, 4 * GROUP)).astype(np.float32)
    words, weight_scales = round_to_nearest("matrix", matrix, Packing(8, group_size))
    codes, scales = round_activations(x)
    found = int8_product(codes, scales, words, weight_scales)
    wide = widen_activations(codes, scales).astype(np.float64)
    np.testing.assert_allclose(
        found, wide @ dequantise(words, weight_scales, 8).T.astype(np.float64), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(found, x @ matrix.T, atol=1)


def test_the_reference_computes_with_rounded_inputs_of_two_products(tmp_path: Path) -> None:
    """Nearly what it computes without, and not the same; x_proj and dt_proj are let be."""
    bundle = bundle_of(tmp_path, "int8")
    architecture = read_bundle(bundle).architecture
    ids = np.random.default_rng(2).integers(0, architecture.vocab_size, (2, 9))
    exact, _ = open_torch_session(bundle, architecture).prefill(ids)
    rounded = open_torch_session(bundle, architecture)
    rounded.round_inputs()
    found, _ = rounded.prefill(ids)
    difference = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-4 < difference < 0.1
    seen = set()

    def see(name: str, x: Any) -> Any:
        seen.add(name)
        np.testing.assert_array_equal(
            x, widen_activations(*round_activations(x)), err_msg="inputs are replaced in order"
        )
        return x

    rounded.replace_inputs(see)
    rounded.prefill(ids)
    assert seen == set(PRODUCTS)


def bundle_of(folder: Path, precision: str, hidden_size: int = 128, **choice: Any) -> Path:
    checkpoint = hugging_face(folder / "checkpoint", hidden_size=hidden_size).path
    convert(checkpoint, folder / "bundle", precision, choice=QuantisationChoice(**choice))  # type: ignore[arg-type]
    return folder / "bundle"


def test_int8_weights_with_scales_for_whole_groups_are_taken(tmp_path: Path) -> None:
    refuse_other_weights(read_bundle(bundle_of(tmp_path, "int8")))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_other_weights_are_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(BackendError, match=f"the bundle holds {precision}") as caught:
        refuse_other_weights(read_bundle(bundle_of(tmp_path, precision)))
    assert "--precision int8" in caught.value.fix


def test_scales_for_less_than_a_group_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="in_proj has one for 64") as caught:
        refuse_other_weights(read_bundle(bundle_of(tmp_path, "int8", group_size=64)))
    assert "without --group-size" in caught.value.fix


def test_a_width_without_whole_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="in_proj has one for 64"):
        refuse_other_weights(read_bundle(bundle_of(tmp_path, "int8", hidden_size=192)))


def test_the_cuda_backend_refuses_them_before_it_asks_for_a_gpu(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "int4")
    with pytest.raises(BackendError, match="the bundle holds int4"):
        cuda_backend.prepare(
            tmp_path, bundle, read_bundle(bundle), EngineOptions(1, 16, activations="int8")
        )


def test_on_a_cpu_float_matrices_with_int8_activations_are_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "fp16")
    with pytest.raises(BackendError, match="int8 activations need packed weights"):
        build(bundle, tmp_path / "engine", "onnxruntime", activations="int8")
    assert not (tmp_path / "engine").exists()


def test_an_engine_of_before_has_activations_as_its_backend_does() -> None:
    assert EngineManifest.model_fields["activations"].default is None
