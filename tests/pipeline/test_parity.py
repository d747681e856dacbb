# SPDX-License-Identifier: MIT
"""One model, many ways to run it: all must agree with transformers, and with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.architecture import MambaArchitecture
from pipeline.bundle import convert
from pipeline.cli import main
from pipeline.engine import build, load_engine
from pipeline.manifest import read_bundle
from pipeline.onnx_export import export_graphs
from pipeline.onnxruntime_session import OnnxRuntimeSession
from pipeline.quantize import QuantisationChoice
from pipeline.scoring import score
from pipeline.session import Floats, Session, State
from pipeline.torch_session import open_torch_session
from pipeline.weights import WEIGHT_FILE, read_places
from tests.checkpoints import RandomCheckpoint, hugging_face

# Largest difference of log-probabilities between two float32 implementations.
TOLERANCE = 1e-4
TEXT = [int(i) for i in np.random.default_rng(3).integers(0, 101, 40)]


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def session(request: pytest.FixtureRequest, engine: Path) -> Session:
    """Each backend on the same weights."""
    loaded = load_engine(engine, threads=1)
    if request.param == "onnxruntime":
        return loaded.session
    return open_torch_session(loaded.bundle, loaded.manifest.architecture)


def test_score_agrees_with_torch_and_transformers_for_every_format(
    any_checkpoint: RandomCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, engine = tmp_path / "bundle", tmp_path / "engine"
    assert main(["convert", str(any_checkpoint.path), "--output", str(bundle)]) == 0
    assert main(["build", str(bundle), "--output", str(engine)]) == 0
    capsys.readouterr()
    ids = ",".join(str(token_id) for token_id in TEXT)
    assert main(["score", str(engine), "--token-ids", ids, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)

    torch_session = open_torch_session(bundle, read_bundle(bundle).architecture)
    by_torch = score(torch_session, TEXT)
    by_transformers = any_checkpoint.logprobs(TEXT).numpy()

    assert printed["tokens"] == TEXT
    assert printed["logprobs"][0] is None
    assert printed["logprobs"][1:] == pytest.approx(by_torch.logprobs[1:], abs=TOLERANCE)
    assert by_torch.logprobs[1:] == pytest.approx(by_transformers, abs=TOLERANCE)
    assert printed["perplexity"] == pytest.approx(np.exp(-by_transformers.mean()), rel=TOLERANCE)


def test_half_precision_bundle_scores_close_to_full_precision(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    convert(checkpoint.path, tmp_path / "bundle", precision="fp16")
    build(tmp_path / "bundle", tmp_path / "engine")
    logprobs = score(load_engine(tmp_path / "engine", threads=1).session, TEXT).logprobs
    assert logprobs[1:] == pytest.approx(checkpoint.logprobs(TEXT).numpy(), abs=2e-2)


@pytest.fixture(scope="module", params=["int8", "int4", "int4 everywhere"])
def packed_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RandomCheckpoint]:
    """A packed bundle, and the checkpoint it is from; int4 with a head of its own."""
    precision: Any = str(request.param).split()[0]
    ends: Any = "int4" if "everywhere" in request.param else "int8"
    folder = tmp_path_factory.mktemp("packed")
    checkpoint = hugging_face(folder / "checkpoint", tied=precision == "int8", time_step_rank=32)
    choice = QuantisationChoice(embedding_precision=ends, head_precision=ends)
    convert(checkpoint.path, folder / "bundle", precision, choice=choice)
    return folder / "bundle", checkpoint


def packed_session(bundle: Path, folder: Path, **export: Any) -> OnnxRuntimeSession:
    """The bundle on ONNX Runtime, with its graphs exported in another way than by `build`."""
    architecture = read_bundle(bundle).architecture
    export_graphs(folder, architecture, read_places(bundle / WEIGHT_FILE), **export)
    return OnnxRuntimeSession(folder, bundle, architecture, 8, 16, 1, pack_for_prefill=True)


# Operators of ours, ONNX Runtime's own with float32 activations (which are to be exact), graphs
# as they lie in the bundle (float16 activations), and ONNX Runtime's own with 8-bit activations
# (the weights of these checkpoints are far larger than a trained model's, and so is the noise).
@pytest.mark.parametrize(
    ("export", "tolerance"),
    [
        ({"activation": "float32"}, TOLERANCE),
        ({"activation": "float32", "accuracy_level": 0}, TOLERANCE),
        ({}, 3e-2),
        ({"activation": "float32", "accuracy_level": 4}, 2e-1),
    ],
)
def test_packed_bundle_scores_like_torch_with_the_same_packed_weights(
    packed_bundle: tuple[Path, RandomCheckpoint],
    tmp_path: Path,
    export: dict[str, Any],
    tolerance: float,
) -> None:
    bundle, _ = packed_bundle
    by_torch = open_torch_session(bundle, read_bundle(bundle).architecture)
    session = packed_session(bundle, tmp_path, **export)
    expected = score(by_torch, TEXT).logprobs[1:]
    assert score(session, TEXT).logprobs[1:] == pytest.approx(expected, abs=tolerance)

    ids = np.array([TEXT[:12], TEXT[12:24]])
    whole, _ = by_torch.prefill(ids, all_logits=True)
    _, state = session.prefill(ids[:, :4])
    for position in range(4, 12):
        logits, state = session.step(ids[:, position], state)
        np.testing.assert_allclose(logits, whole[:, position], atol=10 * tolerance)


def test_packed_bundle_scores_close_to_the_checkpoint(
    packed_bundle: tuple[Path, RandomCheckpoint], tmp_path: Path
) -> None:
    """Built as a user builds it. Random weights feel rounding far more than trained ones."""
    bundle, checkpoint = packed_bundle
    precision = read_bundle(bundle).precision
    build(bundle, tmp_path / "engine")
    logprobs = score(load_engine(tmp_path / "engine", threads=1).session, TEXT).logprobs
    difference = np.abs(np.array(logprobs[1:]) - checkpoint.logprobs(TEXT).numpy())
    assert difference.mean() < {"int8": 0.15, "int4": 1.2}[precision]


@pytest.mark.parametrize("split", range(1, 12))
def test_prefill_in_parts_and_single_steps_equal_one_prefill(session: Session, split: int) -> None:
    ids = np.array([TEXT[:12]])
    whole, whole_state = session.prefill(ids, all_logits=True)

    first, state = session.prefill(ids[:, :split])
    np.testing.assert_allclose(first, whole[:, split - 1], atol=TOLERANCE)
    rest, rest_state = session.prefill(ids[:, split:], state)
    np.testing.assert_allclose(rest, whole[:, -1], atol=TOLERANCE)
    np.testing.assert_allclose(rest_state.ssm, whole_state.ssm, atol=TOLERANCE)
    for position in range(split, 12):
        logits, state = session.step(ids[:, position], state)
        np.testing.assert_allclose(logits, whole[:, position], atol=TOLERANCE)
    np.testing.assert_allclose(state.ssm, whole_state.ssm, atol=TOLERANCE)
    np.testing.assert_allclose(state.conv, whole_state.conv, atol=TOLERANCE)


def test_a_batch_equals_its_texts_alone(session: Session) -> None:
    ids = np.array(TEXT[:40]).reshape(4, 10)[:, :9]  # rows that do not adjoin in memory
    together, state = session.prefill(ids, all_logits=True)
    stepped, _ = session.step(ids[:, 0], state.copy())
    for row in range(4):
        alone, own_state = session.prefill(ids[row : row + 1], all_logits=True)
        np.testing.assert_allclose(together[row], alone[0], atol=TOLERANCE)
        own_step, _ = session.step(ids[row, :1], own_state)
        np.testing.assert_allclose(stepped[row], own_step[0], atol=TOLERANCE)


def test_prompts_longer_than_one_prefill_call_are_read_in_pieces(
    bundle: Path, tmp_path: Path
) -> None:
    build(bundle, tmp_path / "engine", max_length=7)
    in_pieces = load_engine(tmp_path / "engine", threads=1).session
    build(bundle, tmp_path / "whole", max_length=64)
    whole = load_engine(tmp_path / "whole", threads=1).session
    ids = np.array([TEXT])
    for all_logits in (False, True):
        expected, expected_state = whole.prefill(ids, all_logits=all_logits)
        found, state = in_pieces.prefill(ids, all_logits=all_logits)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        np.testing.assert_allclose(state.ssm, expected_state.ssm, atol=TOLERANCE)


def test_a_saved_state_is_not_changed_by_going_on(session: Session) -> None:
    _, state = session.prefill(np.array([TEXT[:5]]))
    saved = state.copy()
    once, _ = session.step(np.array([7]), state)
    _, later = session.step(np.array([9]), saved.copy())
    session.step(np.array([1]), later)
    again, _ = session.step(np.array([7]), saved)
    np.testing.assert_array_equal(once, again)


def test_two_texts_that_go_on_by_turns_do_not_disturb_each_other(session: Session) -> None:
    def alone(start: int) -> list[Floats]:
        _, state = session.prefill(np.array([[start, 2]]))
        results = []
        for token in (3, 4, 5):
            logits, state = session.step(np.array([token]), state)
            results.append(logits)
        return results

    expected = [alone(10), alone(20)]
    states: list[State] = [session.prefill(np.array([[start, 2]]))[1] for start in (10, 20)]
    for position, token in enumerate((3, 4, 5)):
        for text in (0, 1):
            logits, states[text] = session.step(np.array([token]), states[text])
            np.testing.assert_array_equal(logits, expected[text][position])


def test_falcon_norms_change_the_result(tmp_path: Path) -> None:
    """Guards the falcon case above: without the norms the same weights give other numbers."""
    falcon = hugging_face(tmp_path / "falcon", falcon=True, tied=False)
    convert(falcon.path, tmp_path / "bundle")
    manifest = read_bundle(tmp_path / "bundle")
    plain = MambaArchitecture.from_dict({**manifest.model, "mixer_norm_eps": None})
    with torch.no_grad():
        without = score(open_torch_session(tmp_path / "bundle", plain), TEXT).logprobs
    difference = np.abs(np.array(without[1:]) - falcon.logprobs(TEXT).numpy())
    assert difference.max() > 100 * TOLERANCE
