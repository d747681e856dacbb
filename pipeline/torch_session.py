# SPDX-License-Identifier: MIT
"""The torch reference as a backend: the baseline of every comparison, never the fast path."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture import MambaArchitecture
from pipeline.int8_activations import PRODUCTS, round_activations, widen_activations
from pipeline.model import Mamba, ModelState
from pipeline.quantize import Floats as Rows
from pipeline.quantize import read_dequantised
from pipeline.session import Floats, State, TokenIds
from pipeline.weights import WEIGHT_FILE


class TorchSession:
    """Runs `model.Mamba` on the CPU; see `session.Session`.

    Attributes:
        model: The model.

    Args:
        model: The model, in float32.
    """

    backend = "torch"

    def __init__(self, model: Mamba) -> None:
        self.model = model.eval()

    @property
    def architecture(self) -> MambaArchitecture:
        """Sizes of the loaded model."""
        return self.model.architecture

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        """See `session.Session.prefill`."""
        before = None
        if state is not None:
            before = ModelState(torch.from_numpy(state.conv), torch.from_numpy(state.ssm))
        with torch.inference_mode():
            logits, after = self.model(torch.from_numpy(token_ids), before)
        wanted = logits if all_logits else logits[:, -1]
        return wanted.numpy(), State(after.conv.numpy(), after.ssm.numpy())

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        """See `session.Session.step`."""
        return self.prefill(token_ids[:, None], state)

    def replace_inputs(
        self, replace: Callable[[str, Rows], Rows], products: Collection[str] = PRODUCTS
    ) -> None:
        """From now on, multiplies with something else than what the blocks compute.

        Args:
            replace: Given the name of a matrix and its inputs (tokens, columns) float32, returns
                what to multiply instead.
            products: Names of the matrices.
        """

        def hook(name: str) -> Any:
            def run(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                (x,) = inputs
                rows = replace(name, x.reshape(-1, x.shape[-1]).numpy())
                return (torch.from_numpy(rows).reshape(x.shape),)

            return run

        for name in products:
            for block in self.model.layers:
                module = block.get_submodule(name.removesuffix(".weight"))
                module.register_forward_pre_hook(hook(name))

    def round_inputs(self) -> None:
        """From now on, computes with int8 activations as the kernels do, float32 sums apart."""
        self.replace_inputs(lambda _, x: widen_activations(*round_activations(x)))


def open_torch_session(
    folder: Path, architecture: MambaArchitecture, threads: int | None = None
) -> TorchSession:
    """Loads a bundle's weights into the reference model, widened or unpacked to float32.

    Args:
        folder: The bundle or engine; the caller has checked its manifest.
        architecture: Its sizes.
        threads: CPU threads; None leaves torch's own choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with torch.device("meta"):
        model = Mamba(architecture)
    values = {
        name: torch.from_numpy(value)
        for name, value in read_dequantised(folder / WEIGHT_FILE, architecture)
    }
    model.load_state_dict(values, assign=True)
    return TorchSession(model)
