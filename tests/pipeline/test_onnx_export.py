# SPDX-License-Identifier: MIT
"""The graphs as other tools see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pipeline.bundle import convert
from pipeline.engine import load_engine
from pipeline.manifest import PREFILL_GRAPH, STEP_GRAPH, read_bundle
from pipeline.onnx_export import export_graphs
from pipeline.s6_functions import DOMAIN
from pipeline.session import State
from pipeline.torch_session import open_torch_session
from pipeline.weights import WEIGHT_FILE, read_places
from tests.checkpoints import hugging_face


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


@pytest.fixture(scope="module", params=["int8", "int4"])
def packed_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each packed precision, all its matrices packed."""
    folder = tmp_path_factory.mktemp("packed")
    checkpoint = hugging_face(folder / "checkpoint", time_step_rank=16)
    precision: Any = request.param
    convert(checkpoint.path, folder / "bundle", precision)
    return folder / "bundle"


def test_packed_matrices_go_into_our_operators_with_bodies_of_standard_ones(
    packed_bundle: Path,
) -> None:
    for name, expected in (
        (PREFILL_GRAPH, {"QuantEmbedding", "QuantLinear", "CausalConv1d", "SelectiveScan"}),
        (STEP_GRAPH, {"QuantEmbedding", "QuantLinear", "MambaStep"}),
    ):
        model = onnx.load(packed_bundle / name, load_external_data=False)
        bodies = {function.name: function for function in model.functions}
        nodes = [node for node in model.graph.node if node.domain]
        assert {node.op_type for node in nodes} == expected
        assert {node.domain for node in nodes} == {DOMAIN}
        for node in nodes:
            assert len(node.input) == len(bodies[node.op_type].input)
            assert all(inner.domain == "" for inner in bodies[node.op_type].node)
        assert {tensor.name for tensor in model.graph.initializer} == set(
            read_places(packed_bundle / WEIGHT_FILE)
        )


def test_graphs_for_onnxruntime_use_the_bytes_of_the_weight_file(
    packed_bundle: Path, tmp_path: Path
) -> None:
    places = read_places(packed_bundle / WEIGHT_FILE)
    architecture = read_bundle(packed_bundle).architecture
    export_graphs(tmp_path, architecture, places, activation="float32", accuracy_level=4)
    known = {str(place.offset): place.length for place in places.values()}
    for name in (PREFILL_GRAPH, STEP_GRAPH):
        model = onnx.load(tmp_path / name, load_external_data=False)
        assert (tmp_path / name).stat().st_size < 60_000
        blocks = [tensor for tensor in model.graph.initializer if tensor.name.endswith("blocks")]
        assert len(blocks) == 3 * 4 + 1  # the tied head; the embedding is read in words
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert known[entries["offset"]] == int(entries["length"])
            element = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            assert np.prod(tensor.dims) * element == int(entries["length"])


def test_another_onnx_implementation_unpacks_the_same(packed_bundle: Path, tmp_path: Path) -> None:
    places = read_places(packed_bundle / WEIGHT_FILE)
    architecture = read_bundle(packed_bundle).architecture
    export_graphs(tmp_path, architecture, places, activation="float32")
    session = open_torch_session(packed_bundle, architecture)
    state = State.zeros(architecture, 1)
    _, state = session.prefill(np.array([[3, 1, 4]]), state)
    values = {"token_ids": np.array([9])}
    for layer in range(architecture.n_layer):
        values[f"conv_state_in.{layer}"] = state.conv[layer]
        values[f"ssm_state_in.{layer}"] = state.ssm[layer]
    for graphs, tolerance in ((tmp_path, 1e-4), (packed_bundle, 3e-2)):
        step = ReferenceEvaluator(_with_weights(graphs / STEP_GRAPH, packed_bundle))
        logits = dict(zip(step.output_names, step.run(None, values), strict=True))["logits"]
        expected, _ = session.step(np.array([9]), state)
        np.testing.assert_allclose(logits, expected, atol=tolerance)


def _with_weights(graph: Path, folder: Path) -> onnx.ModelProto:
    model = onnx.load(graph, load_external_data=False)
    onnx.load_external_data_for_model(model, str(folder))
    return model
