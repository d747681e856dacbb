# SPDX-License-Identifier: MIT
"""The `s6` operators written out in standard ONNX operators, in ONNX's own text syntax.

A graph of ours carries these as function bodies, so any ONNX tool can run it; a backend that
knows an operator replaces the whole node by its kernel. Everything is computed in float32
whatever the type of the tensors. Shapes follow `model.py`:

    b batch, l length, m model width, d inner channels, n state, k convolution width, r rank
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from pipeline.architecture import MambaArchitecture
from pipeline.quantize import WORD_BITS, Packing

DOMAIN = "s6"
DOMAIN_VERSION = 1
# TensorRT 8.6 reads up to this version of the standard operators.
OPSET = 17

# ONNX Runtime's own operators, used only in graphs made for it alone.
ONNXRUNTIME_DOMAIN = "com.microsoft"
ONNXRUNTIME_DOMAIN_VERSION = 1

_HEADER = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
_HEADER_FOR_ONNXRUNTIME = (
    f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, '
    f'"{ONNXRUNTIME_DOMAIN}" : {ONNXRUNTIME_DOMAIN_VERSION}]>'
)
# "To the end" as Slice understands it.
_END = 2**63 - 1


@dataclass(frozen=True)
class Products:
    """How a model's matrices are multiplied.

    Attributes:
        wide: Whether activations are float32, so that no product needs a cast around it and a
            product of unpacked matrices can add its bias or residual itself.
        packings: The packed matrices, by name.
        accuracy_level: None writes products with packed matrices in standard operators;
            a number has ONNX Runtime's MatMulNBits do them, at this level of its.
    """

    wide: bool
    packings: Mapping[str, Packing]
    accuracy_level: int | None = None


def functions(architecture: MambaArchitecture, products: Products) -> list[onnx.FunctionProto]:
    """The function bodies for a model of these sizes, multiplied in this way."""
    texts = (
        _causal_conv1d(architecture),
        _selective_scan(),
        _mamba_step(architecture, products),
        _quant_linear(),
        _quant_embedding(),
    )
    return [onnx.parser.parse_function(text) for text in texts]


def matmul_nbits_attributes(
    packing: Packing, rows: int, columns: int, level: int
) -> dict[str, int]:
    """Attributes of ONNX Runtime's MatMulNBits for one packed matrix.

    Source: docs/ContribOperators.md of ONNX Runtime. Without zero points it takes 2^(bits-1),
    as we do, and its bytes (rows, groups, bytes of a group) are those of our words.
    """
    return {
        "K": columns,
        "N": rows,
        "bits": packing.bits,
        "block_size": packing.group_size,
        "accuracy_level": level,
    }


def _causal_conv1d(a: MambaArchitecture) -> str:
    """x (b,l,d), weight (k,d), bias (d), state (b,k-1,d) -> y (b,l,d), state."""
    return f"""{_HEADER}
    CausalConv1d (x, weight, bias, state) => (y, final_state)
    {{
        {_window_constants(a.d_conv)}
        past = CastLike (state, x)
        window = Concat <axis = 1> (past, x)
        window32 = Cast <to = 1> (window)
        {_sum_of_taps(a.d_conv)}
        biased = Add (total, bias)
        gate = Sigmoid (biased)
        active = Mul (biased, gate)
        y = CastLike (active, x)
        newest = Slice (window, from_newest, to_end, time_axis)
        final_state = CastLike (newest, state)
    }}"""


def _window_constants(k: int) -> str:
    """Axes and bounds for a window (b,k-1+l,d) of which the last k-1 rows are kept."""
    return f"""time_axis = Constant <value_ints: ints = [1]> ()
        from_newest = Constant <value_ints: ints = [{1 - k}]> ()
        to_end = Constant <value_ints: ints = [{_END}]> ()"""


def _sum_of_taps(k: int) -> str:
    """Lines that turn `window32` (b,k-1+l,d) into `total` (b,l,d), the sum over k taps."""
    lines = [f"{', '.join(f'weight{j}' for j in range(k))} = Split <axis = 0> (weight)"]
    for j in range(k):
        end = j - (k - 1) if j < k - 1 else _END
        lines += [
            f"start{j} = Constant <value_ints: ints = [{j}]> ()",
            f"end{j} = Constant <value_ints: ints = [{end}]> ()",
            f"tap{j} = Slice (window32, start{j}, end{j}, time_axis)",
            f"product{j} = Mul (tap{j}, weight{j})",
        ]
    lines.append(f"total = Sum ({', '.join(f'product{j}' for j in range(k))})")
    return "\n".join(lines)


def _selective_scan() -> str:
    """The recurrence over a stretch of text; see `model.selective_scan`.

    Step sizes and inputs are expanded for all steps at once, outside the loop, because a loop
    iteration costs more than the arithmetic in it: only what depends on h stays inside.
    """
    return f"""{_HEADER}
    SelectiveScan (u, delta, A, B, C, D, z, delta_bias, state) => (y, final_state)
    {{
        state_axis = Constant <value_ints: ints = [2]> ()
        channel_axis = Constant <value_ints: ints = [3]> ()
        u32 = Cast <to = 1> (u)
        u_lbd = Transpose <perm = [1, 0, 2]> (u32)
        delta32 = Cast <to = 1> (delta)
        delta_lbd = Transpose <perm = [1, 0, 2]> (delta32)
        biased = Add (delta_lbd, delta_bias)
        step = Softplus (biased)
        step_lb1d = Unsqueeze (step, state_axis)
        exponent = Mul (step_lb1d, A)
        decay = Exp (exponent)
        scaled = Mul (step, u_lbd)
        scaled_lb1d = Unsqueeze (scaled, state_axis)
        B32 = Cast <to = 1> (B)
        B_lbn = Transpose <perm = [1, 0, 2]> (B32)
        B_lbn1 = Unsqueeze (B_lbn, channel_axis)
        drive = Mul (scaled_lb1d, B_lbn1)
        C32 = Cast <to = 1> (C)
        C_lbn = Transpose <perm = [1, 0, 2]> (C32)
        C_lb1n = Unsqueeze (C_lbn, state_axis)
        h0 = Cast <to = 1> (state)
        h_last, y_lb1d = Scan <num_scan_inputs: int = 3, body: graph = one_step (
            float[b, n, d] h, float[b, n, d] decay_t, float[b, n, d] drive_t, float[b, one, n] C_t
        ) => (float[b, n, d] h_next, float[b, one, d] y_t) {{
            kept = Mul (decay_t, h)
            h_next = Add (kept, drive_t)
            y_t = MatMul (C_t, h_next)
        }}> (h0, decay, drive, C_lb1n)
        final_state = CastLike (h_last, state)
        y_lbd = Squeeze (y_lb1d, state_axis)
        skip = Mul (D, u_lbd)
        with_skip = Add (y_lbd, skip)
        with_skip_bld = Transpose <perm = [1, 0, 2]> (with_skip)
        z32 = Cast <to = 1> (z)
        sigmoid = Sigmoid (z32)
        gate = Mul (z32, sigmoid)
        gated = Mul (with_skip_bld, gate)
        y = CastLike (gated, u)
    }}"""


def _quant_linear() -> str:
    """x (rows,in), words (out,in*bits/32), scales (out,groups) -> y (rows,out), like x."""
    return f"""{_HEADER}
    QuantLinear <bits> (x, words, scales) => (y)
    {{
        {_unpacking_constants("bits = Constant <value_int: int = @bits> ()")}
        {_dequantise_lines("words", "scales", "matrix")}
        x32 = Cast <to = 1> (x)
        product = Gemm <transB = 1> (x32, matrix)
        y = CastLike (product, x)
    }}"""


def _quant_embedding() -> str:
    """token_ids (…), words (vocab,m*bits/32), scales (vocab,groups) -> y (…,m) float32."""
    return f"""{_HEADER}
    QuantEmbedding <bits> (token_ids, words, scales) => (y)
    {{
        {_unpacking_constants("bits = Constant <value_int: int = @bits> ()")}
        token_words = Gather (words, token_ids)
        token_scales = Gather (scales, token_ids)
        {_dequantise_lines("token_words", "token_scales", "y")}
    }}"""


def _unpacking_constants(bits: str) -> str:
    """Lines for the constants of `_dequantise_lines`, after the line that makes `bits`."""
    return f"""{bits}
        word_bits = Constant <value_int: int = {WORD_BITS}> ()
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        last_axis = Constant <value_ints: ints = [-1]> ()
        positions = Range (zero, word_bits, bits)
        spare = Sub (word_bits, bits)
        to_top_signed = Sub (spare, positions)
        to_top = Cast <to = 12> (to_top_signed)
        to_bottom = Cast <to = 12> (spare)
        top_bit = Sub (bits, one)
        one_unsigned = Cast <to = 12> (one)
        top_bit_unsigned = Cast <to = 12> (top_bit)
        zero_code = BitShift <direction = "LEFT"> (one_unsigned, top_bit_unsigned)
        zero_point = Cast <to = 1> (zero_code)"""


def _dequantise_lines(words: str, scales: str, result: str) -> str:
    """Lines for `result` (…,in) float32 = what `words` (…,w) and `scales` (…,groups) stand for.

    A code is shifted to the top of its word, which drops those above it, and down to the
    bottom, which drops those below.
    """
    r = result
    return f"""{r}_unsigned = Cast <to = 12> ({words})
        {r}_column = Unsqueeze ({r}_unsigned, last_axis)
        {r}_top = BitShift <direction = "LEFT"> ({r}_column, to_top)
        {r}_codes = BitShift <direction = "RIGHT"> ({r}_top, to_bottom)
        {r}_codes32 = Cast <to = 1> ({r}_codes)
        {r}_steps = Sub ({r}_codes32, zero_point)
        {r}_groups_shape = Shape ({scales})
        {r}_grouped_shape = Concat <axis = 0> ({r}_groups_shape, last_axis)
        {r}_grouped = Reshape ({r}_steps, {r}_grouped_shape)
        {r}_scales32 = Cast <to = 1> ({scales})
        {r}_scale = Unsqueeze ({r}_scales32, last_axis)
        {r}_scaled = Mul ({r}_grouped, {r}_scale)
        {r}_leading = Shape <end = -1> ({words})
        {r}_shape = Concat <axis = 0> ({r}_leading, last_axis)
        {r} = Reshape ({r}_scaled, {r}_shape)"""


class _StepProducts:
    """Lines for the products with a block's matrices, whichever way they are stored.

    Args:
        architecture: The sizes.
        products: The way.
    """

    def __init__(self, architecture: MambaArchitecture, products: Products) -> None:
        self._shapes = {
            name.removesuffix(".weight"): weight.shape
            for name, weight in architecture.layer_weights().items()
        }
        self._products = products
        self.packings = {
            name: products.packings[f"layers.0.{name}.weight"]
            for name in self._shapes
            if f"layers.0.{name}.weight" in products.packings
        }
        self.is_lowered = bool(self.packings) and products.accuracy_level is not None

    def constants(self) -> str:
        """Lines that the other lines need before them."""
        if not self.packings or self.is_lowered:
            return ""
        # The matrices of a block differ in their groups, never in their bits.
        bits = next(iter(self.packings.values())).bits
        return _unpacking_constants(f"bits = Constant <value_int: int = {bits}> ()")

    def linear(self, value: str, matrix: str, result: str, add: str | None = None) -> str:
        """Lines for `result` = `value` (b,in) times `matrix` (out,in), plus `add`, in float32."""
        packing = self.packings.get(matrix)
        product = f"{result}_product" if add else result
        if packing is not None and self._products.accuracy_level is not None:
            rows, columns = self._shapes[matrix]
            attributes = ", ".join(
                f"{key}: int = {number}"
                for key, number in matmul_nbits_attributes(
                    packing, rows, columns, self._products.accuracy_level
                ).items()
            )
            lines = (
                f"{product} = {ONNXRUNTIME_DOMAIN}.MatMulNBits <{attributes}> "
                f"({value}, {matrix}, {matrix}_scales)"
            )
        elif packing is not None or self._products.wide:
            lines, source = "", matrix
            if packing is not None:
                source = f"{matrix}_wide"
                lines = _dequantise_lines(matrix, f"{matrix}_scales", source) + "\n        "
            addend = f", {add}" if add else ""
            return f"{lines}{result} = Gemm <transB = 1> ({value}, {source}{addend})"
        else:
            lines = f"""{result}_input = CastLike ({value}, {matrix})
        {result}_narrow = Gemm <transB = 1> ({result}_input, {matrix})
        {product} = Cast <to = 1> ({result}_narrow)"""
        return lines + (f"\n        {result} = Add ({product}, {add})" if add else "")


def _mamba_step(a: MambaArchitecture, products: Products) -> str:
    """One token through one whole block; see `model.Block`.

    x (b,m), conv_state (b,k-1,d), ssm_state (b,n,d) -> y (b,m) and both states, all float32.
    The scales of packed matrices follow as further inputs.
    """
    step = _StepProducts(a, products)
    header = _HEADER_FOR_ONNXRUNTIME if step.is_lowered else _HEADER
    scales = "".join(f", {name}_scales" for name in step.packings)
    if a.mixer_norm_eps is None:
        attributes = "<norm_eps>"
        mixer_norms = "\n".join(f"{name} = Identity (raw_{name})" for name in ("dt", "B", "C"))
    else:
        attributes = "<norm_eps, mixer_norm_eps>"
        mixer_norms = "small = Constant <value_float: float = @mixer_norm_eps> ()\n" + "\n".join(
            rms_norm_lines(f"raw_{name}", name, eps="small") for name in ("dt", "B", "C")
        )
    return f"""{header}
    MambaStep {attributes} (
        x, norm_weight, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj,
        conv_state, ssm_state{scales}
    ) => (y, final_conv_state, final_ssm_state)
    {{
        eps = Constant <value_float: float = @norm_eps> ()
        two = Constant <value_float: float = 2.0> ()
        {step.constants()}
        {rms_norm_lines("x", "unweighted", eps="eps")}
        normed = Mul (unweighted, norm_weight)
        {step.linear("normed", "in_proj", "both")}
        halves = Constant <value_ints: ints = [{a.d_inner}, {a.d_inner}]> ()
        xs, z = Split <axis = 1> (both, halves)

        {_window_constants(a.d_conv)}
        newest = Unsqueeze (xs, time_axis)
        window = Concat <axis = 1> (conv_state, newest)
        products = Mul (window, conv_weight)
        total = ReduceSum <keepdims = 0> (products, time_axis)
        biased = Add (total, conv_bias)
        conv_sigmoid = Sigmoid (biased)
        u = Mul (biased, conv_sigmoid)
        final_conv_state = Slice (window, from_newest, to_end, time_axis)

        {step.linear("u", "x_proj", "mixed")}
        parts = Constant <value_ints: ints = [{a.dt_rank}, {a.d_state}, {a.d_state}]> ()
        raw_dt, raw_B, raw_C = Split <axis = 1> (mixed, parts)
        {mixer_norms}
        {step.linear("dt", "dt_proj", "step_in", add="dt_bias")}
        step = Softplus (step_in)

        channel_axis = Constant <value_ints: ints = [2]> ()
        step_b1d = Unsqueeze (step, time_axis)
        exponent = Mul (step_b1d, A)
        decay = Exp (exponent)
        scaled = Mul (step, u)
        scaled_b1d = Unsqueeze (scaled, time_axis)
        B_bn1 = Unsqueeze (B, channel_axis)
        drive = Mul (scaled_b1d, B_bn1)
        kept = Mul (decay, ssm_state)
        final_ssm_state = Add (kept, drive)
        C_b1n = Unsqueeze (C, time_axis)
        read_b1d = MatMul (C_b1n, final_ssm_state)
        read = Squeeze (read_b1d, time_axis)
        skip = Mul (D, u)
        with_skip = Add (read, skip)
        z_sigmoid = Sigmoid (z)
        gate = Mul (z, z_sigmoid)
        gated = Mul (with_skip, gate)
        {step.linear("gated", "out_proj", "y", add="x")}
    }}"""


def rms_norm_lines(source: str, result: str, eps: str) -> str:
    """Lines for `result` = `source` / rms(`source`); needs a constant `two` in scope.

    Written as the chain of operators that graph optimisers know as one RMS norm.
    """
    return f"""{result}_squares = Pow ({source}, two)
        {result}_mean = ReduceMean <axes = [-1], keepdims = 1> ({result}_squares)
        {result}_safe = Add ({result}_mean, {eps})
        {result}_rms = Sqrt ({result}_safe)
        {result} = Div ({source}, {result}_rms)"""
