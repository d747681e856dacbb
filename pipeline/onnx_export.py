# SPDX-License-Identifier: MIT
"""Writes the two graphs of a bundle; the weights stay in `weights.safetensors`.

`prefill.onnx` reads a stretch of text of any length, operator by operator, so that a compiler
can arrange the matrix products. `step.onnx` reads one token with one fused `MambaStep` a block.
Both take the state as inputs and give it back as outputs, a pair of tensors a block, so that a
runtime hands buffers to and fro instead of copying them. Packed matrices and their scales go into
`QuantLinear`, `QuantEmbedding` and the `MambaStep` itself.

    input    token_ids        (b, l) int64; (b,) in step.onnx
    input    logit_positions  (p,) int64, the positions to give logits for; prefill.onnx only
    in, out  conv_state.{i}   (b, k-1, d) float32, `conv_state_in.{i}` and `conv_state_out.{i}`
    in, out  ssm_state.{i}    (b, n, d) float32, likewise
    output   logits           (b, p, vocab) float32; (b, vocab) in step.onnx
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from pipeline import __version__
from pipeline.architecture import MambaArchitecture
from pipeline.manifest import PREFILL_GRAPH, STEP_GRAPH
from pipeline.quantize import packings, scales_name
from pipeline.s6_functions import (
    DOMAIN,
    DOMAIN_VERSION,
    ONNXRUNTIME_DOMAIN,
    ONNXRUNTIME_DOMAIN_VERSION,
    OPSET,
    Products,
    functions,
    matmul_nbits_attributes,
)
from pipeline.weights import WEIGHT_FILE, TensorPlace

Activation = Literal["as_stored", "float32"]

# IR version that goes with opset 17 and model-local functions; TensorRT 8.6 reads it.
_IR_VERSION = 8


def export_graphs(
    folder: Path,
    architecture: MambaArchitecture,
    places: dict[str, TensorPlace],
    activation: Activation = "as_stored",
    accuracy_level: int | None = None,
) -> None:
    """Writes both graphs into a folder that holds (or will hold) the weight file.

    Args:
        folder: Where to write.
        architecture: Sizes of the model.
        places: Where each weight lies in the weight file.
        activation: "as_stored" multiplies in the type the matrices are stored in, packed ones
            in float16; "float32" widens them first, for runtimes that have no fast
            half-precision product.
        accuracy_level: None multiplies packed matrices by our own operators; a number by ONNX
            Runtime's MatMulNBits at this level of its, with "float32" only.
    """
    for name, graph in (
        (PREFILL_GRAPH, _PrefillGraph(architecture, places, activation, accuracy_level)),
        (STEP_GRAPH, _StepGraph(architecture, places, activation, accuracy_level)),
    ):
        onnx.save(graph.build(), folder / name)


class _Graph:
    """Collects nodes, weights, inputs and outputs."""

    def __init__(
        self,
        architecture: MambaArchitecture,
        places: dict[str, TensorPlace],
        activation: Activation,
        accuracy_level: int | None,
    ) -> None:
        self.architecture = architecture
        self._places = places
        # Matrices are all float32, or none is, so the head speaks for the others.
        self._is_wide = (
            activation == "float32" or places[architecture.head_weight].dtype == "float32"
        )
        self._products = Products(
            self._is_wide, packings(architecture, places), accuracy_level if self._is_wide else None
        )
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def node(
        self, operator: str, *inputs: str, outputs: int | list[str] = 1, **attributes: Any
    ) -> Any:
        """Adds a node.

        Args:
            operator: A standard operator, one of ours or MatMulNBits.
            inputs: Names of values.
            outputs: How many outputs to name here, or their names.
            attributes: Attributes of the node.

        Returns:
            The output's name, or the list of names when there are more.
        """
        if isinstance(outputs, int):
            names = [f"{operator}_{len(self._nodes)}_{index}" for index in range(outputs)]
        else:
            names = outputs
        domain = _DOMAIN_OF.get(operator, "")
        self._nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def constant(self, values: list[int] | float) -> str:
        """A small constant: a list of int64, or one float32."""
        if isinstance(values, list):
            name: str = self.node("Constant", value_ints=values)
        else:
            name = self.node("Constant", value_float=values)
        return name

    def weight(self, name: str) -> str:
        """An initialiser that points into the weight file, widened where asked for.

        A packed matrix and its scales come as they are stored.
        """
        place = self._places[name]
        self._initialiser(name, place, place.dtype, place.shape)
        stored_type = helper.np_dtype_to_tensor_dtype(place.dtype)
        is_matrix = name in self.architecture.weights() and name not in self._products.packings
        if is_matrix and self._type_of(name) != stored_type:
            widened: str = self.node("Cast", name, to=TensorProto.FLOAT)
            return widened
        return name

    def _initialiser(
        self, name: str, place: TensorPlace, dtype: npt.DTypeLike, shape: tuple[int, ...]
    ) -> str:
        """Adds an initialiser for the bytes at a place, once."""
        if name not in self._weights:
            tensor = TensorProto(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                dims=shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (
                ("location", WEIGHT_FILE),
                ("offset", place.offset),
                ("length", place.length),
            ):
                tensor.external_data.add(key=key, value=str(value))
            self._weights[name] = tensor
        return name

    def packed(self, weight: str) -> tuple[str, str]:
        """A packed matrix and its scales, as whatever multiplies them takes them."""
        words, scales = weight, scales_name(weight)
        if self._products.accuracy_level is None:
            return self.weight(words), self.weight(scales)
        packing, place = self._products.packings[weight], self._places[weight]
        rows, groups = self._places[scales].shape
        group_bytes = packing.group_size * packing.bits // 8
        # The same bytes under another type and shape: nothing is copied or packed again.
        blocks = self._initialiser(f"{weight}.blocks", place, np.uint8, (rows, groups, group_bytes))
        return blocks, self.node("Cast", self.weight(scales), to=TensorProto.FLOAT)

    def _type_of(self, weight: str) -> int:
        """The type a weight is multiplied in."""
        if self._is_wide:
            return int(TensorProto.FLOAT)
        if weight in self._products.packings:
            return int(TensorProto.FLOAT16)
        return int(helper.np_dtype_to_tensor_dtype(self._places[weight].dtype))

    def input(self, name: str, kind: int, shape: list[str | int]) -> str:
        """Declares a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: list[str | int]) -> str:
        """Declares a float32 graph output, which some node must then produce."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def state(self, kind: str, layer: int) -> tuple[str, str]:
        """Declares a block's state; returns the names of its input and its output."""
        a = self.architecture
        rows = {"conv": a.d_conv - 1, "ssm": a.d_state}[kind]
        shape: list[str | int] = ["b", rows, a.d_inner]
        before = self.input(f"{kind}_state_in.{layer}", TensorProto.FLOAT, shape)
        return before, self.output(f"{kind}_state_out.{layer}", shape)

    def rms_norm(self, value: str, eps: float) -> str:
        """`value` / rms(`value`) over the last axis; see `s6_functions.rms_norm_lines`."""
        mean = self.node(
            "ReduceMean", self.node("Pow", value, self.constant(2.0)), axes=[-1], keepdims=1
        )
        rms = self.node("Sqrt", self.node("Add", mean, self.constant(eps)))
        normed: str = self.node("Div", value, rms)
        return normed

    def linear(self, value: str, weight: str) -> str:
        """(rows, in) times a weight (out, in), in the weight's type."""
        typed = self.node("Cast", value, to=self._type_of(weight))
        packing = self._products.packings.get(weight)
        level = self._products.accuracy_level
        product: str
        if packing is None:
            product = self.node("Gemm", typed, self.weight(weight), transB=1)
        elif level is None:
            product = self.node("QuantLinear", typed, *self.packed(weight), bits=packing.bits)
        else:
            rows, columns = self.architecture.weights()[weight].shape
            attributes = matmul_nbits_attributes(packing, rows, columns, level)
            product = self.node("MatMulNBits", typed, *self.packed(weight), **attributes)
        return product

    def embedded(self, token_ids: str) -> str:
        """(…) token ids -> (…, m) float32."""
        name = "embedding.weight"
        packing = self._products.packings.get(name)
        value: str
        if packing is None:
            rows = self.node("Gather", self.weight(name), token_ids)
            value = self.node("Cast", rows, to=TensorProto.FLOAT)
        else:
            words, scales = self.weight(name), self.weight(scales_name(name))
            value = self.node("QuantEmbedding", token_ids, words, scales, bits=packing.bits)
        return value

    def logits(self, hidden: str, name: str) -> str:
        """(rows, m) residual -> (rows, vocab) float32: final norm, head, padding rows cut."""
        a = self.architecture
        normed = self.node("Mul", self.rms_norm(hidden, a.norm_eps), self.weight("norm.weight"))
        product = self.linear(normed, a.head_weight)
        if a.vocab_rows > a.vocab_size:
            axis, start = self.constant([1]), self.constant([0])
            product = self.node("Slice", product, start, self.constant([a.vocab_size]), axis)
        self.node("Cast", product, to=TensorProto.FLOAT, outputs=[name])
        return name

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._weights.values())
        )
        used = {node.op_type for node in self._nodes}
        return helper.make_model(
            graph,
            ir_version=_IR_VERSION,
            producer_name="mamba-orin",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid(*domain) for domain in self._domains()],
            functions=[
                body for body in functions(self.architecture, self._products) if body.name in used
            ],
        )

    def _domains(self) -> list[tuple[str, int]]:
        domains = [("", OPSET), (DOMAIN, DOMAIN_VERSION)]
        if self._products.packings and self._products.accuracy_level is not None:
            domains.append((ONNXRUNTIME_DOMAIN, ONNXRUNTIME_DOMAIN_VERSION))
        return domains


