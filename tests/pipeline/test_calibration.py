# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.architecture import PUBLISHED
from pipeline.bundle import convert
from pipeline.calibration import SEQUENCE_TOKENS, Calibrator, compensated
from pipeline.errors import CheckpointCorruptError, UsageError
from pipeline.manifest import read_bundle
from pipeline.quantize import (
    Packing,
    QuantisationChoice,
    dequantise,
    nearest_codes,
    round_to_nearest,
    unpack,
)
from pipeline.session import Floats
from pipeline.tokenizer import Tokenizer
from pipeline.torch_session import open_torch_session
from tests.checkpoints import RandomCheckpoint
from tests.pipeline.conftest import DEMO


def correlated_inputs(columns: int, seed: int) -> torch.Tensor:
    """Inputs (rows, columns) as layers have them: few directions carry most of the energy."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(columns // 8, columns, generator=generator)
    strength = torch.randn(2000, columns // 8, generator=generator)
    return strength @ directions + 0.1 * torch.randn(2000, columns, generator=generator)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("columns", "group_size"), [(16, 16), (96, 32), (160, 32), (256, 64), (512, 256)]
)
def test_products_come_out_closer_than_by_rounding_to_nearest(
    bits: int, columns: int, group_size: int
) -> None:
    """Sizes below, across and above the columns that are worked on at once (128)."""
    packing = Packing(bits, group_size)
    inputs = correlated_inputs(columns, seed=columns)
    matrix = np.random.default_rng(columns).normal(size=(40, columns)).astype(np.float32)

    def error(words: Any, scales: Any) -> float:
        assert (words.shape, scales.shape) == packing.shapes(*matrix.shape)
        assert (words.dtype, scales.dtype) == (np.int32, np.float16)
        off = torch.from_numpy(dequantise(words, scales, bits) - matrix)
        return float((inputs @ off.T).square().mean())

    chosen = error(*compensated("m", matrix, inputs.T @ inputs, packing))
    assert chosen < 0.6 * error(*round_to_nearest("m", matrix, packing))


@given(st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_inputs_that_know_nothing_of_each_other_leave_nothing_to_make_up_for(
    bits: int, seed: int
) -> None:
    packing = Packing(bits, 16)
    matrix = np.random.default_rng(seed).normal(size=(3, 48)).astype(np.float32)
    words, scales = compensated("m", matrix, torch.eye(48), packing)
    nearest = nearest_codes(matrix, np.repeat(scales, 16, axis=1), packing)
    np.testing.assert_array_equal(unpack(words, bits), nearest)


def test_a_matrix_that_the_text_never_uses_is_packed_all_the_same() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    words, scales = compensated("m", matrix, torch.zeros(32, 32), Packing(8, 32))
    assert np.abs(dequantise(words, scales, 8) - matrix).max() < 0.02


def test_zeros_stay_zeros() -> None:
    words, scales = compensated("m", np.zeros((4, 32), np.float32), torch.eye(32), Packing(4, 16))
    assert not dequantise(words, scales, 4).any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_what_no_scale_can_stand_for_is_refused_by_name(value: float) -> None:
    matrix = np.ones((4, 32), np.float32)
    matrix[2, 20] = value
    with pytest.raises(CheckpointCorruptError, match=r"layers\.3\.x_proj\.weight"):
        compensated("layers.3.x_proj.weight", matrix, torch.eye(32), Packing(4, 16))


def test_a_text_too_short_to_learn_from_is_refused() -> None:
    tokens = [1] * (SEQUENCE_TOKENS - 1)
    with pytest.raises(UsageError, match=f"{SEQUENCE_TOKENS - 1} tokens"):
        Calibrator(PUBLISHED["mamba-130m"], tokens, max_tokens=10**6)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int4, chosen by a piece of its calibration text."""
    output = tmp_path_factory.mktemp("calibrated") / "bundle"
    choice = QuantisationChoice(
        calibration_text=DEMO / "calibration.txt", calibration_tokens=4 * SEQUENCE_TOKENS + 1
    )
    convert(DEMO, output, "int4", choice=choice)
    return output


def test_the_bundle_names_its_text(calibrated: Path) -> None:
    quantisation = read_bundle(calibrated).quantisation
    assert quantisation is not None
    assert quantisation.method == "gptq"
    assert quantisation.calibration is not None
    assert quantisation.calibration.source == "calibration.txt"
    assert quantisation.calibration.tokens == 4 * SEQUENCE_TOKENS


def test_calibrated_int4_predicts_unseen_text_more_like_fp16(
    calibrated: Path, tmp_path: Path
) -> None:
    """What calibration is for: held-out text, and the divergence from the unpacked model."""
    convert(DEMO, tmp_path / "fp16", "fp16")
    convert(DEMO, tmp_path / "rtn", "int4")
    text = (DEMO / "heldout.txt").read_text()[:12_000]
    ids = Tokenizer(DEMO).encode(text)[:2048]
    ids_together = np.array(ids).reshape(8, 256)

    def logprobs(bundle: Path) -> Floats:
        session = open_torch_session(bundle, read_bundle(bundle).architecture, threads=1)
        logits, _ = session.prefill(ids_together, all_logits=True)
        return torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()

    exact = logprobs(tmp_path / "fp16")

    def divergence(bundle: Path) -> float:
        return float((np.exp(exact) * (exact - logprobs(bundle))).sum(axis=-1).mean())

    assert divergence(calibrated) < 0.7 * divergence(tmp_path / "rtn")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_text_without_anything_to_choose_is_refused(tmp_path: Path, precision: Any) -> None:
    choice = QuantisationChoice(calibration_text=DEMO / "calibration.txt")
    with pytest.raises(UsageError, match=precision):
        convert(DEMO, tmp_path / "bundle", precision, choice=choice)


def test_a_checkpoint_without_tokenizer_cannot_read_a_text(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    choice = QuantisationChoice(calibration_text=DEMO / "calibration.txt")
    with pytest.raises(UsageError, match="no tokenizer"):
        convert(checkpoint.path, tmp_path / "bundle", "int4", choice=choice)


@pytest.mark.parametrize("content", [None, b"\xff\xfe not UTF-8"])
def test_a_text_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        convert(DEMO, tmp_path / "bundle", "int4", choice=QuantisationChoice(calibration_text=path))
