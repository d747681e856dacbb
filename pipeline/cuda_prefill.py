# SPDX-License-Identifier: MIT
"""A stretch of text through a whole model on the GPU: products by cuBLAS, the rest by libs6.so.

Token ids, states and logits lie at fixed addresses, so that a stretch of a length that comes
again is a CUDA graph of its own and costs the host one call.

With int8 activations the two large products of a block are libs6.so's as well: they read the
weights' codes as they are stored, so nothing is unpacked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.architecture import MambaArchitecture
from pipeline.cublas import Cublas, Product
from pipeline.cuda_driver import Gpu, Stream
from pipeline.cuda_half_weights import HalfWeights
from pipeline.cuda_repeats import Repeats
from pipeline.cuda_stretch_state import StretchState
from pipeline.cuda_weights import DeviceWeights, layer_at
from pipeline.gpu_parts import LogitsPart
from pipeline.int8_activations import PRODUCTS
from pipeline.manifest import Activations
from pipeline.s6_library import CausalConv1dProblem, SelectiveScanProblem, call
from pipeline.s6_prefill import (
    FEW_TOKENS,
    FLOAT16,
    FLOAT32,
    VECTOR_COLUMNS,
    AddRmsNormProblem,
    EmbeddingRowsProblem,
    Int8LinearProblem,
    QuantiseRowsProblem,
    QuantLinearProblem,
    SliceNormsProblem,
)
from pipeline.s6_selection import SelectionProblem, prefers_selection

# Logits of this many tokens at once where all are wanted.
_LOGIT_ROWS = 128
_HALF, _FLOAT = 2, 4
_ALIGNMENT = 256

Mark = Callable[[str], None]


class ScanInputs(NamedTuple):
    """Where B and C of a stretch lie, in addresses and elements from one token to the next."""

    B: int
    C: int
    row: int


def _mark_nothing(_phase: str) -> None:
    """Takes no notice."""


def activation_layout(architecture: MambaArchitecture, tokens: int) -> tuple[dict[str, int], int]:
    """Offset of each activation of some tokens in one piece of memory, and its size in bytes.

    The norm's output is dead when the step sizes ("delta") are written, and has the same place. The
    scan writes its output over the half of in_proj's output that the convolution has read. Codes of
    int8 activations, followed by their scales, take the place of the norm's output and, after the
    scan, of its input ("u"); they are smaller.
    """
    a = architecture
    rows = {
        "token_ids": 4,
        "x": _FLOAT * a.d_model,
        "xz": _HALF * 2 * a.d_inner,
        "u": _HALF * a.d_inner,
        "narrow": _HALF * narrow_row(a),
        "delta": _HALF * max(a.d_inner, a.d_model),
    }
    offsets, size = {}, 0
    for name, row in rows.items():
        offsets[name] = size
        size += -(-row * tokens // _ALIGNMENT) * _ALIGNMENT
    return offsets, size


def narrow_row(architecture: MambaArchitecture) -> int:
    """Elements from one token of x_proj's output to the next, a multiple of 8."""
    return -(-(architecture.dt_rank + 2 * architecture.d_state) // 8) * 8


def _scales_after(codes: int, tokens: int, columns: int) -> int:
    """Address of the float32 scales of int8 activations, which follow their codes."""
    return codes + tokens * columns


class Prefill:
    """Reads stretches of text by cuBLAS and libs6.so; see `gpu_parts.Reader`.

    Attributes:
        token_ids: Address of (b, l) int32, the stretch to read.
        logits: Address of (rows, vocab) float32, the last that were computed.
        logit_rows: Tokens whose logits fit there.
        state: What the next stretch goes on from.
        activation_bytes: Memory for activations and logits.
        cublas: See `Cublas`.
        weights: See `HalfWeights`.

    Args:
        gpu: Where to run.
        stream: Where to enqueue.
        architecture: Sizes of the model.
        weights: On the GPU.
        max_tokens: The most tokens of one stretch, over all texts.
        activations: "int8" rounds them for the products that `int8_activations` names; the caller
            has checked that the weights allow it. Otherwise all are float16.
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        architecture: MambaArchitecture,
        weights: DeviceWeights,
        max_tokens: int,
        activations: Activations | None = None,
    ) -> None:
        self._gpu, self._stream, self._architecture = gpu, stream, architecture
        self._stored = weights
        self._selects = prefers_selection(architecture, gpu.facts.multiprocessors)
        self.cublas = Cublas(gpu, stream)
        self._int8_products = PRODUCTS if activations == "int8" else ()
        self.weights = HalfWeights(
            gpu, stream, weights, architecture.n_layer, never_taken=self._int8_products
        )
        self.logit_rows = min(max_tokens, _LOGIT_ROWS)
        offsets, size = activation_layout(architecture, max_tokens)
        logit_bytes = _FLOAT * self.logit_rows * architecture.vocab_size
        self.activation_bytes = size + logit_bytes
        self._activations = gpu.allocate(size, f"a prefill of {max_tokens} tokens")
        self._logits = gpu.allocate(logit_bytes, f"the logits of {self.logit_rows} tokens")
        at = {name: self._activations.pointer + offset for name, offset in offsets.items()}
        self.token_ids, self.logits = at["token_ids"], self._logits.pointer
        self._x, self._xz, self._u = at["x"], at["xz"], at["u"]
        self._narrow, self._delta = at["narrow"], at["delta"]
        self._hidden = self._delta
        self._max_tokens = max_tokens
        self._repeats = Repeats(stream)
        self.state = StretchState(gpu, stream, architecture, self._repeats.forget)

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Memory it holds, states apart, by what it is for."""
        return {
            "activations": self.activation_bytes,
            "unpacked weights": self.weights.scratch_bytes,
            "cuBLAS": self.cublas.workspace_bytes,
        }

    def most_length(self, batch: int, *, all_logits: bool) -> int:  # noqa: ARG002
        """See `gpu_parts.Reader`: logits of all tokens come in parts, whatever the length."""
        return self._max_tokens // batch

    def read(self, batch: int, length: int) -> None:
        """See `gpu_parts.Reader`."""
        self._repeats.run((batch, length), lambda: self.enqueue(batch, length))

    def read_with_logits(self, batch: int, length: int) -> Iterator[LogitsPart]:
        """See `gpu_parts.Reader`."""
        self.read(batch, length)
        for text in range(batch):
            for first in range(0, length, self.logit_rows):
                rows = min(self.logit_rows, length - first)
                self._enqueue_logits(text * length + first, rows)
                yield LogitsPart(text, first, rows, self.logits)

    def enqueue(self, batch: int, length: int, mark: Mark = _mark_nothing) -> None:
        """Enqueues a stretch kernel by kernel.

        Args:
            batch: Texts.
            length: Tokens of each.
            mark: Told the name of each phase before its first kernel, and "" at the end.
        """
        a, tokens = self._architecture, batch * length
        mark("embedding")
        if tokens > FEW_TOKENS:
            self.weights.begin()
        self._embed(tokens)
        for layer in range(a.n_layer):
            self._block(layer, batch, length, mark)
        mark("head")
        last = self._x + _FLOAT * a.d_model * (length - 1)
        self._head(last, length * a.d_model, batch)
        mark("")

    def _enqueue_logits(self, first: int, rows: int) -> None:
        """Enqueues logits after some tokens of the last stretch.

        Args:
            first: The first of them, counted over all texts.
            rows: How many, at most `logit_rows`.
        """
        a = self._architecture
        self._head(self._x + _FLOAT * a.d_model * first, a.d_model, rows)

    def _embed(self, tokens: int) -> None:
        table = self._stored.matrices["embedding.weight"]
        problem = EmbeddingRowsProblem(
            tokens=tokens,
            m=table.columns,
            vocab_rows=table.rows,
            bits=table.bits,
            group_size=table.group_size,
            table=table.data,
            scales=table.scales,
            token_ids=self.token_ids,
            x=self._x,
        )
        call("s6_embedding_rows", problem, self._stream.handle)

    def _block(self, layer: int, batch: int, length: int, mark: Mark) -> None:
        a, d, tokens = self._architecture, self._architecture.d_inner, batch * length
        takes_codes = bool(self._int8_products) and tokens > FEW_TOKENS
        mark("norm")
        weight = self._vector("norm.weight", layer)
        self._norm(weight, self._x, a.d_model, tokens, to_codes=takes_codes)
        mark("in_proj")
        if takes_codes:
            self._int8_product("in_proj.weight", layer, tokens, self._hidden, self._xz)
        else:
            self._product("in_proj.weight", layer, tokens, self._hidden, a.d_model, self._xz, 2 * d)
        mark("convolution")
        self._convolve(layer, batch, length)
        if self._selects and tokens > FEW_TOKENS:
            mark("selection")
            inputs = self._select(layer, tokens)
        else:
            inputs = self._project(layer, tokens, mark)
        if tokens > FEW_TOKENS:
            self.weights.unpack_meanwhile(layer)
        mark("scan")
        self._scan(layer, batch, length, inputs)
        # The product adds to the residual itself, in float32.
        if takes_codes:
            mark("rounding")
            self._round(self._xz, 2 * d, tokens, d, self._u)
            mark("out_proj")
            self._int8_product("out_proj.weight", layer, tokens, self._u, self._x, add=True)
        else:
            mark("out_proj")
            self._product(
                "out_proj.weight", layer, tokens, self._xz, 2 * d, self._x, a.d_model, add=True
            )

    def _convolve(self, layer: int, batch: int, length: int) -> None:
        a = self._architecture
        conv, _ = self.state.addresses(batch)
        state = conv + layer * batch * (a.d_conv - 1) * a.d_inner * _HALF
        problem = CausalConv1dProblem(
            dtype=FLOAT16,
            weight_dtype=FLOAT32,
            b=batch,
            l=length,
            d=a.d_inner,
            k=a.d_conv,
            silu=1,
            x=self._xz,
            weight=self._vector("conv.weight", layer),
            bias=self._vector("conv.bias", layer),
            state_in=state,
            state_out=state,
            y=self._u,
            x_row=2 * a.d_inner,
        )
        call("s6_causal_conv1d", problem, self._stream.handle)

    def _select(self, layer: int, tokens: int) -> ScanInputs:
        """delta, B and C by one kernel."""
        a = self._architecture
        inputs = ScanInputs(
            B=self._narrow, C=self._narrow + _HALF * tokens * a.d_state, row=a.d_state
        )
        problem = SelectionProblem(
            tokens=tokens,
            d=a.d_inner,
            r=a.dt_rank,
            n=a.d_state,
            u=self._u,
            x_proj=self.weights.take("x_proj.weight", layer),
            dt_proj=self.weights.take("dt_proj.weight", layer),
            delta=self._delta,
            B=inputs.B,
            C=inputs.C,
        )
        call("s6_selection", problem, self._stream.handle)
        return inputs

    def _project(self, layer: int, tokens: int, mark: Mark) -> ScanInputs:
        """The same by two products."""
        a, d, row = self._architecture, self._architecture.d_inner, narrow_row(self._architecture)
        mark("x_proj")
        self._product("x_proj.weight", layer, tokens, self._u, d, self._narrow, row)
        if a.mixer_norm_eps is not None:
            mark("norm")
            norms = SliceNormsProblem(
                rows=tokens,
                r=a.dt_rank,
                n=a.d_state,
                eps=a.mixer_norm_eps,
                x=self._narrow,
                x_row=row,
            )
            call("s6_slice_norms", norms, self._stream.handle)
        mark("dt_proj")
        self._product("dt_proj.weight", layer, tokens, self._narrow, row, self._delta, d)
        B = self._narrow + _HALF * a.dt_rank
        return ScanInputs(B=B, C=B + _HALF * a.d_state, row=row)

    def _scan(self, layer: int, batch: int, length: int, inputs: ScanInputs) -> None:
        a = self._architecture
        _, ssm = self.state.addresses(batch)
        state = ssm + layer * batch * a.d_state * a.d_inner * _FLOAT
        problem = SelectiveScanProblem(
            dtype=FLOAT16,
            b=batch,
            l=length,
            d=a.d_inner,
            n=a.d_state,
            delta_softplus=1,
            sm_count=self._gpu.facts.multiprocessors,
            u=self._u,
            delta=self._delta,
            A=self._vector("A", layer),
            B=inputs.B,
            C=inputs.C,
            D=self._vector("D", layer),
            z=self._xz + _HALF * a.d_inner,
            delta_bias=self._vector("dt_proj.bias", layer),
            state_in=state,
            state_out=state,
            y=self._xz,
            B_row=inputs.row,
            C_row=inputs.row,
            z_row=2 * a.d_inner,
            y_row=2 * a.d_inner,
        )
        call("s6_selective_scan", problem, self._stream.handle)

    def _head(self, x: int, x_row: int, rows: int) -> None:
        a, head = self._architecture, self._stored.matrices["head.weight"]
        self._norm(self._stored.vectors["final_norm"].data, x, x_row, rows)
        # Rows past the vocabulary only pad the matrix to a round size.
        if rows <= FEW_TOKENS:
            problem = QuantLinearProblem(
                tokens=rows,
                rows=a.vocab_size,
                columns=head.columns,
                bits=head.bits,
                group_size=head.group_size,
                y_dtype=FLOAT32,
                weight=head.data,
                scales=head.scales,
                scale_group=head.rows,
                x=self._hidden,
                y=self.logits,
            )
            call("s6_quant_linear", problem, self._stream.handle)
            return
        for first, count, matrix in self.weights.head_parts():
            outputs = min(count, a.vocab_size - first)
            if outputs > 0:
                product = Product(
                    weight=matrix,
                    rows=outputs,
                    columns=a.d_model,
                    x=self._hidden,
                    x_row=a.d_model,
                    tokens=rows,
                    y=self.logits + _FLOAT * first,
                    y_row=a.vocab_size,
                    wide=True,
                )
                self.cublas.enqueue(product)

    def _norm(self, weight: int, x: int, x_row: int, rows: int, *, to_codes: bool = False) -> None:
        a, y = self._architecture, self._hidden
        problem = AddRmsNormProblem(
            rows=rows,
            m=a.d_model,
            eps=a.norm_eps,
            x=x,
            weight=weight,
            y=y,
            x_row=x_row,
            y_scales=_scales_after(y, rows, a.d_model) if to_codes else None,
        )
        call("s6_add_rms_norm", problem, self._stream.handle)

    def _round(self, x: int, x_row: int, tokens: int, columns: int, codes: int) -> None:
        """Writes the codes and scales of float16 rows."""
        problem = QuantiseRowsProblem(
            tokens=tokens,
            columns=columns,
            x=x,
            codes=codes,
            scales=_scales_after(codes, tokens, columns),
            x_row=x_row,
        )
        call("s6_quantise_rows", problem, self._stream.handle)

    def _int8_product(
        self, name: str, layer: int, tokens: int, codes: int, y: int, *, add: bool = False
    ) -> None:
        """One matrix of a block times int8 activations.

        Args:
            name: Of the matrix.
            layer: Of the block.
            tokens: Rows of activations and y.
            codes: Address of (tokens, columns) int8; their scales follow.
            y: Address of (tokens, rows) float16, or float32 if `add`.
            add: Whether y is added to.
        """
        matrix = self._stored.matrices[name]
        problem = Int8LinearProblem(
            tokens=tokens,
            rows=matrix.rows,
            columns=matrix.columns,
            group_size=matrix.group_size,
            y_dtype=FLOAT32 if add else FLOAT16,
            add=int(add),
            weight=layer_at(matrix.data, matrix.layer_bytes, layer),
            weight_scales=layer_at(matrix.scales, matrix.layer_bytes, layer),
            codes=codes,
            scales=_scales_after(codes, tokens, matrix.columns),
            y=y,
        )
        call("s6_int8_linear", problem, self._stream.handle)

    def _product(
        self,
        name: str,
        layer: int,
        tokens: int,
        x: int,
        x_row: int,
        y: int,
        y_row: int,
        *,
        add: bool = False,
    ) -> None:
        """One matrix of a block: few tokens read it as it is stored, many as float16.

        Args:
            name: Of the matrix.
            layer: Of the block.
            tokens: Rows of x and y.
            x: Address of (tokens, columns) float16.
            x_row: Elements from one row of x to the next.
            y: Address of (tokens, rows) float16, or float32 if `add`.
            y_row: Elements from one row of y to the next.
            add: Whether y is added to.
        """
        matrix = self._stored.matrices[name]
        # A matrix that packing takes has columns enough for the kernel; others may be odd.
        if tokens > FEW_TOKENS or matrix.columns % VECTOR_COLUMNS:
            weight = self.weights.take(name, layer)
            sizes = (matrix.rows, matrix.columns)
            self.cublas.enqueue(
                Product(weight, *sizes, x, x_row, tokens, y, y_row, wide=add, add=add)
            )
            return
        problem = QuantLinearProblem(
            tokens=tokens,
            rows=matrix.rows,
            columns=matrix.columns,
            bits=matrix.bits,
            group_size=matrix.group_size,
            y_dtype=FLOAT32 if add else FLOAT16,
            add=int(add),
            weight=layer_at(matrix.data, matrix.layer_bytes, layer),
            scales=layer_at(matrix.scales, matrix.layer_bytes, layer),
            x=x,
            y=y,
            x_row=x_row,
            y_row=y_row,
        )
        call("s6_quant_linear", problem, self._stream.handle)

    def _vector(self, name: str, layer: int) -> int:
        vector = self._stored.vectors[name]
        return vector.data + layer * vector.layer_bytes
