# SPDX-License-Identifier: MIT
"""A bundle's step graph in layers that every TensorRT knows, none of them ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, numpy_helper

from pipeline.manifest import STEP_GRAPH
from pipeline.weights import WEIGHT_FILE, read_places


def plain_step_graph(bundle: Path) -> onnx.ModelProto:
    """A bundle's step in standard operators, batch 1, its weights as inputs."""
    model = onnx.load(bundle / STEP_GRAPH, load_external_data=False)
    model = onnx.inliner.inline_local_functions(model)
    graph, places = model.graph, read_places(bundle / WEIGHT_FILE)
    for tensor in graph.initializer:
        place = places[tensor.name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(place.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, kind, place.shape))
    del graph.initializer[:]
    # TensorRT 8.6 misreads constants of integers that are not tensors.
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name != "value":
            kind = np.float32 if "float" in attribute.name else np.int64
            value = numpy_helper.from_array(np.array(value, dtype=kind))
        value.name = node.output[0]
        graph.initializer.append(value)
        graph.node.remove(node)
    _name_types(model)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1
    # TensorRT 8.6 has no int64, later ones do: what both read alike.
    token_ids = next(value for value in graph.input if value.name == "token_ids")
    token_ids.type.tensor_type.elem_type = TensorProto.INT32
    return model


def _name_types(model: onnx.ModelProto) -> None:
    """Names the type of each CastLike, which TensorRT 8.6 does not know: Cast does the same."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in model.graph.node:
        if node.op_type == "CastLike":
            kind = types[node.input.pop()]
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", kind))
