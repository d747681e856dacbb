# SPDX-License-Identifier: MIT
"""The graph that TensorRT is timed with beside the plugin is the bundle's step, in other words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.bundle import convert
from pipeline.manifest import STEP_GRAPH
from pipeline.plain_layers import plain_step_graph
from pipeline.weights import WEIGHT_FILE, read_weights
from tests.checkpoints import hugging_face

# Not known to TensorRT 8.6.
UNKNOWN = {"CastLike", "Constant"}


@pytest.mark.parametrize("falcon", [False, True])
def test_plain_layers_give_what_the_bundle_gives(falcon: bool, tmp_path: Path) -> None:
    checkpoint = hugging_face(
        tmp_path / "checkpoint", hidden_size=64, num_hidden_layers=2, vocab_size=96, falcon=falcon
    )
    bundle = tmp_path / "bundle"
    convert(checkpoint.path, bundle, precision="fp16")
    plain = plain_step_graph(bundle)
    assert not plain.functions
    assert not {node.domain for node in plain.graph.node} - {""}
    assert not {node.op_type for node in plain.graph.node} & UNKNOWN

    random = np.random.default_rng(0)
    own = onnxruntime.InferenceSession(bundle / STEP_GRAPH)
    other = onnxruntime.InferenceSession(plain.SerializeToString())
    weights = dict(read_weights(bundle / WEIGHT_FILE))
    feed, fed = {}, {}
    for value in plain.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name in weights:
            fed[value.name] = weights[value.name]
        elif dtype == np.float32:
            feed[value.name] = random.standard_normal(shape, np.float32)
        else:
            feed[value.name] = random.integers(0, 96, shape, dtype)
    assert feed["token_ids"].dtype == np.int32, "TensorRT 8.6 has no other"
    names = [value.name for value in plain.graph.output]
    wanted_all = own.run(names, feed | {"token_ids": feed["token_ids"].astype(np.int64)})
    for name, found, wanted in zip(names, other.run(names, feed | fed), wanted_all, strict=True):
        assert found.dtype == wanted.dtype, name
        # One runs with constant weights, which ONNX Runtime multiplies in another order.
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3, err_msg=name)
