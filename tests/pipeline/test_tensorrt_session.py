# SPDX-License-Identifier: MIT
"""What a TensorRT engine is built for, and what is said where it cannot be built."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.architecture import PUBLISHED
from pipeline.bundle import convert
from pipeline.cli import main
from pipeline.cuda_weights import plan_image
from pipeline.manifest import read_engine
from pipeline.quantize import QuantisationChoice, choose_packings
from pipeline.stored_tensors import plan_tensors
from pipeline.weights import plan_places
from tests.checkpoints import RandomCheckpoint

MODEL = "mamba-130m"


@pytest.fixture
def session_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`tensorrt_session` on a machine that may lack TensorRT: only its sizes are looked at."""
    if importlib.util.find_spec("tensorrt") is None:
        stand_in = SimpleNamespace(__version__="0", ILogger=object, IProfiler=object)
        monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
        for name in ("tensorrt_runtime", "tensorrt_session"):
            monkeypatch.delitem(sys.modules, f"pipeline.{name}", raising=False)
    module = importlib.import_module("pipeline.tensorrt_session")
    yield module
    for name in ("tensorrt_runtime", "tensorrt_session"):
        sys.modules.pop(f"pipeline.{name}", None)


def dynamic_inputs(graph: Any) -> dict[str, int]:
    """Ranks of the inputs whose shapes change, by name."""
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in graph.input
        if any(dim.dim_param for dim in value.type.tensor_type.shape.dim)
    }


@pytest.mark.parametrize(("max_batch", "max_length"), [(1, 2048), (8, 2048), (3, 5), (64, 1)])
def test_profiles_name_every_input_whose_shape_changes(
    session_module: Any, max_batch: int, max_length: int
) -> None:
    from pipeline.tensorrt_graphs import prefill_graph, step_graph

    a = PUBLISHED[MODEL]
    packed = choose_packings(a, "int8", QuantisationChoice())
    places = plan_places(plan_tensors(a, "int8", packed))
    limits = session_module.stretch_limits(max_batch, max_length)
    profiles = session_module.prefill_profiles(a, limits)
    step = session_module.step_profile(a, max_batch)
    expected = [(prefill_graph(a, places), profile) for profile in profiles]
    expected.append((step_graph(a, places, plan_image(places, a)), step))
    for graph, profile in expected:
        ranks = dynamic_inputs(graph.graph)
        assert profile.keys() == ranks.keys()
        for name, shapes in profile.items():
            assert {len(shape) for shape in shapes} == {ranks[name]}
            for smallest, usual, largest in zip(*shapes, strict=True):
                assert 1 <= smallest <= usual <= largest


@pytest.mark.parametrize(("max_batch", "max_length"), [(1, 2048), (8, 2048), (8, 20)])
def test_no_profile_reads_more_tokens_than_were_asked_for(
    session_module: Any, max_batch: int, max_length: int
) -> None:
    limits = session_module.stretch_limits(max_batch, max_length)
    assert limits[0].length == max_length
    for limit in limits:
        assert limit.batch * limit.length <= max_length
        assert limit.batch * limit.logits <= 128
    assert max(limit.batch for limit in limits) == min(max_batch, 8)


def test_without_tensorrt_the_backend_is_refused_with_what_to_do(
    checkpoint: RandomCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    bundle, engine = tmp_path / "bundle", tmp_path / "engine"
    convert(checkpoint.path, bundle, "fp16")
    words = ["build", str(bundle), "--output", str(engine), "--backend", "tensorrt"]
    assert main(words) == 71
    assert "apt install python3-libnvinfer" in capsys.readouterr().err
    assert not engine.exists()
    assert main([*words, "--fall-back"]) == 0
    manifest = read_engine(engine)
    assert manifest.backend != "tensorrt"
    assert "not tensorrt: the package tensorrt is not installed" in manifest.backend_reason
