# SPDX-License-Identifier: MIT
# Triton infers the types of a kernel's arguments, which come one by one:
# ruff: noqa: ANN001, ANN202
"""The selective scan as one Triton kernel forward and one backward, for training on a GPU.

Computes what `pipeline.model.selective_scan` computes, in float32, and its exact gradients.
It is no inference kernel: batch-1 decoding and the board have `plugin/`.

How it works: a program owns one sequence and `CHANNELS` channels with all their states. It
walks over time in tiles of `STEPS`; inside a tile the recurrence is an associative scan over
pairs (decay, input), between tiles only one state is carried. The forward pass keeps every
state for the backward pass, (b, l, d, n) float32: for small models that is a few GB, and
cheaper than the second scan it saves. The backward pass is the same recurrence for the
gradient dh, run from the last step to the first; its tiles are loaded in that order, because
Triton turns the order of a reversed scan by shuffles between lanes, which costs more than the scan.

Invariant: steps past the end of the sequence load delta = u = dy = 0, hence decay 1 and input
0, which leaves h and every gradient as they are; no other masking is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.model import SelectiveScan, selective_scan

# With 4 warps these make Triton keep the time axis of a tile inside a thread's registers, so
# that the scan needs no traffic between lanes: 16 lanes take the states, the rest channels.
STEPS = 16
CHANNELS = 8
WARPS = 4


@triton.jit
def _then(decay_1, input_1, decay_2, input_2):
    """Composes h -> decay_1 h + input_1 with h -> decay_2 h + input_2."""
    return decay_1 * decay_2, decay_2 * input_1 + input_2


@triton.jit
def _forward(
    u_ptr,
    delta_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    y_ptr,
    h_ptr,
    length,
    channels,
    N: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
):
    """u, delta, y (b, l, d); a (d, n); b, c (b, l, n); h (b, l+1, d, n), h[:, 0] is read."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * D + tl.arange(0, D)
    n = tl.arange(0, N)
    t = tl.arange(0, T)
    d_ok = d < channels
    h_at = d[:, None] * N + n[None, :]  # (D, N)
    u_ptr += row * length * channels
    delta_ptr += row * length * channels
    y_ptr += row * length * channels
    b_ptr += row * length * N
    c_ptr += row * length * N
    h_ptr += row * (length + 1) * channels * N
    rates = tl.load(a_ptr + h_at, mask=d_ok[:, None], other=0.0)
    h = tl.load(h_ptr + h_at, mask=d_ok[:, None], other=0.0)
    for first in range(0, length, T):
        step = first + t
        ok = step < length
        x_at = step[:, None] * channels + d[None, :]  # (T, D)
        x_ok = ok[:, None] & d_ok[None, :]
        n_at = step[:, None] * N + n[None, :]  # (T, N)
        delta = tl.load(delta_ptr + x_at, mask=x_ok, other=0.0)
        u = tl.load(u_ptr + x_at, mask=x_ok, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + n_at, mask=ok[:, None], other=0.0).to(tl.float32)
        c = tl.load(c_ptr + n_at, mask=ok[:, None], other=0.0).to(tl.float32)
        decay = tl.exp(delta[:, :, None] * rates[None, :, :])  # (T, D, N)
        inflow = (delta * u)[:, :, None] * b[:, None, :]
        decay, inflow = tl.associative_scan((decay, inflow), 0, _then)
        states = decay * h[None, :, :] + inflow
        kept_at = (step[:, None, None] + 1) * channels * N + h_at[None, :, :]
        tl.store(h_ptr + kept_at, states, mask=x_ok[:, :, None])
        tl.store(y_ptr + x_at, tl.sum(states * c[:, None, :], axis=2), mask=x_ok)
        h = tl.sum(tl.where((t == T - 1)[:, None, None], states, 0.0), axis=0)


