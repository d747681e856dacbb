# SPDX-License-Identifier: MIT
"""The whole of Mamba-1 in one file: the reference that every other backend is compared with.

Slow and plain on purpose. The graphs of `onnx_export` and the CUDA kernels compute the same
thing; when they disagree with this file, this file is right.

Glossary (shapes stand beside every line):
    b  batch            l  length           m  width of the residual stream (d_model)
    d  inner channels   n  state size       k  convolution width      r  rank of the step size
    u  input of the scan, delta its step size, z the gate
    A  (n, d) decay rates, stored as -exp(A_log);  B, C (b, l, n) input and output maps
    D  (d,) skip

One block, for one channel and one state (paper arXiv:2312.00752, equations 1 to 4 and
algorithm 2; zero-order hold on A, Euler on B, as in the Mamba code):
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t = C_t h_t + D u_t
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.architecture import MambaArchitecture


class ModelState(NamedTuple):
    """What a Mamba remembers; the tensors mirror `pipeline.session.State`.

    Attributes:
        conv: (layer, b, k-1, d), the last inputs of each convolution, oldest first.
        ssm: (layer, b, n, d) float32, the recurrent state h.
    """

    conv: Tensor
    ssm: Tensor


class SelectiveScan(Protocol):
    """Anything that computes `selective_scan`; training replaces it by a fused kernel."""

    def __call__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `selective_scan`."""


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence, one step after the other.

    Args:
        u: (b, l, d) input.
        delta: (b, l, d) step size after softplus.
        A: (n, d) decay rates, negative.
        B: (b, l, n) input map.
        C: (b, l, n) output map.
        h: (b, n, d) float32 state before the first step.

    Returns:
        y (b, l, d) without the skip, and the state after the last step, both float32.
    """
    u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, None, :] * A)  # (b, n, d)
        h = decay * h + (delta[:, t] * u[:, t])[:, None, :] * B[:, t, :, None]  # (b, n, d)
        outputs.append((C[:, t, None, :] @ h)[:, 0])  # (b, d)
    return torch.stack(outputs, dim=1), h


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution followed by SiLU.

    Args:
        x: (b, l, d) input.
        weight: (k, d), the last row multiplies the newest input.
        bias: (d,).
        state: (b, k-1, d), the inputs before x, oldest first.

    Returns:
        y (b, l, d) and the last k-1 inputs (b, k-1, d).
    """
    k, length = weight.shape[0], x.shape[1]
    window = torch.cat([state.to(x.dtype), x], dim=1)  # (b, k-1+l, d)
    y = bias + sum(weight[j] * window[:, j : j + length] for j in range(k))
    return functional.silu(y).to(x.dtype), window[:, length:]


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis, in float32; no weight."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """RMS norm with a weight (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, m) of any type -> (…, m) float32."""
        return rms_norm(x, self.eps) * self.weight


class Convolution(nn.Module):
    """The weights of `causal_conv1d`."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, channels) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `causal_conv1d`."""
        return causal_conv1d(x, self.weight, self.bias, state)


class Block(nn.Module):
    """Norm, mixer, residual. Parameter names are those of `architecture.layer_weights()`."""

    def __init__(self, architecture: MambaArchitecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.norm = RMSNorm(a.d_model, a.norm_eps)
        self.in_proj = nn.Linear(a.d_model, 2 * a.d_inner, bias=False)
        self.conv = Convolution(a.d_conv, a.d_inner)
        self.x_proj = nn.Linear(a.d_inner, a.dt_rank + 2 * a.d_state, bias=False)
        self.dt_proj = nn.Linear(a.dt_rank, a.d_inner, bias=True)
        # S4D-real start of the paper (section 3.6): A = -(1, 2, …, n) in every channel.
        steps = torch.arange(1, a.d_state + 1, dtype=torch.float32)
        self.A = nn.Parameter(-steps[:, None].repeat(1, a.d_inner))
        self.D = nn.Parameter(torch.ones(a.d_inner))
        self.out_proj = nn.Linear(a.d_inner, a.d_model, bias=False)

    def forward(
        self, residual: Tensor, conv_state: Tensor, ssm_state: Tensor, scan: SelectiveScan
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One block over a stretch of text.

        Args:
            residual: (b, l, m) float32.
            conv_state: (b, k-1, d).
            ssm_state: (b, n, d) float32.
            scan: The implementation of `selective_scan`.

        Returns:
            The new residual and both new states, shaped as they came.
        """
        a = self.architecture
        hidden = self.norm(residual).to(self.in_proj.weight.dtype)  # (b, l, m)
        x, z = self.in_proj(hidden).split(a.d_inner, dim=-1)  # 2 * (b, l, d)
        u, conv_state = self.conv(x, conv_state)  # (b, l, d)
        dt, B, C = self.x_proj(u).split([a.dt_rank, a.d_state, a.d_state], dim=-1)
        if a.mixer_norm_eps is not None:  # Falcon-Mamba, arXiv:2410.05355
            dt, B, C = (rms_norm(value, a.mixer_norm_eps).to(u.dtype) for value in (dt, B, C))
        step_size = functional.linear(dt, self.dt_proj.weight).float() + self.dt_proj.bias
        delta = functional.softplus(step_size)  # (b, l, d) float32
        y, ssm_state = scan(u, delta, self.A.float(), B, C, ssm_state)  # (b, l, d), (b, n, d)
        y = (y + self.D * u.float()) * functional.silu(z.float())  # (b, l, d)
        return residual + self.out_proj(y.to(u.dtype)).float(), conv_state, ssm_state


class Mamba(nn.Module):
    """A Mamba-1 language model; its state dict holds exactly `architecture.weights()`."""

    def __init__(
        self, architecture: MambaArchitecture, scan: SelectiveScan = selective_scan
    ) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.scan = scan
        self.embedding = nn.Embedding(a.vocab_rows, a.d_model)
        self.layers = nn.ModuleList(Block(a) for _ in range(a.n_layer))
        self.norm = RMSNorm(a.d_model, a.norm_eps)
        self.head = None if a.tied_head else nn.Linear(a.d_model, a.vocab_rows, bias=False)

    def new_state(self, batch: int) -> ModelState:
        """The state before the first token, on the model's device."""
        weight = self.embedding.weight
        return ModelState(
            conv=weight.new_zeros(self.architecture.conv_state_shape(batch)),
            ssm=weight.new_zeros(self.architecture.ssm_state_shape(batch), dtype=torch.float32),
        )

    def forward(
        self, token_ids: Tensor, state: ModelState | None = None
    ) -> tuple[Tensor, ModelState]:
        """Reads a stretch of text.

        Args:
            token_ids: (b, l) int64.
            state: What came before; None for the beginning of a text.

        Returns:
            Logits (b, l, vocab_size) float32 after every token, and the state after the last.
        """
        state = state or self.new_state(token_ids.shape[0])
        residual = self.embedding(token_ids).float()  # (b, l, m)
        conv_states, ssm_states = [], []
        for layer, block in enumerate(self.layers):
            residual, conv, ssm = block(residual, state.conv[layer], state.ssm[layer], self.scan)
            conv_states.append(conv)
            ssm_states.append(ssm)
        head = self.embedding.weight if self.head is None else self.head.weight
        hidden = self.norm(residual).to(head.dtype)
        # Rows past vocab_size only pad the matrix to a round size: they are no tokens.
        logits = functional.linear(hidden, head)[..., : self.architecture.vocab_size]
        return logits.float(), ModelState(torch.stack(conv_states), torch.stack(ssm_states))
