# SPDX-License-Identifier: MIT
"""The sizes of a Mamba-1 and the names, shapes and kinds of its weights.

This is the one home of both: the checkpoint reader checks against it, the model and the
exporter are built from it, and the roofline counts its bytes.

Letters, here and everywhere: b batch, l length, d inner channels, n state, k convolution
width, r rank of the step size; upper case A, B, C, D are only the tensors of the Mamba
paper (arXiv:2312.00752, algorithm 2).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

WeightKind = Literal["matrix", "vector"]


@dataclass(frozen=True)
class Weight:
    """One tensor of `weights.safetensors`.

    Attributes:
        shape: Sizes, outermost first; matrices are [out, in] as in the checkpoint.
        kind: "matrix" is stored in the bundle's precision (and may be quantised); "vector"
            covers all else (convolution, A, D, norms, biases) and stays float32.
    """

    shape: tuple[int, ...]
    kind: WeightKind

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class MambaArchitecture:
    """Sizes of one Mamba-1 model (state-spaces Mamba and Falcon-Mamba).

    Attributes:
        d_model: Width of the residual stream.
        n_layer: Number of blocks.
        d_inner: Channels inside a block (d), usually 2 * d_model.
        d_state: State size of a channel (n).
        d_conv: Width of the causal convolution (k).
        dt_rank: Rank of the step-size projection (r).
        vocab_size: Token ids the model may read and produce: 0 <= id < vocab_size.
        vocab_rows: Rows of the embedding; rows from vocab_size on are padding.
        tied_head: Whether the head reuses the embedding.
        norm_eps: Epsilon of the RMS norms of the residual stream.
        mixer_norm_eps: Epsilon of Falcon-Mamba's weightless RMS norms on dt, B and C;
            None for a model without them.
    """

    d_model: int
    n_layer: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    vocab_size: int
    vocab_rows: int
    tied_head: bool = True
    norm_eps: float = 1e-5
    mixer_norm_eps: float | None = None

    def layer_weights(self) -> dict[str, Weight]:
        """Weights of one block, by the name that follows `layers.{i}.`."""
        d, n, k, r, m = self.d_inner, self.d_state, self.d_conv, self.dt_rank, self.d_model
        return {
            "norm.weight": Weight((m,), "vector"),
            "in_proj.weight": Weight((2 * d, m), "matrix"),
            "conv.weight": Weight((k, d), "vector"),
            "conv.bias": Weight((d,), "vector"),
            "x_proj.weight": Weight((r + 2 * n, d), "matrix"),
            "dt_proj.weight": Weight((d, r), "matrix"),
            "dt_proj.bias": Weight((d,), "vector"),
            "A": Weight((n, d), "vector"),
            "D": Weight((d,), "vector"),
            "out_proj.weight": Weight((m, d), "matrix"),
        }

    def weights(self) -> dict[str, Weight]:
        """All weights in file order: embedding, blocks, final norm, untied head."""
        table = {"embedding.weight": Weight((self.vocab_rows, self.d_model), "matrix")}
        for layer in range(self.n_layer):
            for name, weight in self.layer_weights().items():
                table[f"layers.{layer}.{name}"] = weight
        table["norm.weight"] = Weight((self.d_model,), "vector")
        if not self.tied_head:
            table["head.weight"] = Weight((self.vocab_rows, self.d_model), "matrix")
        return table

    @property
    def head_weight(self) -> str:
        """Name of the matrix that turns the last hidden state into logits."""
        return "embedding.weight" if self.tied_head else "head.weight"

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(weight.elements for weight in self.weights().values())

    def conv_state_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape [layer, b, k-1, d] of the last inputs that the convolutions remember."""
        return (self.n_layer, batch, self.d_conv - 1, self.d_inner)

    def ssm_state_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape [layer, b, n, d] of the recurrent states h."""
        return (self.n_layer, batch, self.d_state, self.d_inner)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MambaArchitecture:
        """The inverse of `to_dict`."""
        return cls(**values)


def state_spaces(d_model: int, n_layer: int) -> MambaArchitecture:
    """The shape that state-spaces gave its published models (github.com/state-spaces/mamba)."""
    return MambaArchitecture(
        d_model=d_model,
        n_layer=n_layer,
        d_inner=2 * d_model,
        d_state=16,
        d_conv=4,
        dt_rank=-(-d_model // 16),
        vocab_size=50277,
        vocab_rows=50280,
    )


PUBLISHED: dict[str, MambaArchitecture] = {
    "mamba-130m": state_spaces(768, 24),
    "mamba-370m": state_spaces(1024, 48),
    "mamba-790m": state_spaces(1536, 48),
    "mamba-1.4b": state_spaces(2048, 48),
    "mamba-2.8b": state_spaces(2560, 64),
    "falcon-mamba-7b": MambaArchitecture(
        d_model=4096,
        n_layer=64,
        d_inner=8192,
        d_state=16,
        d_conv=4,
        dt_rank=256,
        vocab_size=65024,
        vocab_rows=65024,
        tied_head=False,
        mixer_norm_eps=1e-6,
    ),
}
"""Published checkpoints by the name people use for them."""
