# SPDX-License-Identifier: MIT
"""How long a token may take on a board, predicted from the kernel's measured times.

A token waits for the memory or for the multiprocessors, whichever is slower:

    memory  = bytes / (bandwidth of the board * share)
    compute = time on the stand-in * its highest clock / the board's
                                   * its multiprocessors / the board's

The stand-in is part of a larger GPU with as many multiprocessors as the board and a bus that it
cannot fill, so its time is the compute side. The range runs from a share of 1, the board's data
sheet, to the share that the kernel reached where it is nearest to a bus, on that whole GPU; the
multiprocessors of the two differ in more than their clock, which no range here covers.
"""

from __future__ import annotations

import io
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.architecture import PUBLISHED, MambaArchitecture
from pipeline.measured_decode import (
    BUS_SHARE,
    CLOCK_MHZ,
    MILLISECONDS,
    MULTIPROCESSORS,
    STAND_IN,
)
from pipeline.roofline import BOARDS, board_limits, decode_work


class ExpectedDecoding(BaseModel):
    """A range for one token of one text in one power mode. Predicted.

    Attributes:
        kind: Says so to whoever reads the JSON.
        power_mode: As nvpmodel calls it.
        memory_ms: The bytes at the bandwidth of the data sheet.
        compute_ms: The stand-in's time, scaled.
        fastest_ms: The slower of the two.
        slowest_ms: The same with the measured share of the bandwidth.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["prediction"] = "prediction"
    power_mode: str
    memory_ms: float
    compute_ms: float
    fastest_ms: float
    slowest_ms: float


def expected_decoding(
    architecture: MambaArchitecture, precision: str, board_name: str
) -> list[ExpectedDecoding]:
    """One range for each power mode of a board; none where these sizes were not measured.

    Args:
        architecture: Sizes.
        precision: "fp32", "fp16", "int8" or "int4".
        board_name: A key of `roofline.BOARDS`.

    Raises:
        UsageError: Unknown precision or board; names the choices.
    """
    board_limits(board_name)
    moved = decode_work(architecture, precision).bytes
    names = (name for name, published in PUBLISHED.items() if published == architecture)
    measured_ms = MILLISECONDS.get((next(names, ""), precision))
    if measured_ms is None:
        return []
    ranges = []
    for mode in BOARDS[board_name].modes:
        memory_ms = moved / board_limits(board_name, mode.name).memory_gb_per_s / 1e6
        clocks = CLOCK_MHZ / mode.gpu_clock_mhz * MULTIPROCESSORS / mode.multiprocessors
        compute_ms = measured_ms * clocks
        ranges.append(
            ExpectedDecoding(
                power_mode=mode.name,
                memory_ms=memory_ms,
                compute_ms=compute_ms,
                fastest_ms=max(memory_ms, compute_ms),
                slowest_ms=max(memory_ms / BUS_SHARE, compute_ms),
            )
        )
    return ranges


def render_expected(ranges: list[ExpectedDecoding], width: int = 78) -> str:
    """The ranges as text for a terminal; says so where there are none.

    Args:
        ranges: Of `expected_decoding`.
        width: Columns.
    """
    if not ranges:
        return "No range for a token: the kernel was not measured with these sizes.\n"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("power mode", "memory", "multiprocessors", "a token", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "power mode" else "right")
    for r in ranges:
        table.add_row(
            r.power_mode,
            f"{r.memory_ms:,.2f} ms",
            f"{r.compute_ms:,.2f} ms",
            f"{r.fastest_ms:,.2f} to {r.slowest_ms:,.2f} ms",
            f"{1e3 / r.slowest_ms:,.0f} to {1e3 / r.fastest_ms:,.0f}",
        )
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print("A token of one text in each power mode. Predicted, not measured on a board.")
    console.print(
        table,
        f"From the kernel's time on {STAND_IN}, scaled by clock, and the bytes over the board's "
        f"bandwidth: all of it, or the {100 * BUS_SHARE:.0f} % that the kernel reached on the "
        "whole of that GPU.",
    )
    lines = (line.rstrip() for line in console.export_text().splitlines())
    return "\n".join(lines) + "\n"
