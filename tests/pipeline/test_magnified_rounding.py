# SPDX-License-Identifier: MIT
"""A model that magnifies the rounding of activations: what the build says, and what helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import onnxruntime_backend
from pipeline.bundle import convert
from pipeline.cli import main
from pipeline.engine import load_engine
from pipeline.errors import BackendError
from pipeline.manifest import read_bundle, read_engine
from pipeline.model import Mamba
from pipeline.torch_session import open_torch_session

IDS = np.array([[(7 * i + 1) % 101 for i in range(12)]])
NOISE = 1e-3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8, of transformers' initial weights where they magnify: 16 blocks, wide matrices.

    For 768 channels transformers' own 0.1 is as much; here 256 need 0.5.
    """
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path_factory.mktemp("magnifying")
    torch.manual_seed(0)
    config = MambaConfig(
        hidden_size=256, num_hidden_layers=16, vocab_size=101, initializer_range=0.5
    )
    MambaForCausalLM(config).save_pretrained(folder / "checkpoint")
    convert(folder / "checkpoint", folder / "bundle", "int8")
    return folder / "bundle"


def magnification(model: Mamba) -> float:
    """Relative change of the logits for a relative change of what the first block computes from."""
    weight, ids = model.eval().get_parameter("layers.0.norm.weight"), torch.from_numpy(IDS)
    noise = torch.randn(256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, _ = model(ids)
        weight.mul_(1 + NOISE * noise)
        after, _ = model(ids)
    return float((after - before).norm() / before.norm() / NOISE)


def test_the_model_magnifies_and_one_at_the_start_of_its_training_does_not(bundle: Path) -> None:
    architecture = read_bundle(bundle).architecture
    torch.manual_seed(0)
    assert magnification(Mamba(architecture)) < 5
    assert magnification(open_torch_session(bundle, architecture).model) > 50


def test_the_build_says_that_rounding_is_magnified_and_what_to_do(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # How often prefill and steps round differently is up to the processor's instructions; here
    # they differ by 18 % of the largest logit.
    monkeypatch.setattr(onnxruntime_backend, "_TOLERANCE_INT8", -1.0)
    command = ["build", str(bundle), "--output", str(tmp_path / "engine")]
    command += ["--backend", "onnxruntime"]
    assert main(command) == BackendError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert "magnifies what rounding activations to 8 bits does" in said
    assert "build with --activations float" in said
    assert main([*command, "--activations", "float"]) == 0
    assert read_engine(tmp_path / "engine").activations == "float"


def test_with_float_activations_the_engine_computes_the_model(bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    command = ["build", str(bundle), "--output", str(engine), "--backend", "onnxruntime"]
    assert main([*command, "--activations", "float"]) == 0
    found, _ = load_engine(engine, threads=1).session.prefill(IDS)
    reference = open_torch_session(bundle, read_bundle(bundle).architecture)
    wanted, _ = reference.prefill(IDS)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
