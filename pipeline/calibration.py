# SPDX-License-Identifier: MIT
"""Chooses packed weights by a text, so that each product keeps its result rather than its weights.

Source: GPTQ (Frantar et al., arXiv:2210.17323, algorithm 1). The columns of a matrix are rounded
one after the other, and what rounding one has cost is made up for in those not yet rounded, as
far as the inputs that the text brings there (their second moments) allow. A block sees the
residual stream that the packed blocks before it produce. One block is in memory at a time.

Embedding and head are rounded to nearest: the first is a table to look up in, the second is kept
at 8 bits, where nothing is left to gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.architecture import MambaArchitecture
from pipeline.errors import UsageError
from pipeline.model import Block, rms_norm, selective_scan
from pipeline.quantize import (
    Floats,
    Packing,
    Scales,
    Words,
    group_scales,
    nearest_codes,
    pack,
)

SEQUENCE_TOKENS = 512
"""The text is cut into stretches of this length, each read from an empty state."""

# Stretches that go through a block at once; their activations are its largest temporaries.
_STRETCHES_AT_ONCE = 4
# Added to the diagonal of the second moments, as a share of its mean (the value of the paper).
_DAMPING = 0.01
# Columns whose errors are carried to all later ones in one product (likewise).
_COLUMNS_AT_ONCE = 128
# Shares of a group's largest weight that are tried as the reach of its scale. Cutting off the
# largest pays where it makes the steps of all others finer.
_REACHES = tuple(round(1 - 0.025 * step, 3) for step in range(13))


class Calibrator:
    """The residual stream of a text on its way through the blocks.

    Args:
        architecture: Sizes of the model.
        token_ids: The text.
        max_tokens: Tokens to read of it at most.

    Raises:
        UsageError: The text is too short.
    """

    def __init__(
        self, architecture: MambaArchitecture, token_ids: list[int], max_tokens: int
    ) -> None:
        stretches = min(len(token_ids), max_tokens) // SEQUENCE_TOKENS
        if stretches < 1:
            raise UsageError(
                f"the calibration text has {len(token_ids)} tokens (--calibration-tokens "
                f"{max_tokens}); at least {SEQUENCE_TOKENS} are needed",
                fix="give a longer text; 16 thousand tokens or more work well",
            )
        self.tokens = stretches * SEQUENCE_TOKENS
        self._architecture = architecture
        self._token_ids = torch.tensor(token_ids[: self.tokens]).view(stretches, SEQUENCE_TOKENS)
        self._residual = torch.empty(0)  # (stretch, l, m) float32

    def choose(
        self, part: str, tensors: Mapping[str, Tensor], packed: Mapping[str, Packing]
    ) -> dict[str, tuple[Words, Scales]]:
        """Words and scales of those matrices of a part that the text has a say in.

        Args:
            part: "embedding", "layers.{i}", "norm" or "head", in this order; only matrices of
                blocks are chosen here.
            tensors: Its weights, float32, by full name.
            packed: How matrices shall be packed, by full name.

        Raises:
            CheckpointCorruptError: A weight is not a number a scale can stand for.
        """
        if not part.startswith("layers."):
            return {}
        prefix = f"{part}."
        moments = _Moments(self._block(prefix, tensors))
        for _ in self._through(moments.block):
            pass
        return {
            name: compensated(
                name, tensors[name].numpy(), moments.of[name.removeprefix(prefix)], packed[name]
            )
            for name in tensors
            if name in packed
        }

    def follow(self, part: str, stored: Mapping[str, Floats]) -> None:
        """Leads the residual stream through a part, with the weights as they were stored."""
        tensors = {name: torch.from_numpy(value) for name, value in stored.items()}
        if part == "embedding":
            self._residual = functional.embedding(self._token_ids, tensors["embedding.weight"])
        if not part.startswith("layers."):
            return
        block = self._block(f"{part}.", tensors)
        for start, after in self._through(block):
            self._residual[start : start + len(after)] = after

    def _block(self, prefix: str, tensors: Mapping[str, Tensor]) -> Block:
        with torch.device("meta"):
            block = Block(self._architecture)
        values = {name.removeprefix(prefix): value for name, value in tensors.items()}
        block.load_state_dict(values, assign=True)
        return block.eval()

    def _through(self, block: Block) -> Iterator[tuple[int, Tensor]]:
        """Yields the number of a first stretch, and the residual of some from there on."""
        a = self._architecture
        for start in range(0, len(self._residual), _STRETCHES_AT_ONCE):
            before = self._residual[start : start + _STRETCHES_AT_ONCE]
            conv_state = torch.zeros(a.conv_state_shape(len(before))[1:])
            ssm_state = torch.zeros(a.ssm_state_shape(len(before))[1:])
            with torch.inference_mode():
                after, _, _ = block(before, conv_state, ssm_state, selective_scan)
            yield start, after


class _Moments:
    """Gathers the second moments (in, in) of what a block multiplies its matrices with.

    Attributes:
        block: The block to run the text through.
        of: The moments, by the matrix's name within the block.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.of: dict[str, Tensor] = {}
        for name in ("in_proj", "x_proj", "out_proj"):
            module: torch.nn.Linear = getattr(block, name)
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: self._add(f"{name}.weight", inputs[0])
            )
        # The reference multiplies with dt_proj outside its module.
        block.x_proj.register_forward_hook(lambda _, __, mixed: self._add_step_size(mixed))

    def _add_step_size(self, mixed: Tensor) -> None:
        a = self.block.architecture
        dt = mixed[..., : a.dt_rank]
        if a.mixer_norm_eps is not None:
            dt = rms_norm(dt, a.mixer_norm_eps)
        self._add("dt_proj.weight", dt)

    def _add(self, name: str, inputs: Tensor) -> None:
        flat = inputs.flatten(end_dim=-2)
        gathered = self.of.get(name)
        moments = flat.T @ flat
        self.of[name] = moments if gathered is None else gathered.add_(moments)


