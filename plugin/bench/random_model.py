# SPDX-License-Identifier: MIT
"""A model with random weights on the GPU, as the decode step wants it; for benches and tests.

Packed matrices get random codes and scales of the size that trained weights have, so no model has
to be quantised first. `dequantised` gives the float32 weights that the codes stand for.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.architecture import MambaArchitecture
from pipeline.quantize import choose_packing
from pipeline.s6_decode import DecodeProblem, Matrix, Vector, workspace_bytes

MATRICES = ("in_proj", "x_proj", "dt_proj", "out_proj")
BITS = {"fp16": 16, "int8": 8, "int4": 4}


class RandomModel:
    """Weights, states and buffers of one model on the current GPU.

    Args:
        architecture: Sizes.
        precision: Of the blocks' matrices: fp16, int8 or int4.
        head_precision: Of embedding and head; None takes int8 for packed blocks.
        seed: Of the weights.
    """

    def __init__(
        self,
        architecture: MambaArchitecture,
        precision: str,
        head_precision: str | None = None,
        seed: int = 0,
    ) -> None:
        self.architecture = a = architecture
        self._random = torch.Generator("cuda").manual_seed(seed)
        head = head_precision or ("fp16" if precision == "fp16" else "int8")
        shapes = {name: a.layer_weights()[f"{name}.weight"].shape for name in MATRICES}
        self.packed: dict[str, tuple[torch.Tensor, torch.Tensor | None, int, int]] = {
            name: self._matrix(a.n_layer, *shapes[name], precision) for name in MATRICES
        }
        self.packed["embedding"] = self._matrix(1, a.vocab_rows, a.d_model, head)
        n, d, layers = a.d_state, a.d_inner, a.n_layer
        steps = torch.arange(1, n + 1, device="cuda", dtype=torch.float32)
        dt = torch.exp(torch.rand(layers, d, device="cuda", generator=self._random) * 4.6 - 6.9)
        self.vectors = {
            "norm": 1 + 0.1 * self._normal(layers, a.d_model),
            "conv_weight": 0.5 * self._normal(layers, a.d_conv, d),
            "conv_bias": 0.1 * self._normal(layers, d),
            "dt_bias": dt + torch.log(-torch.expm1(-dt)),  # softplus(dt_bias) = dt
            "A": -steps[:, None].repeat(layers, 1, d) * (1 + 0.1 * self._normal(layers, n, d)),
            "D": 1 + 0.1 * self._normal(layers, d),
        }
        self.final_norm = 1 + 0.1 * self._normal(a.d_model)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", generator=self._random)

    def _matrix(
        self, layers: int, rows: int, columns: int, precision: str
    ) -> tuple[torch.Tensor, torch.Tensor | None, int, int]:
        """Data, scales [layers, groups, rows], bits, group size."""
        bits = BITS[precision]
        if bits == 16:
            data = torch.empty(layers, rows, columns, device="cuda", dtype=torch.float16)
            data.normal_(0, columns**-0.5, generator=self._random)
            return data, None, 16, 0
        packing = choose_packing(precision, columns)
        assert packing is not None
        words = torch.empty(layers, rows, columns * bits // 32, device="cuda", dtype=torch.int32)
        for layer in words:  # codes around the zero point, or 24 blocks amplify the mean
            codes = layer.view(torch.uint8).random_(1, 2**bits, generator=self._random)
            if bits == 4:
                upper = torch.empty_like(codes).random_(1, 16, generator=self._random)
                codes |= upper << 4
        groups = columns // packing.group_size
        spread = columns**-0.5 / (2**bits / 12**0.5)
        scales = spread * (0.5 + torch.rand(layers, groups, rows, device="cuda",
                                            generator=self._random))  # fmt: skip
        return words, scales.half(), bits, packing.group_size

    def matrix(self, name: str) -> Matrix:
        """One matrix as the library takes it."""
        data, scales, bits, group_size = self.packed[name]
        return Matrix(
            bits=bits,
            group_size=group_size,
            data=data.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            layer_bytes=data[0].nbytes,
            scales_layer_bytes=0 if scales is None else scales[0].nbytes,
        )

    def problem(self, batch: int, sms: int, buffers: dict[str, torch.Tensor]) -> DecodeProblem:
        """The decode step of `batch` texts; new buffers are put into `buffers`."""
        a = self.architecture
        layers = a.n_layer
        buffers["conv_state"] = torch.zeros(layers, batch, a.d_conv - 1, a.d_inner, device="cuda")
        buffers["ssm_state"] = torch.zeros(layers, batch, a.d_state, a.d_inner, device="cuda")
        buffers["logits"] = torch.full((batch, a.vocab_size), float("nan"), device="cuda")
        buffers["ids"] = torch.zeros(batch, device="cuda", dtype=torch.int32)
        problem = DecodeProblem(
            b=batch, m=a.d_model, d=a.d_inner, n=a.d_state, k=a.d_conv, r=a.dt_rank,
            layers=layers, vocab=a.vocab_size, vocab_rows=a.vocab_rows, sm_count=sms,
            norm_eps=a.norm_eps, mixer_norm_eps=a.mixer_norm_eps or 0.0,
            embedding=self.matrix("embedding"), head=self.matrix("embedding"),
            **{name: self.matrix(name) for name in MATRICES},
            **{name: Vector(data=value.data_ptr(), layer_bytes=value[0].nbytes)
               for name, value in self.vectors.items()},
            final_norm=self.final_norm.data_ptr(),
            token_ids=buffers["ids"].data_ptr(), next_ids=buffers["ids"].data_ptr(),
            conv_state=buffers["conv_state"].data_ptr(), ssm_state=buffers["ssm_state"].data_ptr(),
            logits=buffers["logits"].data_ptr(),
        )  # fmt: skip
        buffers["workspace"] = torch.zeros(
            workspace_bytes(problem), device="cuda", dtype=torch.uint8
        )
        problem.workspace = buffers["workspace"].data_ptr()
        return problem

    @property
    def weight_bytes(self) -> int:
        """Bytes that a token must read: every matrix with its scales, and the vectors."""
        tensors: list[Any] = [self.final_norm, *self.vectors.values()]
        for data, scales, _, _ in self.packed.values():
            tensors += [data] if scales is None else [data, scales]
        return sum(tensor.nbytes for tensor in tensors)

    def dequantised(self) -> dict[str, torch.Tensor]:
        """The weights of `pipeline.model.Mamba`, float32."""
        values = {"embedding.weight": self._wide("embedding", 0), "norm.weight": self.final_norm}
        vectors = {"norm": "norm.weight", "conv_weight": "conv.weight", "conv_bias": "conv.bias",
                   "dt_bias": "dt_proj.bias", "A": "A", "D": "D"}  # fmt: skip
        for layer in range(self.architecture.n_layer):
            for name in MATRICES:
                values[f"layers.{layer}.{name}.weight"] = self._wide(name, layer)
            for name, target in vectors.items():
                values[f"layers.{layer}.{target}"] = self.vectors[name][layer]
        return values

    def _wide(self, name: str, layer: int) -> torch.Tensor:
        data, scales, bits, group_size = self.packed[name]
        if scales is None:
            return data[layer].float()
        positions = torch.arange(0, 32, bits, device="cuda", dtype=torch.int32)
        codes = (data[layer][..., None] >> positions) & (2**bits - 1)
        steps = codes.flatten(1).float() - 2 ** (bits - 1)
        return steps * scales[layer].t().float().repeat_interleave(group_size, dim=1)
