# SPDX-License-Identifier: MIT
"""The two graphs as TensorRT gets them: our operators in their engine form, weights as inputs.

Beside the graphs of `onnx_export`, which any tool can run, these have no function bodies and no
weights, and nothing is split or copied that an operator of ours can read in place; the operators
are those of `plugin/ops.json`. Products of blocks are left to TensorRT; packed matrices are
unpacked before them.

prefill.onnx, for texts of any length:

    input    token_ids        (b, l) int32
    input    logit_positions  (p,) int32
    in, out  conv_state_in.{i}, conv_state_out.{i}  (b, k-1, d) float16
    in, out  ssm_state_in.{i}, ssm_state_out.{i}    (b, n, d) float32
    input    each weight under its own name; scales (groups, rows)
    output   logits           (b p, vocab) float32

step.onnx, for one token, is one operator:

    input    token_ids        (b,) int32
    input    weights          (words,) int32, the image of `cuda_weights`
    in, out  conv_state_in, conv_state_out  (layer, b, k-1, d) float32
    in, out  ssm_state_in, ssm_state_out    (layer, b, n, d) float32
    output   logits           (b, vocab) float32
    output   next_ids         (b,) int32, the most likely tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline import __version__
from pipeline.architecture import MambaArchitecture
from pipeline.cuda_weights import LINE_BYTES, ImagePlan
from pipeline.quantize import Packing, packings, scales_name
from pipeline.s6_selection import takes_selection
from pipeline.weights import TensorPlace

DOMAIN = "s6"
#: Version of plugin/ops.json that the graphs are written for.
CONTRACT_VERSION = 1

# What TensorRT 8.6 reads.
_OPSET = 17
_IR_VERSION = 8
_FLOAT, _HALF, _INT32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32
_NONE = -1

Dims = list[str | int]


def prefill_graph(
    architecture: MambaArchitecture, places: Mapping[str, TensorPlace], sm_count: int = 0
) -> onnx.ModelProto:
    """The graph that reads stretches of text.

    Args:
        architecture: Sizes of the model.
        places: Types and shapes of the weights as stored.
        sm_count: Multiprocessors the engine may use; 0 leaves it to the device.
    """
    return _Prefill(architecture, places, sm_count).build()


def step_graph(
    architecture: MambaArchitecture,
    places: Mapping[str, TensorPlace],
    image: ImagePlan,
    sm_count: int = 0,
) -> onnx.ModelProto:
    """The graph that reads one token; arguments as those of `prefill_graph`.

    Args:
        architecture: Sizes of the model.
        places: Types and shapes of the weights as stored.
        image: Where each lies on the GPU.
        sm_count: Multiprocessors the engine may use; 0 leaves it to the device.
    """
    a, graph = architecture, _Graph()
    packed = packings(a, places)

    def line(name: str) -> int:
        return image.offsets[name] // LINE_BYTES

    def matrix(name: str) -> list[int]:
        packing = packed.get(name)
        if packing is None:
            return [16, 0, line(name), _NONE]
        return [packing.bits, packing.group_size, line(name), line(scales_name(name))]

    of_block = [f"layers.0.{part}_proj.weight" for part in ("in", "x", "dt", "out")]
    matrices = ["embedding.weight", *of_block, a.head_weight]
    vectors = [
        *(f"layers.0.{name}" for name in ("norm.weight", "conv.weight", "conv.bias")),
        *(f"layers.0.{name}" for name in ("dt_proj.bias", "A", "D")),
        "norm.weight",
    ]
    states: dict[str, Dims] = {
        "conv_state": [a.n_layer, "b", a.d_conv - 1, a.d_inner],
        "ssm_state": [a.n_layer, "b", a.d_state, a.d_inner],
    }
    inputs = [
        graph.input("token_ids", _INT32, ["b"]),
        graph.input("weights", _INT32, [image.size // 4]),
        *(graph.input(f"{kind}_in", _FLOAT, shape) for kind, shape in states.items()),
    ]
    outputs = [
        graph.output("logits", _FLOAT, ["b", a.vocab_size]),
        graph.output("next_ids", _INT32, ["b"]),
        *(graph.output(f"{kind}_out", _FLOAT, shape) for kind, shape in states.items()),
    ]
    attributes = {
        "m": a.d_model,
        "n": a.d_state,
        "r": a.dt_rank,
        "vocab": a.vocab_size,
        "vocab_rows": a.vocab_rows,
        "norm_eps": a.norm_eps,
        "mixer_norm_eps": a.mixer_norm_eps or 0.0,
        "matrices": [number for name in matrices for number in matrix(name)],
        "vectors": [line(name) for name in vectors],
        "layer_lines": image.layer_bytes // LINE_BYTES,
        "sm_count": sm_count,
    }
    graph.ours("MambaStep", *inputs, attributes=attributes, outputs=outputs)
    return graph.model("step")


class _Graph:
    """Collects nodes, inputs, outputs and small constants."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, kind: int, shape: Dims) -> str:
        """Declares an input, once."""
        self._inputs.setdefault(name, helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Dims) -> str:
        """Declares an output, which some node must then produce."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def indices(self, *values: int) -> str:
        """A constant (n,) int64. An initialiser: TensorRT 8.6 misreads `Constant` of integers."""
        name = "indices_" + "_".join(map(str, values))
        self._constants[name] = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
        return name

    def node(
        self,
        operator: str,
        *inputs: str,
        attributes: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        domain: str = "",
        name: str = "",
    ) -> str:
        """Adds an operator.

        Args:
            operator: A standard one, or with `domain` one of ours.
            inputs: Names of values.
            attributes: Those of the node.
            outputs: Names of its outputs; none names the only one here.
            domain: Where the operator is from.
            name: What TensorRT calls the layer; its operator and a number if none is given.

        Returns:
            The name of its first output.
        """
        numbered = f"{operator}_{len(self._nodes)}"
        names = list(outputs) or [numbered]
        node = helper.make_node(operator, inputs, names, name=name or numbered, domain=domain)
        node.attribute.extend(helper.make_attribute(*item) for item in (attributes or {}).items())
        self._nodes.append(node)
        return names[0]

    def ours(
        self,
        operator: str,
        *inputs: str,
        attributes: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
    ) -> str:
        """Adds an operator of plugin/ops.json in its engine form; arguments as those of `node`."""
        with_version = {"contract_version": CONTRACT_VERSION, **(attributes or {})}
        return self.node(operator, *inputs, attributes=with_version, outputs=outputs, domain=DOMAIN)

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes,
            name,
            list(self._inputs.values()),
            self._outputs,
            list(self._constants.values()),
        )
        return helper.make_model(
            graph,
            ir_version=_IR_VERSION,
            producer_name="mamba-orin",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)],
        )


class _Prefill:
    """Puts the graph of a prefill together."""

    def __init__(
        self, architecture: MambaArchitecture, places: Mapping[str, TensorPlace], sm_count: int
    ) -> None:
        self._architecture, self._places, self._sm_count = architecture, places, sm_count
        self._packings = packings(architecture, places)
        self._graph = _Graph()

    def build(self) -> onnx.ModelProto:
        """The finished model."""
        a, g = self._architecture, self._graph
        token_ids = g.input("token_ids", _INT32, ["b", "l"])
        positions = g.input("logit_positions", _INT32, ["p"])
        # (b, l, …) for the operators that see time, (b l, …) for the others.
        self._by_text = g.node(
            "Concat", g.node("Shape", token_ids), g.indices(-1), attributes={"axis": 0}
        )
        x = self._flat(self._embedded(token_ids), a.d_model)
        eps = {"eps": a.norm_eps}
        hidden = g.ours("AddRmsNorm", x, self._weight("layers.0.norm.weight"), attributes=eps)
        for layer in range(a.n_layer):
            is_last = layer + 1 == a.n_layer
            following = "norm.weight" if is_last else f"layers.{layer + 1}.norm.weight"
            added = [f"hidden.{layer}", f"x.{layer}"]
            product = self._block(hidden, layer)
            hidden = g.ours(
                "AddRmsNorm",
                *(x, self._weight(following), product),
                attributes=eps,
                outputs=added,
            )
            x = added[1]
        wanted = g.node("Gather", self._timed(hidden), positions, attributes={"axis": 1})
        g.ours(
            "QuantLinear",
            self._flat(wanted, a.d_model),
            *self._stored(a.head_weight),
            attributes={**self._packing(a.head_weight), "outputs": a.vocab_size},
            outputs=[g.output("logits", _FLOAT, ["rows", a.vocab_size])],
        )
        return g.model("prefill")

    def _block(self, hidden: str, layer: int) -> str:
        """A block from the normed residual (t, m) float16 to what is added to it (t, m) float16."""
        a, g, of_block = self._architecture, self._graph, f"layers.{layer}."
        conv_in, conv_out = self._state("conv", layer, _HALF, a.d_conv - 1)
        ssm_in, ssm_out = self._state("ssm", layer, _FLOAT, a.d_state)
        both = self._timed(self._product(hidden, of_block + "in_proj.weight"))
        u = g.ours(
            "CausalConv1d",
            both,
            self._weight(of_block + "conv.weight"),
            self._weight(of_block + "conv.bias"),
            conv_in,
            outputs=[f"u.{layer}", conv_out],
        )
        delta, B, C, begins = self._selection(self._flat(u, a.d_inner), layer)
        y = g.ours(
            "SelectiveScan",
            u,
            self._timed(delta),
            self._weight(of_block + "A"),
            self._timed(B),
            self._timed(C),
            self._weight(of_block + "D"),
            both,
            self._weight(of_block + "dt_proj.bias"),
            ssm_in,
            attributes={**begins, "z_begin": a.d_inner, "sm_count": self._sm_count},
            outputs=[f"y.{layer}", ssm_out],
        )
        return self._product(self._flat(y, a.d_inner), of_block + "out_proj.weight")

    def _selection(self, u: str, layer: int) -> tuple[str, str, str, dict[str, int]]:
        """delta (t, d), B and C (t, n or more), and the columns at which B and C begin."""
        a, g, of_block = self._architecture, self._graph, f"layers.{layer}."
        if takes_selection(a):
            names = [f"{name}.{layer}" for name in ("delta", "B", "C")]
            matrices = [self._matrix(f"{of_block}{name}.weight") for name in ("x_proj", "dt_proj")]
            g.ours("Selection", u, *matrices, attributes={"n": a.d_state}, outputs=names)
            return names[0], names[1], names[2], {}
        mixed = self._product(u, of_block + "x_proj.weight")
        if a.mixer_norm_eps is not None:
            norms = {"r": a.dt_rank, "n": a.d_state, "eps": a.mixer_norm_eps}
            mixed = g.ours("SliceNorms", mixed, attributes=norms)
        step = g.node("Slice", mixed, g.indices(0), g.indices(a.dt_rank), g.indices(1))
        delta = self._product(step, of_block + "dt_proj.weight")
        begins = {"B_begin": a.dt_rank, "C_begin": a.dt_rank + a.d_state}
        return delta, mixed, mixed, begins

    def _embedded(self, token_ids: str) -> str:
        name = "embedding.weight"
        attributes = {**self._packing(name), "m": self._architecture.d_model}
        return self._graph.ours(
            "QuantEmbedding", token_ids, *self._stored(name), attributes=attributes
        )

    def _product(self, value: str, name: str) -> str:
        """(t, in) float16 times a matrix (out, in)."""
        matrix, layer = self._matrix(name), name.removesuffix(".weight")
        return self._graph.node("Gemm", value, matrix, attributes={"transB": 1}, name=layer)

    def _matrix(self, name: str) -> str:
        """A matrix (out, in) float16, unpacked if it is packed."""
        matrix, *scales = self._stored(name)
        if not scales:
            return matrix
        columns = self._architecture.weights()[name].shape[1]
        attributes = {**self._packing(name), "columns": columns}
        return self._graph.ours("QuantMatrix", matrix, *scales, attributes=attributes)

    def _stored(self, name: str) -> list[str]:
        """A matrix as it is stored, with its scales if it is packed."""
        if name not in self._packings:
            return [self._weight(name)]
        rows, groups = self._places[scales_name(name)].shape
        # Turned while they are copied to the GPU.
        scales = self._graph.input(scales_name(name), _HALF, [groups, rows])
        return [self._weight(name), scales]

    def _packing(self, name: str) -> dict[str, int]:
        packing = self._packings.get(name, Packing(bits=16, group_size=0))
        return {"bits": packing.bits, "group_size": packing.group_size}

    def _weight(self, name: str) -> str:
        place = self._places[name]
        kind = helper.np_dtype_to_tensor_dtype(place.dtype)
        return self._graph.input(name, kind, list(place.shape))

    def _state(self, kind: str, layer: int, element: int, rows: int) -> tuple[str, str]:
        shape: Dims = ["b", rows, self._architecture.d_inner]
        before = self._graph.input(f"{kind}_state_in.{layer}", element, shape)
        return before, self._graph.output(f"{kind}_state_out.{layer}", element, shape)

    def _flat(self, value: str, width: int) -> str:
        return self._graph.node("Reshape", value, self._graph.indices(-1, width))

    def _timed(self, value: str) -> str:
        return self._graph.node("Reshape", value, self._by_text)
