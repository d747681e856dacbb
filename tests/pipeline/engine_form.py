# SPDX-License-Identifier: MIT
"""The engine form of plugin/ops.json in numpy, so that onnx's evaluator runs a TensorRT graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]

_WORD_BITS = 32


def silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def softplus(x: Array) -> Array:
    result: Array = np.logaddexp(0, x)
    return result


def rms_normed(x: Array, eps: float) -> Array:
    result: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    return result


def unpacked(words: Array, scales: Array | None, bits: int, group_size: int) -> Array:
    """A matrix (rows, columns) float32; scales lie groups first."""
    if bits == 16:
        return words.astype(np.float32)
    shifts = np.arange(0, _WORD_BITS, bits, dtype=np.uint32)
    codes = (words.view(np.uint32)[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    steps: Array = codes.reshape(len(words), -1).astype(np.float32) - 2 ** (bits - 1)
    assert scales is not None
    steps *= np.repeat(scales.T.astype(np.float32), group_size, axis=1)
    return steps


def convolved(x: Array, weight: Array, bias: Array, state: Array) -> tuple[Array, Array]:
    """(b, l, d) float32 and what the next stretch needs."""
    k, length = len(weight), x.shape[1]
    window = np.concatenate([state.astype(np.float32), x.astype(np.float32)], axis=1)
    total = sum(weight[j] * window[:, j : j + length] for j in range(k)) + bias
    return silu(total), window[:, length:]


def scanned(
    u: Array, step: Array, A: Array, B: Array, C: Array, D: Array, z: Array, state: Array
) -> tuple[Array, Array]:
    """(b, l, d) float32 and the state after it; `step` is after the softplus."""
    h, rows = state.astype(np.float32), []
    for t in range(u.shape[1]):
        decay = np.exp(step[:, t, None] * A)
        h = decay * h + (step[:, t] * u[:, t])[:, None] * B[:, t, :, None]
        rows.append((C[:, t, :, None] * h).sum(axis=1) + D * u[:, t])
    return np.stack(rows, axis=1) * silu(z), h


def wide(x: Array, begin: int | None, columns: int) -> Array:
    """Some columns; an attribute that is left out is None and means the first."""
    first = begin or 0
    return x[..., first : first + columns].astype(np.float32)


class CausalConv1d(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, x: Array, weight: Array, bias: Array, state: Array, **a: Any) -> Any:
        y, after = convolved(wide(x, a.get("x_begin"), len(bias)), weight, bias, state)
        return y.astype(x.dtype), after.astype(state.dtype)


class SelectiveScan(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(
        self, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array,
        bias: Array, state: Array, **a: Any,
    ) -> Any:  # fmt: skip
        n, d = A.shape
        step = softplus(delta.astype(np.float32) + bias)
        y, after = scanned(
            u.astype(np.float32), step, A, wide(B, a.get("B_begin"), n),
            wide(C, a.get("C_begin"), n), D, wide(z, a["z_begin"], d), state,
        )  # fmt: skip
        return y.astype(u.dtype), after


class QuantLinear(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, x: Array, weight: Array, scales: Array | None = None, **a: Any) -> Any:
        matrix = unpacked(weight, scales, a["bits"], a["group_size"])
        return (x.astype(np.float32) @ matrix[: a["outputs"]].T,)


class QuantEmbedding(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, ids: Array, table: Array, scales: Array | None = None, **a: Any) -> Any:
        matrix = unpacked(table, scales, a["bits"], a["group_size"])
        assert matrix.shape[1] == a["m"]
        return (matrix[ids],)


class QuantMatrix(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, words: Array, scales: Array, **a: Any) -> Any:
        matrix = unpacked(words, scales, a["bits"], a["group_size"])
        assert matrix.shape[1] == a["columns"]
        return (matrix.astype(np.float16),)


class AddRmsNorm(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, x: Array, weight: Array, delta: Array | None = None, **a: Any) -> Any:
        total = x if delta is None else x + delta.astype(np.float32)
        y = (rms_normed(total, a["eps"]) * weight).astype(np.float16)
        return (y,) if delta is None else (y, total)


class SliceNorms(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, x: Array, **a: Any) -> Any:
        parts = np.split(x.astype(np.float32), [a["r"], a["r"] + a["n"]], axis=-1)
        normed = [rms_normed(part, a["eps"]) for part in parts]
        return (np.concatenate(normed, axis=-1).astype(np.float16),)


class Selection(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(self, u: Array, x_proj: Array, dt_proj: Array, **a: Any) -> Any:
        n, rank = a["n"], dt_proj.shape[1]
        mixed = (u.astype(np.float32) @ x_proj.astype(np.float32).T).astype(np.float16)
        dt, B, C = np.split(mixed, [rank, rank + n], axis=-1)
        delta = dt.astype(np.float32) @ dt_proj.astype(np.float32).T
        return delta.astype(np.float16), B, C


class MambaStep(OpRun):  # type: ignore[misc]
    op_domain = "s6"

    def _run(
        self, token_ids: Array, weights: Array, conv_state: Array, ssm_state: Array, **a: Any
    ) -> Any:
        image = weights.view(np.uint8)
        layers, _, past, d = conv_state.shape
        m, n, r, k = a["m"], a["n"], a["r"], past + 1

        def at(line: int, layer: int, dtype: Any, *shape: int) -> Array:
            first = 128 * (line + layer * a["layer_lines"])
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            part: Array = image[first : first + size].view(dtype).reshape(shape)
            return part

        def matrix(number: int, layer: int, rows: int, columns: int) -> Array:
            bits, group, data, scales = a["matrices"][4 * number : 4 * number + 4]
            if bits == 16:
                return at(data, layer, np.float16, rows, columns).astype(np.float32)
            words = at(data, layer, np.int32, rows, columns * bits // _WORD_BITS)
            return unpacked(
                words, at(scales, layer, np.float16, columns // group, rows), bits, group
            )

        def vector(number: int, layer: int, *shape: int) -> Array:
            return at(a["vectors"][number], layer, np.float32, *shape)

        x = matrix(0, 0, a["vocab_rows"], m)[token_ids]
        convs, ssms = [], []
        for i in range(layers):
            both = rms_normed(x, a["norm_eps"]) * vector(0, i, m) @ matrix(1, i, 2 * d, m).T
            u, conv = convolved(
                both[:, None, :d], vector(1, i, k, d), vector(2, i, d), conv_state[i]
            )
            parts = np.split(u @ matrix(2, i, r + 2 * n, d).T, [r, r + n], axis=-1)
            if a["mixer_norm_eps"] > 0:
                parts = [rms_normed(part, a["mixer_norm_eps"]) for part in parts]
            step = softplus(parts[0] @ matrix(3, i, d, r).T + vector(3, i, d))
            y, ssm = scanned(
                u, step, vector(4, i, n, d), parts[1], parts[2], vector(5, i, d),
                both[:, None, d:], ssm_state[i],
            )  # fmt: skip
            x = x + y[:, 0] @ matrix(4, i, m, d).T
            convs.append(conv)
            ssms.append(ssm)
        hidden = rms_normed(x, a["norm_eps"]) * at(a["vectors"][6], 0, np.float32, m)
        logits = hidden @ matrix(5, 0, a["vocab_rows"], m)[: a["vocab"]].T
        best = logits.argmax(axis=-1).astype(np.int32)
        return logits.astype(np.float32), best, np.stack(convs), np.stack(ssms)


OPERATORS = [
    CausalConv1d, SelectiveScan, QuantLinear, QuantEmbedding, QuantMatrix, AddRmsNorm, SliceNorms,
    Selection, MambaStep,
]  # fmt: skip