_DOMAIN_OF = {
    "CausalConv1d": DOMAIN,
    "SelectiveScan": DOMAIN,
    "MambaStep": DOMAIN,
    "QuantLinear": DOMAIN,
    "QuantEmbedding": DOMAIN,
    "MatMulNBits": ONNXRUNTIME_DOMAIN,
}


class _PrefillGraph(_Graph):
    def build(self) -> onnx.ModelProto:
        a = self.architecture
        token_ids = self.input("token_ids", TensorProto.INT64, ["b", "l"])
        positions = self.input("logit_positions", TensorProto.INT64, ["p"])
        # (b, l, …) for the operators that see time, (b*l, …) for the matrix products.
        self._flat = self.constant([-1, a.d_inner])
        batch_and_length = self.node("Shape", token_ids)
        self._split_shape = self.node("Concat", batch_and_length, self.constant([-1]), axis=0)
        embedded = self.embedded(token_ids)
        residual = self.node("Reshape", embedded, self.constant([-1, a.d_model]))
        for layer in range(a.n_layer):
            residual = self._block(residual, layer)
        per_token = self.node("Reshape", residual, self._split_shape)
        wanted = self.node("Gather", per_token, positions, axis=1)
        flat = self.logits(self.node("Reshape", wanted, self.constant([-1, a.d_model])), "flat")
        batch = self.node("Slice", batch_and_length, self.constant([0]), self.constant([1]))
        wanted_shape = self.node(
            "Concat", batch, self.constant([-1]), self.constant([a.vocab_size]), axis=0
        )
        logits = self.output("logits", ["b", "p", a.vocab_size])
        self.node("Reshape", flat, wanted_shape, outputs=[logits])
        return self.model("prefill")

    def _block(self, residual: str, layer: int) -> str:
        a = self.architecture
        prefix = f"layers.{layer}."
        conv_state, new_conv_state = self.state("conv", layer)
        ssm_state, new_ssm_state = self.state("ssm", layer)
        normed = self.node(
            "Mul", self.rms_norm(residual, a.norm_eps), self.weight(prefix + "norm.weight")
        )
        both = self.linear(normed, prefix + "in_proj.weight")
        x, z = self.node("Split", both, self.constant([a.d_inner] * 2), outputs=2, axis=1)
        u, _ = self.node(
            "CausalConv1d",
            self.node("Reshape", x, self._split_shape),
            self.weight(prefix + "conv.weight"),
            self.weight(prefix + "conv.bias"),
            conv_state,
            outputs=[f"u.{layer}", new_conv_state],
        )
        mixed = self.linear(self.node("Reshape", u, self._flat), prefix + "x_proj.weight")
        sizes = self.constant([a.dt_rank, a.d_state, a.d_state])
        dt, B, C = self.node("Split", mixed, sizes, outputs=3, axis=1)
        if a.mixer_norm_eps is not None:
            dt, B, C = (self._mixer_norm(value, layer) for value in (dt, B, C))
        delta = self.linear(dt, prefix + "dt_proj.weight")
        y, _ = self.node(
            "SelectiveScan",
            u,
            self.node("Reshape", delta, self._split_shape),
            self.weight(prefix + "A"),
            self.node("Reshape", B, self._split_shape),
            self.node("Reshape", C, self._split_shape),
            self.weight(prefix + "D"),
            self.node("Reshape", z, self._split_shape),
            self.weight(prefix + "dt_proj.bias"),
            ssm_state,
            outputs=[f"y.{layer}", new_ssm_state],
        )
        out = self.linear(self.node("Reshape", y, self._flat), prefix + "out_proj.weight")
        added: str = self.node("Add", residual, self.node("Cast", out, to=TensorProto.FLOAT))
        return added

    def _mixer_norm(self, value: str, layer: int) -> str:
        """Falcon-Mamba's weightless norm of dt, B or C, in float32 and back."""
        eps = self.architecture.mixer_norm_eps
        assert eps is not None  # only called for models that have these norms
        normed = self.rms_norm(self.node("Cast", value, to=TensorProto.FLOAT), eps)
        typed: str = self.node("Cast", normed, to=self._type_of(f"layers.{layer}.x_proj.weight"))
        return typed