@triton.jit
def _backward(
    u_ptr,
    delta_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    h_ptr,
    dy_ptr,
    dh_ptr,
    du_ptr,
    ddelta_ptr,
    da_ptr,
    db_ptr,
    dc_ptr,
    length,
    channels,
    N: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
):
    """Gradients, shaped like their values, but da (b, d, n) and db, dc (blocks, b, l, n).

    dh (b, d, n) enters as the gradient of the last state and leaves as that of the first.
    """
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * D + tl.arange(0, D)
    n = tl.arange(0, N)
    t = tl.arange(0, T)
    d_ok = d < channels
    h_at = d[:, None] * N + n[None, :]  # (D, N)
    partial = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + row) * length * N
    x_row, n_row = row * length * channels, row * length * N
    h_ptr += row * (length + 1) * channels * N
    dh_ptr += row * channels * N
    rates = tl.load(a_ptr + h_at, mask=d_ok[:, None], other=0.0)
    # What later tiles add to the gradient of the last state of this tile.
    carry = tl.load(dh_ptr + h_at, mask=d_ok[:, None], other=0.0)
    da = tl.zeros((D, N), dtype=tl.float32)
    tiles = tl.cdiv(length, T)
    for tile in range(0, tiles):
        step = (tiles - tile) * T - 1 - t  # from late to early
        ok = step < length
        x_at = step[:, None] * channels + d[None, :]  # (T, D)
        x_ok = ok[:, None] & d_ok[None, :]
        n_at = step[:, None] * N + n[None, :]  # (T, N)
        after_ok = (step[:, None] + 1 < length) & d_ok[None, :] & (t > 0)[:, None]
        delta = tl.load(delta_ptr + x_row + x_at, mask=x_ok, other=0.0)
        delta_after = tl.load(delta_ptr + x_row + x_at + channels, mask=after_ok, other=0.0)
        u = tl.load(u_ptr + x_row + x_at, mask=x_ok, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + n_row + n_at, mask=ok[:, None], other=0.0).to(tl.float32)
        c = tl.load(c_ptr + n_row + n_at, mask=ok[:, None], other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + x_row + x_at, mask=x_ok, other=0.0)
        kept_at = step[:, None, None] * channels * N + h_at[None, :, :]
        h_before = tl.load(h_ptr + kept_at, mask=x_ok[:, :, None], other=0.0)  # h_{t-1}

        # dh_t = C_t dy_t + decay_{t+1} dh_{t+1}
        decay = tl.exp(delta_after[:, :, None] * rates[None, :, :])  # (T, D, N)
        inflow = dy[:, :, None] * c[:, None, :]
        decay, inflow = tl.associative_scan((decay, inflow), 0, _then)
        dh = decay * carry[None, :, :] + inflow

        decay = tl.exp(delta[:, :, None] * rates[None, :, :])
        decayed = decay * h_before
        h = decayed + (delta * u)[:, :, None] * b[:, None, :]
        dexponent = dh * decayed  # of delta_t A
        along_b = tl.sum(dh * b[:, None, :], axis=2)  # (T, D)
        from_decay = tl.sum(dexponent * rates[None, :, :], axis=2)
        tl.store(du_ptr + x_row + x_at, along_b * delta, mask=x_ok)
        tl.store(ddelta_ptr + x_row + x_at, along_b * u + from_decay, mask=x_ok)
        da += tl.sum(dexponent * delta[:, :, None], axis=0)
        db = tl.sum(dh * (delta * u)[:, :, None], axis=1)  # (T, N)
        tl.store(db_ptr + partial + n_at, db, mask=ok[:, None])
        dc = tl.sum(dy[:, :, None] * h, axis=1)
        tl.store(dc_ptr + partial + n_at, dc, mask=ok[:, None])
        carry = tl.sum(tl.where((t == T - 1)[:, None, None], decay * dh, 0.0), axis=0)
    tl.store(da_ptr + row * channels * N + h_at, da, mask=d_ok[:, None])
    tl.store(dh_ptr + h_at, carry, mask=d_ok[:, None])


class _SelectiveScan(torch.autograd.Function):
    """Ties both kernels into autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        h: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `triton_selective_scan`."""
        batch, length, channels = u.shape
        n = A.shape[0]
        u, delta, B, C = u.contiguous(), delta.float().contiguous(), B.contiguous(), C.contiguous()
        rates = A.float().T.contiguous()
        y = torch.empty_like(delta)
        states = delta.new_empty(batch, length + 1, channels, n)
        states[:, 0] = h.transpose(1, 2)
        _forward[(batch, triton.cdiv(channels, CHANNELS))](
            u, delta, rates, B, C, y, states, length, channels,
            N=n, T=STEPS, D=CHANNELS, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(u, delta, rates, B, C, states)
        return y, states[:, -1].transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all six inputs from those of y (b, l, d) and of h (b, n, d)."""
        u, delta, rates, B, C, states = ctx.saved_tensors
        batch, length, channels = u.shape
        n = rates.shape[1]
        blocks = triton.cdiv(channels, CHANNELS)
        du, ddelta = torch.empty_like(delta), torch.empty_like(delta)
        dh = dh_last.transpose(1, 2).contiguous()
        da = torch.empty_like(dh)
        db = delta.new_empty(blocks, batch, length, n)
        dc = torch.empty_like(db)
        _backward[(batch, blocks)](
            u, delta, rates, B, C, states, dy.contiguous(), dh,
            du, ddelta, da, db, dc, length, channels,
            N=n, T=STEPS, D=CHANNELS, num_warps=WARPS,
        )  # fmt: skip
        dh = dh.transpose(1, 2)
        return du.to(u.dtype), ddelta, da.sum(0).T, db.sum(0).to(B.dtype), dc.sum(0).to(C.dtype), dh


def triton_selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence of `pipeline.model.selective_scan`, differentiable, on a CUDA device.

    Args:
        u: (b, l, d) input, any float type.
        delta: (b, l, d) float32 step size after softplus.
        A: (n, d) float32 decay rates, negative; n a power of two.
        B: (b, l, n) input map, any float type.
        C: (b, l, n) output map, any float type.
        h: (b, n, d) float32 state before the first step.

    Returns:
        y (b, l, d) without the skip, and the state after the last step, both float32.
    """
    y, h_last = _SelectiveScan.apply(u, delta, A, B, C, h)
    return y, h_last


def worst_error(device: str, batch: int = 2, length: int = 37, channels: int = 20) -> float:
    """Compares outputs and all gradients with the reference loop on random inputs.

    Args:
        device: Where to run; "cpu" works under TRITON_INTERPRET=1 only.
        batch: Sequences.
        length: Steps; the default is no multiple of `STEPS`, to meet the masks.
        channels: Channels; the default is no multiple of `CHANNELS`.

    Returns:
        The largest ‖ours - reference‖ / ‖reference‖ of y, h and the six gradients.
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    n = 16
    inputs = (
        draw(batch, length, channels),
        torch.nn.functional.softplus(draw(batch, length, channels)),
        -torch.exp(draw(n, channels)),
        draw(batch, length, n),
        draw(batch, length, n),
        draw(batch, n, channels),
    )
    weights = draw(batch, length, channels), draw(batch, n, channels)

    def run(scan: SelectiveScan) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in inputs]
        y, h = scan(*leaves)
        loss = (y * weights[0]).sum() + (h * weights[1]).sum()
        return [y, h, *torch.autograd.grad(loss, leaves)]

    return max(
        ((ours - reference).norm() / reference.norm()).item()
        for ours, reference in zip(run(triton_selective_scan), run(selective_scan), strict=True)
    )
