# SPDX-License-Identifier: MIT
"""TensorRT's graphs, run by onnx's evaluator, against the torch reference on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pipeline.architecture import MambaArchitecture
from pipeline.bundle import convert
from pipeline.cuda_weights import plan_image
from pipeline.manifest import PREFILL_GRAPH, STEP_GRAPH, read_bundle
from pipeline.quantize import QuantisationChoice
from pipeline.session import Session, State
from pipeline.tensorrt_graphs import CONTRACT_VERSION, DOMAIN, prefill_graph, step_graph
from pipeline.torch_session import open_torch_session
from pipeline.weights import WEIGHT_FILE, TensorPlace, read_places, read_weights
from tests.checkpoints import hugging_face
from tests.pipeline.engine_form import OPERATORS

ROOT = Path(__file__).parents[2]
# Activations are float16 in one and float32 in the other.
TOLERANCE = 5e-3
MODELS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "fp16 falcon": {"precision": "fp16", "falcon": True, "tied": False},
    "fp16 without a selection kernel": {"precision": "fp16", "time_step_rank": 24},
    "int8": {"precision": "int8"},
    "int4 everywhere": {"precision": "int4", "ends": "int4", "tied": False},
}
Array = npt.NDArray[Any]


class Converted(NamedTuple):
    """A bundle, its weights as they will lie on the GPU, and a session to compare with."""

    bundle: Path
    architecture: MambaArchitecture
    places: dict[str, TensorPlace]
    weights: dict[str, Array]
    session: Session


@pytest.fixture(scope="module", params=MODELS)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    folder = tmp_path_factory.mktemp("model")
    options = dict(MODELS[str(request.param)])
    precision, ends = options.pop("precision"), options.pop("ends", "int8")
    checkpoint = hugging_face(
        folder / "checkpoint", hidden_size=64, num_hidden_layers=3, vocab_size=96,
        embedding_scale=0.1, **{"time_step_rank": 32, **options},
    )  # fmt: skip
    bundle = folder / "bundle"
    choice = QuantisationChoice(embedding_precision=ends, head_precision=ends)
    convert(checkpoint.path, bundle, precision, choice=choice)
    weights = {
        name: np.ascontiguousarray(values.T if name.endswith(".scales") else values)
        for name, values in read_weights(bundle / WEIGHT_FILE)
    }
    architecture = read_bundle(bundle).architecture
    places = read_places(bundle / WEIGHT_FILE)
    return Converted(
        bundle, architecture, places, weights, open_torch_session(bundle, architecture)
    )


def run_prefill(c: Converted, ids: Array, positions: list[int], state: State) -> dict[str, Array]:
    graph = prefill_graph(c.architecture, c.places)
    inputs: dict[str, Array] = {
        "token_ids": ids.astype(np.int32),
        "logit_positions": np.array(positions, np.int32),
        **c.weights,
    }
    for layer in range(c.architecture.n_layer):
        inputs[f"conv_state_in.{layer}"] = state.conv[layer].astype(np.float16)
        inputs[f"ssm_state_in.{layer}"] = state.ssm[layer]
    onnx.checker.check_model(graph)
    evaluator = ReferenceEvaluator(graph, new_ops=OPERATORS)
    wanted = {value.name for value in graph.graph.input}
    outputs = evaluator.run(None, {k: v for k, v in inputs.items() if k in wanted})
    return dict(zip(evaluator.output_names, outputs, strict=True))


def state_of(c: Converted, outputs: dict[str, Array]) -> State:
    layers = range(c.architecture.n_layer)
    conv = np.stack([outputs[f"conv_state_out.{layer}"] for layer in layers])
    ssm = np.stack([outputs[f"ssm_state_out.{layer}"] for layer in layers])
    return State(conv.astype(np.float32), ssm.astype(np.float32))


def texts(c: Converted, batch: int, length: int) -> Array:
    ids = np.random.default_rng(3).integers(0, c.architecture.vocab_size, (batch, length))
    return ids.astype(np.int64)


def assert_close(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * max(1.0, np.abs(wanted).max()))


def test_a_stretch_gives_the_logits_and_the_state_of_the_model(converted: Converted) -> None:
    ids = texts(converted, 2, 7)
    wanted, after = converted.session.prefill(ids, all_logits=True)
    zeros = State.zeros(converted.architecture, 2)
    outputs = run_prefill(converted, ids, list(range(7)), zeros)
    assert_close(outputs["logits"].reshape(wanted.shape), wanted)
    found = state_of(converted, outputs)
    assert_close(found.conv, after.conv)
    assert_close(found.ssm, after.ssm)


def test_a_stretch_goes_on_from_a_state_and_gives_the_logits_asked_for(
    converted: Converted,
) -> None:
    ids = texts(converted, 2, 7)
    wanted, _ = converted.session.prefill(ids)
    zeros = State.zeros(converted.architecture, 2)
    before = state_of(converted, run_prefill(converted, ids[:, :4], [3], zeros))
    assert_close(run_prefill(converted, ids[:, 4:], [2], before)["logits"], wanted)


def test_the_step_reads_every_weight_from_its_place_in_the_image(converted: Converted) -> None:
    c = converted
    image = plan_image(c.places, c.architecture)
    filled = np.zeros(image.size, np.uint8)
    for name, values in c.weights.items():
        flat = values.reshape(-1).view(np.uint8)
        filled[image.offsets[name] : image.offsets[name] + flat.size] = flat
    ids = texts(c, 2, 6)
    _, state = c.session.prefill(ids[:, :5])
    wanted, after = c.session.step(ids[:, 5], state.copy())
    graph = step_graph(c.architecture, c.places, image)
    onnx.checker.check_model(graph)
    evaluator = ReferenceEvaluator(graph, new_ops=OPERATORS)
    logits, best, conv, ssm = evaluator.run(
        None,
        {
            "token_ids": ids[:, 5].astype(np.int32),
            "weights": filled.view(np.int32),
            "conv_state_in": state.conv,
            "ssm_state_in": state.ssm,
        },
    )
    assert_close(logits, wanted)
    assert best.tolist() == logits.argmax(axis=-1).tolist()
    assert_close(conv, after.conv)
    assert_close(ssm, after.ssm)


def contract(form: str) -> dict[str, Any]:
    """The operators of plugin/ops.json that have a form, by name."""
    document = json.loads((ROOT / "plugin" / "ops.json").read_text())
    return {op["name"]: op for op in document["ops"] if form in op["forms"]}


def assert_within_contract(node: onnx.NodeProto, op: dict[str, Any], common: set[str]) -> None:
    required = [tensor for tensor in op["inputs"] if not tensor.get("optional")]
    assert len(required) <= len(node.input), node.name
    if node.op_type != "MambaStep" or common:  # scales follow the inputs of the bundle's step
        assert len(node.input) <= len(op["inputs"])
    assert len(node.output) <= len(op["outputs"])
    allowed = {attribute["name"]: attribute for attribute in op["attributes"]}
    given = {attribute.name: attribute for attribute in node.attribute}
    assert given.keys() - common <= allowed.keys()
    needed = {
        name
        for name, attribute in allowed.items()
        if "default" not in attribute and not attribute.get("optional")
    }
    assert needed <= given.keys()
    kinds = {"int": "INT", "ints": "INTS", "float": "FLOAT"}
    for name, attribute in given.items():
        if name in allowed:
            found = onnx.AttributeProto.AttributeType.Name(attribute.type)
            assert found == kinds[allowed[name]["type"]], name


def test_engine_graphs_keep_to_the_contract(converted: Converted) -> None:
    c = converted
    document = json.loads((ROOT / "plugin" / "ops.json").read_text())
    assert (document["contract_version"], document["domain"]) == (CONTRACT_VERSION, DOMAIN)
    ops = contract("engine")
    image = plan_image(c.places, c.architecture)
    for graph in (
        prefill_graph(c.architecture, c.places),
        step_graph(c.architecture, c.places, image),
    ):
        ours = [node for node in graph.graph.node if node.domain == DOMAIN]
        assert ours
        for node in ours:
            assert_within_contract(node, ops[node.op_type], {"contract_version"})


def test_bundle_graphs_keep_to_the_contract(converted: Converted) -> None:
    ops = contract("bundle")
    for name in (PREFILL_GRAPH, STEP_GRAPH):
        graph = onnx.load(converted.bundle / name, load_external_data=False).graph
        for node in graph.node:
            if node.domain == DOMAIN:
                assert_within_contract(node, ops[node.op_type], set())