class _StepGraph(_Graph):
    def build(self) -> onnx.ModelProto:
        a = self.architecture
        token_ids = self.input("token_ids", TensorProto.INT64, ["b"])
        residual = self.embedded(token_ids)
        attributes = {"norm_eps": a.norm_eps}
        if a.mixer_norm_eps is not None:
            attributes["mixer_norm_eps"] = a.mixer_norm_eps
        for layer in range(a.n_layer):
            conv_state, new_conv_state = self.state("conv", layer)
            ssm_state, new_ssm_state = self.state("ssm", layer)
            weights, scales = self._block_weights(layer)
            residual, *_ = self.node(
                "MambaStep",
                residual,
                *weights,
                conv_state,
                ssm_state,
                *scales,
                outputs=[f"residual.{layer}", new_conv_state, new_ssm_state],
                **attributes,
            )
        self.logits(residual, self.output("logits", ["b", a.vocab_size]))
        return self.model("step")

    def _block_weights(self, layer: int) -> tuple[list[str], list[str]]:
        """The weights of a block, and the scales of those that are packed, in file order."""
        weights, scales = [], []
        for name in (f"layers.{layer}.{part}" for part in self.architecture.layer_weights()):
            if name in self._products.packings:
                words_or_blocks, scale = self.packed(name)
                weights.append(words_or_blocks)
                scales.append(scale)
            else:
                weights.append(self.weight(name))
        return weights, scales
