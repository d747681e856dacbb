# SPDX-License-Identifier: MIT
"""Published shapes with random weights, to measure speed where no checkpoint can be fetched.

A Mamba's time and memory depend on its shapes alone, so these are enough for benchmarks; the
text they produce is noise. Weights follow the initialisation of the Mamba paper
(arXiv:2312.00752, section 3.6), which keeps activations in the range of a trained model.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.architecture import PUBLISHED, MambaArchitecture
from pipeline.errors import CheckpointNotFoundError

PREFIX = "random:"


@dataclass(frozen=True)
class RandomCheckpoint:
    """Looks like an opened `checkpoint.Checkpoint`; see there for the attributes."""

    name: str
    architecture: MambaArchitecture
    format: str = "random"
    folder: Path | None = None
    files: tuple[Path, ...] = ()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields each weight in the order and shape of `architecture.weights()`, float32.

        Each tensor has a seed of its own, from its name: the same model every time, whatever
        part of it is made.
        """
        for name, weight in self.architecture.weights().items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            yield name, _initial(name, weight.shape, self.architecture, generator)


def open_random(spelling: str) -> RandomCheckpoint:
    """The checkpoint that `random:NAME` means.

    Raises:
        CheckpointNotFoundError: No published model has this name.
    """
    name = spelling.removeprefix(PREFIX)
    if name not in PUBLISHED:
        raise CheckpointNotFoundError(
            f"no published shape is called {name!r}",
            fix=f"choose one of: {', '.join(PREFIX + known for known in PUBLISHED)}",
        )
    return RandomCheckpoint(name=f"random-{name}", architecture=PUBLISHED[name])


def _initial(
    name: str, shape: tuple[int, ...], a: MambaArchitecture, generator: torch.Generator
) -> torch.Tensor:
    if name.endswith("norm.weight") or name.endswith(".D"):
        return torch.ones(shape)
    if name.endswith(".A"):
        return -torch.arange(1.0, a.d_state + 1)[:, None].repeat(1, a.d_inner)
    if name.endswith("conv.bias"):
        return torch.zeros(shape)
    values = torch.empty(shape)
    if name.endswith("dt_proj.bias"):
        # Inverse softplus of step sizes spread from 0.001 to 0.1 (log-uniform).
        steps = torch.exp(values.uniform_(-6.9, -2.3, generator=generator))
        return steps + torch.log(-torch.expm1(-steps))
    if name == "embedding.weight":
        return values.normal_(std=0.02, generator=generator)
    fan_in = shape[0] if name.endswith("conv.weight") else shape[-1]
    values.uniform_(-1, 1, generator=generator).mul_(fan_in**-0.5)
    # Each block adds to the residual stream; dividing keeps its size (as in GPT-2).
    return values.div_(a.n_layer**0.5) if name.endswith("out_proj.weight") else values