def compensated(
    name: str, matrix: Floats, moments: Tensor, packing: Packing
) -> tuple[Words, Scales]:
    """Packs a matrix so that its products with inputs of these moments change least.

    Args:
        name: Of the matrix, for messages.
        matrix: (out, in).
        moments: (in, in) float32, sum of x xᵀ over the inputs x.
        packing: How.

    Returns:
        Words and scales, with the shapes of `Packing.shapes`.

    Raises:
        CheckpointCorruptError: A weight is not a number a scale can stand for.
    """
    rows, columns = matrix.shape
    propagation = _propagation(moments)
    # Columns are worked on, so they are made the rows of what is worked on.
    weights = matrix.T.copy()
    codes = np.empty((columns, rows), dtype=np.uint8)
    scales = np.empty((columns // packing.group_size, rows), dtype=np.float16)
    stride = max(_COLUMNS_AT_ONCE, packing.group_size)
    for start in range(0, columns, stride):
        end = min(start + stride, columns)
        errors = np.empty((end - start, rows), dtype=np.float32)
        for column in range(start, end):
            group, offset = divmod(column, packing.group_size)
            if offset == 0:
                ahead = weights[column : column + packing.group_size]
                scales[group] = _fitting_scales(name, ahead.T, packing)
            codes[column] = nearest_codes(weights[column], scales[group], packing)
            stored = (codes[column].astype(np.float32) - packing.zero_point) * scales[group]
            error = (weights[column] - stored) / propagation[column, column]
            weights[column + 1 : end] -= propagation[column, column + 1 : end, None] * error
            errors[column - start] = error
        weights[end:] -= propagation[start:end, end:].T @ errors
    return pack(np.ascontiguousarray(codes.T), packing.bits), np.ascontiguousarray(scales.T)


def _propagation(moments: Tensor) -> Floats:
    """Upper triangular (in, in): row i says how an error in column i is made up for later.

    It is the Cholesky factor of the inverse of the moments (section 3.3 of the paper), come by
    without the inverse: factored from the last column to the first, moments are R Rᵀ with an
    upper triangular R, and the factor is R's inverse.
    """
    damped = moments.double()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    # Inputs that the text never brings have no say; any positive number does for them.
    diagonal.add_(_DAMPING * mean if mean > 0 else 1.0)
    backwards = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(damped), dtype=damped.dtype)
    factor = torch.linalg.solve_triangular(backwards, identity, upper=True)
    propagation: Floats = factor.float().numpy()
    return propagation


def _fitting_scales(name: str, groups: Floats, packing: Packing) -> Scales:
    """The scale for each group (rows, group size) that rounds it with the least squared error."""
    widest = group_scales(name, groups, packing)
    best, best_error = widest, np.full(len(groups), np.inf, dtype=np.float32)
    for reach in _REACHES:
        scales = (widest.astype(np.float32) * reach).astype(np.float16)
        codes = nearest_codes(groups, scales[:, None], packing)
        stored = (codes.astype(np.float32) - packing.zero_point) * scales[:, None]
        error = np.square(stored - groups).sum(axis=1)
        best = np.where(error < best_error, scales, best)
        best_error = np.minimum(error, best_error)
    return best
