# SPDX-License-Identifier: MIT
"""The graphs as other tools see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pipeline.engine import load_engine
from pipeline.manifest import PREFILL_GRAPH, STEP_GRAPH
from pipeline.s6_functions import DOMAIN
from pipeline.session import State
from pipeline.weights import WEIGHT_FILE, read_places


@pytest.mark.parametrize("name", [PREFILL_GRAPH, STEP_GRAPH])
def test_graphs_hold_no_weights_and_point_into_the_one_weight_file(bundle: Path, name: str) -> None:
    model = onnx.load(bundle / name, load_external_data=False)
    places = read_places(bundle / WEIGHT_FILE)
    assert (bundle / name).stat().st_size < 60_000
    assert {tensor.name for tensor in model.graph.initializer} == set(places)
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = places[tensor.name]
        assert entries == {
            "location": WEIGHT_FILE,
            "offset": str(place.offset),
            "length": str(place.length),
        }


def test_prefill_is_fine_grained_and_step_is_one_fused_node_a_block(bundle: Path) -> None:
    def s6_nodes(name: str) -> list[str]:
        graph = onnx.load(bundle / name, load_external_data=False).graph
        return [node.op_type for node in graph.node if node.domain == DOMAIN]

    assert s6_nodes(PREFILL_GRAPH) == ["CausalConv1d", "SelectiveScan"] * 3
    assert s6_nodes(STEP_GRAPH) == ["MambaStep"] * 3


@pytest.mark.parametrize("name", [PREFILL_GRAPH, STEP_GRAPH])
def test_every_s6_node_carries_a_body_of_standard_operators(bundle: Path, name: str) -> None:
    model = onnx.load(bundle / name, load_external_data=False)
    bodies = {function.name: function for function in model.functions}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            assert len(node.input) == len(bodies[node.op_type].input)
            assert all(inner.domain == "" for inner in bodies[node.op_type].node)


def test_another_onnx_implementation_computes_the_same(bundle: Path, engine: Path) -> None:
    """onnx's own evaluator, written in numpy, is as far from ONNX Runtime as can be."""
    session = load_engine(engine, threads=1).session
    ids = np.array([[3, 1, 4, 1, 5]])
    state = State.zeros(session.architecture, 1)
    expected, expected_state = session.prefill(ids, all_logits=True)

    def inputs(token_ids: np.ndarray, before: State) -> dict[str, np.ndarray]:
        values = {"token_ids": token_ids}
        for layer in range(session.architecture.n_layer):
            values[f"conv_state_in.{layer}"] = before.conv[layer]
            values[f"ssm_state_in.{layer}"] = before.ssm[layer]
        return values

    prefill = ReferenceEvaluator(onnx.load(bundle / PREFILL_GRAPH))
    found = dict(
        zip(
            prefill.output_names,
            prefill.run(None, {**inputs(ids, state), "logit_positions": np.arange(5)}),
            strict=True,
        )
    )
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(found["ssm_state_out.2"], expected_state.ssm[2], atol=1e-4)

    step = ReferenceEvaluator(onnx.load(bundle / STEP_GRAPH))
    stepped = step.run(None, inputs(np.array([9]), expected_state))
    logits, _ = session.step(np.array([9]), expected_state)
    np.testing.assert_allclose(
        dict(zip(step.output_names, stepped, strict=True))["logits"], logits, atol=1e-4
    )
