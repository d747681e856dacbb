# SPDX-License-Identifier: MIT
"""The charts of many records: speed against power, roofline by board, heat and clocks by date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.charts import (
    BAD,
    MUTED,
    RULE,
    SERIES,
    Dots,
    Drawing,
    Spot,
    both_widths,
    is_narrow,
    label_axes,
)
from pipeline.fleet_store import Row
from pipeline.records import number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

_PRECISIONS = ("fp16", "int8", "int4")  # any other has the fourth colour
_ROW_HEIGHT = 34
_MOST_STRIPS = 24


@dataclass(frozen=True)
class FleetChart:
    """A chart with what the page says around it.

    Attributes:
        title: Heading.
        note: What it shows.
        legend: Names and the variables of their colours.
        drawing: The chart.
    """

    title: str
    note: str
    legend: Sequence[tuple[str, str]]
    drawing: Markup


def fleet_charts(records: Sequence[Row], groups: Sequence[Row]) -> list[FleetChart]:
    """Every chart for which there are values.

    Args:
        records: One row for each record; see `fleet_store`.
        groups: One row for each group of comparable ones.
    """
    charts = []
    powered = [row for row in records if row["mean_w"] is not None]
    if powered:
        note = f"Each dot is one of {len(powered):,} records, each ring the median of a group."
        drawing = both_widths(lambda axes: _draw_speed(axes, powered, groups), "fleet", height=320)
        charts.append(FleetChart("Speed against power", note, _legend(powered), drawing))
    shared = [row for row in records if row["share_percent"] is not None]
    if shared:
        charts.append(_roofline(shared))
    heated = [row for row in records if row["peak_c"] is not None]
    if heated:
        note = (
            "The highest temperature of each run by its date. Red: the run was throttled, by its "
            "own checks."
        )
        drawing = both_widths(lambda axes: _draw_history(axes, heated, "peak_c", "°C"), "fleet")
        charts.append(FleetChart("Temperature over time", note, (), drawing))
    clocked = [row for row in records if row["clock_lowest_mhz"] is not None]
    if clocked:
        note = "The lowest clock of the GPU while decoding, by date; red as above."
        drawing = both_widths(
            lambda axes: _draw_history(axes, clocked, "clock_lowest_mhz", "MHz"), "fleet"
        )
        charts.append(FleetChart("Clock over time", note, (), drawing))
    return charts


def _colour(precision: str) -> int:
    return _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)


def _legend(records: Sequence[Row]) -> list[tuple[str, str]]:
    names = sorted({row["precision"] for row in records}, key=lambda name: (_colour(name), name))
    return [(name, f"--series-{_colour(name) + 1}") for name in names]


def _draw_speed(axes: Axes, records: Sequence[Row], groups: Sequence[Row]) -> Drawing:
    from matplotlib.ticker import FuncFormatter, LogLocator

    watts = np.asarray([row["mean_w"] for row in records])
    speed = np.asarray([row["tokens_per_second"] for row in records])
    axes.set_yscale("log")
    room = max(0.05 * float(np.ptp(watts)), 0.02 * float(watts.max()))
    axes.set_xlim(float(watts.min()) - room, float(watts.max()) + room)
    axes.set_ylim(float(speed.min()) / 1.25, float(speed.max()) * 1.25)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.minorticks_off()
    label_axes(axes, "watts while decoding", "tokens/s")
    drawing = Drawing("Tokens per second against power")
    for index, colour in enumerate(SERIES):
        mine = [row for row in records if _colour(row["precision"]) == index]
        if mine:
            drawing.dots.append(
                Dots(
                    [row["mean_w"] for row in mine],
                    [row["tokens_per_second"] for row in mine],
                    colour,
                    size=3.2,
                    opacity=_opacity(records),
                )
            )
    reach_x = 0.02 * float(np.diff(axes.get_xlim())[0])
    for row in groups:
        if row["mean_w"] is None:
            continue
        axes.plot(
            row["mean_w"],
            row["tokens_per_second"],
            marker="o",
            markersize=7,
            markerfacecolor="none",
            markeredgecolor=SERIES[_colour(row["precision"])],
            markeredgewidth=1.6,
        )
        drawing.spots.append(
            Spot(
                row["mean_w"] - reach_x,
                row["mean_w"] + reach_x,
                f"{_name(row)}: {number(row['tokens_per_second'])} tokens/s at "
                f"{number(row['mean_w'])} W",
                bottom=row["tokens_per_second"] / 1.08,
                top=row["tokens_per_second"] * 1.08,
            )
        )
    return drawing


def _opacity(records: Sequence[Row]) -> float:
    """Few dots are solid, thousands show where they are dense."""
    return 0.3 if len(records) > 500 else 0.7


def _name(row: Row) -> str:
    mode = f", {row['power_mode']}" if row["power_mode"] != "none" else ""
    return f"{row['model']} {row['precision']}{mode}"


def _roofline(records: Sequence[Row]) -> FleetChart:
    boards: dict[str, dict[str, list[float]]] = {}
    for row in records:
        boards.setdefault(_name(row), {}).setdefault(row["host"], []).append(row["share_percent"])
    strips = {
        name: {host: float(np.median(shares)) for host, shares in hosts.items()}
        for name, hosts in list(boards.items())[:_MOST_STRIPS]
    }
    precisions = {_name(row): row["precision"] for row in records}
    note = (
        "Each dot is a board: the median share of what its memory allows. A board that lies left "
        "of the others is slower than its kind."
    )
    if len(boards) > len(strips):
        note += f" The first {len(strips)} of {len(boards)} kinds of record."
    drawing = both_widths(
        lambda axes: _draw_strips(axes, strips, precisions),
        "fleet",
        height=70 + _ROW_HEIGHT * len(strips),
        left=8,
    )
    return FleetChart("Share of the roofline by board", note, _legend(records), drawing)


def _draw_strips(
    axes: Axes, strips: dict[str, dict[str, float]], precisions: dict[str, str]
) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    shares = [share for hosts in strips.values() for share in hosts.values()]
    room = max(1.0, 0.04 * float(np.ptp(shares)))
    # The names stand above their strips, so that narrow screens have room for the dots.
    axes.set_xlim(max(0.0, min(shares) - room), max(shares) + room)
    axes.set_ylim(len(strips) - 0.4, -0.8)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=RULE, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5 if is_narrow(axes) else 8))
    axes.set_xlabel("percent of the roofline", color=MUTED, fontsize=11, labelpad=6)
    drawing = Drawing("Share of the roofline by board")
    left, right = axes.get_xlim()
    reach = 0.006 * (right - left)
    for index, (name, hosts) in enumerate(strips.items()):
        axes.annotate(
            name, (left, index), xytext=(2, 5), textcoords="offset points", fontsize=10,
            color=MUTED, va="bottom",
        )  # fmt: skip
        drawing.dots.append(
            Dots(
                list(hosts.values()),
                [index + 0.18] * len(hosts),
                SERIES[_colour(precisions[name])],
                size=5,
                opacity=0.55,
            )
        )
        # Boards that lie together are told together.
        by_place: dict[int, list[str]] = {}
        for host, share in hosts.items():
            by_place.setdefault(round(share / (2 * reach)), []).append(host)
        for place, found in by_place.items():
            middle = 2 * reach * place
            names = ", ".join(sorted(found)[:6]) + (" …" if len(found) > 6 else "")
            drawing.spots.append(
                Spot(
                    middle - reach,
                    middle + reach,
                    f"{name}: {np.mean([hosts[host] for host in found]):.1f} %: {names}",
                    bottom=index + 0.4,
                    top=index - 0.2,
                )
            )
    return drawing


def _draw_history(axes: Axes, records: Sequence[Row], field: str, unit: str) -> Drawing:
    from matplotlib import dates
    from matplotlib.ticker import MaxNLocator

    untyped: Any = dates  # its functions have no types
    moments = [float(untyped.date2num(datetime.fromisoformat(row["date_utc"]))) for row in records]
    values = [float(row[field]) for row in records]
    span = max(moments) - min(moments)
    room = max(0.02 * span, 0.02)
    axes.set_xlim(min(moments) - room, max(moments) + room)
    height = max(0.1 * (max(values) - min(values)), 0.02 * max(values))
    axes.set_ylim(min(values) - height, max(values) + height)
    locator = untyped.AutoDateLocator(maxticks=4 if is_narrow(axes) else 8)
    axes.xaxis.set_major_locator(locator)
    form = "%H:%M" if span < 1 else "%-d %b" if span < 200 else "%b %Y"
    axes.xaxis.set_major_formatter(untyped.DateFormatter(form))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    label_axes(axes, "date of the run", unit)
    drawing = Drawing(f"{field} by date")
    throttled: Callable[[Row], bool] = lambda row: "not throttled" in row["failed"]  # noqa: E731
    for is_bad, colour, size in ((False, SERIES[0], 3.2), (True, BAD, 4.2)):
        mine = [i for i, row in enumerate(records) if throttled(row) is is_bad]
        if mine:
            drawing.dots.append(
                Dots(
                    [moments[i] for i in mine],
                    [values[i] for i in mine],
                    colour,
                    size=size,
                    opacity=0.9 if is_bad else _opacity(records),
                )
            )
    return drawing
