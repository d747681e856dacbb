# SPDX-License-Identifier: MIT
"""An evaluation for people: one table for the terminal, one chart for a page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.evaluation import Evaluation, Measured
from pipeline.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDEST = 400
CHART_FORMATS = ("svg", "png", "pdf")

# Readable on white and on black, and for eyes that tell red from green badly (Okabe and Ito).
# Divergences below this are the rounding of float32 and have no place on a logarithmic axis.
_SMALLEST_DIVERGENCE = 1e-7
_DOT, _TEXT, _RULE = "#0072b2", "#57606a", "#8c959f"


def render_table(evaluation: Evaluation, width: int = 100) -> str:
    """An evaluation as text for a terminal.

    Args:
        evaluation: What to show.
        width: Columns of the notes; the table takes what it needs.
    """
    e = evaluation
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in ("MB", "perplexity", "bits/byte", "change %", "KL, nats", "top-1 %"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in e.rows:
        table.add_row(
            row.name,
            f"{row.weight_bytes / 1e6:.2f}",
            f"{row.perplexity.value:.3f}",
            f"{row.bits_per_byte.value:.4f}",
            _number(row.perplexity_change_percent, "+.2f"),
            _number(row.kl_nats, ".5f"),
            _number(row.top1_percent, ".1f"),
        )
    console = Console(file=io.StringIO(), width=_WIDEST, record=True)
    console.print(f"{e.model}, {e.text.tokens:,} tokens of {e.text.name}", highlight=False)
    console.print(table)
    if e.reference is None:
        note = "No version in fp16 or fp32 among them, so none is compared with another."
    else:
        note = (
            f"Change of perplexity, divergence (KL) and agreement on the likeliest token (top-1) "
            f"are against {e.reference}."
        )
    has_intervals = e.rows[0].perplexity.low is not None
    around = f"In brackets: {e.interval}." if has_intervals else "Too few tokens for intervals."
    console.print(note, around, highlight=False, width=width)
    lines = (line.rstrip() for line in console.export_text().splitlines())
    return "\n".join(lines) + "\n"


def write_chart(evaluation: Evaluation, path: Path) -> None:
    """Draws change of perplexity and divergence, each with its interval, into one picture.

    Args:
        evaluation: What to show; versions that are compared with nothing are left out.
        path: File to write; its suffix is one of `CHART_FORMATS`.

    Raises:
        StorageError: The file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in evaluation.rows if row.kl_nats is not None][::-1]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 10}):
        figure = Figure(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _dots(left, [row.perplexity_change_percent for row in rows], "change of perplexity, %")
        _dots(right, [row.kl_nats for row in rows], "divergence (KL), nats")
        left.axvline(0, color=_RULE, linewidth=1)
        left.set_yticks(range(len(rows)), [row.name for row in rows])
        right.set_xscale("log")
        right.set_xlim(left=max(right.get_xlim()[0], _SMALLEST_DIVERGENCE))
        figure.suptitle(
            f"{evaluation.model} against {evaluation.reference}", color=_TEXT, fontsize=11
        )
        content = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(
            content, format=path.suffix[1:], transparent=True, dpi=150, metadata=metadata
        )
    write_atomically(path, content.getvalue())


def _dots(axes: Axes, values: list[Measured | None], title: str) -> None:
    for position, value in enumerate(values):
        if value is None:
            continue
        if value.low is not None and value.high is not None:
            axes.plot([value.low, value.high], [position] * 2, color=_DOT, linewidth=2)
        axes.plot(value.value, position, "o", color=_DOT, markersize=6)
    axes.set_xlabel(title, color=_TEXT)
    axes.tick_params(colors=_TEXT, length=0)
    axes.grid(visible=True, axis="x", color=_RULE, linewidth=0.4)
    axes.set_ylim(-0.6, len(values) - 0.4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)


def _number(measured: Measured | None, form: str) -> str:
    if measured is None:
        return "-"
    if measured.low is None:
        return f"{measured.value:{form}}"
    return f"{measured.value:{form}} ({measured.low:{form}} … {measured.high:{form}})"
