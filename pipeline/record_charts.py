# SPDX-License-Identifier: MIT
"""The charts of one record: tokens over a continuation, their distribution, sensors over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.charts import (
    ACCENT,
    INK,
    MUTED,
    Drawing,
    Spot,
    both_widths,
    is_narrow,
    label_axes,
)
from pipeline.power_records import TelemetryRecord
from pipeline.records import BenchRecord, number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

# Share of samples that a chart's latency axis shows; the note under it counts the others.
_SHOWN_SHARE = 0.99
_MOST_SPOTS = 60
_SENSOR_HEIGHT = 150


def axis_limit(decoded: Any) -> float:
    """Where the latency axis ends: a few long pauses must not squeeze all the rest.

    Args:
        decoded: (iteration, new token) milliseconds.
    """
    shown = float(np.quantile(decoded, _SHOWN_SHARE, method="lower"))
    return max(shown * 1.1, float(np.median(decoded)) * 1.5)


def continuation(decoded: Any, limit: float, owner: str) -> Markup:
    """Median over the iterations at each position, in the range of all of them."""
    return both_widths(lambda axes: _draw_continuation(axes, decoded, limit), owner)


def distribution(decoded: Any, limit: float, owner: str) -> Markup:
    """Histogram of all decoded tokens, with the median marked."""
    return both_widths(lambda axes: _draw_distribution(axes, decoded, limit), owner)


def sensors(record: BenchRecord) -> list[tuple[str, Markup]]:
    """Power, temperature and clock over the run, as far as they were read."""
    telemetry = record.telemetry
    if telemetry is None:
        return []
    rail = record.power.rail if record.power else None
    heat = record.temperature.zone if record.temperature else None
    wanted = [
        (f"Power of {rail}", f"power_w/{rail}", "W"),
        ("Power of the GPU", "power_w/gpu", "W"),
        (f"Temperature, {heat}", f"temperature_c/{heat}", "°C"),
        ("Clock of the GPU", "clock_mhz/gpu", "MHz"),
    ]
    return [
        (title, _line(telemetry, channel, unit, title, record.record_id))
        for title, channel, unit in wanted
        if channel in telemetry.channels
    ]


def _line(telemetry: TelemetryRecord, channel: str, unit: str, title: str, owner: str) -> Markup:
    def draw(axes: Axes) -> Drawing:
        return _draw_line(axes, telemetry, channel, unit, title)

    return both_widths(draw, owner, height=_SENSOR_HEIGHT)


def _draw_line(
    axes: Axes, telemetry: TelemetryRecord, channel: str, unit: str, title: str
) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    readings = telemetry.channels[channel]
    times, values = np.asarray(readings.times_s), np.asarray(readings.values)
    end = max(float(times[-1]), *(phase.end_s for phase in telemetry.phases), 1e-3)
    lowest, highest = float(values.min()), float(values.max())
    room = max(0.12 * (highest - lowest), 0.02 * abs(highest), 1e-3)
    axes.set_xlim(0, end)
    axes.set_ylim(min(lowest, highest - 0.2 * abs(highest)) - room, highest + 2 * room)
    for index, phase in enumerate(telemetry.phases):
        if index % 2 == 0:
            axes.axvspan(phase.start_s, phase.end_s, color=INK, alpha=0.05, linewidth=0)
        wide_enough = (phase.end_s - phase.start_s) / end > (0.16 if is_narrow(axes) else 0.08)
        if wide_enough:
            axes.annotate(
                phase.name,
                ((phase.start_s + phase.end_s) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, -3),
                textcoords="offset points",
                ha="center",
                va="top",
                color=MUTED,
                fontsize=10,
            )
    axes.plot(times, values, color=ACCENT, linewidth=1.4, marker="o" if len(times) < 2 else "")
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    label_axes(axes, "seconds", unit)
    chosen = np.unique(np.linspace(0, len(times) - 1, min(len(times), _MOST_SPOTS)).astype(int))
    edges = np.concatenate(([0.0], (times[chosen][:-1] + times[chosen][1:]) / 2, [end]))
    spots = [
        Spot(float(left), float(right), f"{times[i]:.1f} s: {number(float(values[i]))} {unit}")
        for left, right, i in zip(edges[:-1], edges[1:], chosen, strict=True)
    ]
    return Drawing(title, spots)


def _draw_continuation(axes: Axes, decoded: Any, limit: float) -> Drawing:
    """Median over the iterations at each position, in the range of all of them."""
    from matplotlib.ticker import MaxNLocator

    positions = np.arange(1, decoded.shape[1] + 1)
    median, low, high = np.median(decoded, axis=0), decoded.min(axis=0), decoded.max(axis=0)
    if len(decoded) > 1:
        axes.fill_between(positions, low, high, color=ACCENT, alpha=0.16, linewidth=0)
    axes.plot(
        positions, median, color=ACCENT, linewidth=1.6, marker="o" if len(positions) < 3 else ""
    )
    axes.set_xlim(0.5, len(positions) + 0.5)
    axes.set_ylim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    label_axes(axes, "token of the continuation", "ms")
    spots = [
        Spot(
            position - 0.5,
            position + 0.5,
            f"token {position}: {number(median[i])} ms ({number(low[i])} to {number(high[i])} ms)",
        )
        for i, position in enumerate(positions)
    ]
    return Drawing("Time of each token over the continuation", spots)


def _draw_distribution(axes: Axes, decoded: Any, limit: float) -> Drawing:
    """Histogram of all decoded tokens, with the median marked."""
    from matplotlib.ticker import MaxNLocator

    samples = decoded.ravel()
    shown = samples[samples <= limit]
    # A clock may be too coarse to tell the samples apart; the axis needs some width then.
    start, limit = float(shown.min()), max(float(shown.max()), float(shown.min()) * 1.01)
    bins = 28 if is_narrow(axes) else 48
    counts, edges = np.histogram(shown, bins=bins, range=(start, limit))
    axes.bar(
        edges[:-1], counts, width=np.diff(edges) * 0.86, align="edge", color=ACCENT, alpha=0.75
    )
    median = float(np.median(samples))
    axes.axvline(median, color=INK, linewidth=1)
    axes.set_xlim(start, limit)
    axes.set_ylim(0, counts.max() * 1.18)
    is_left = median < (start + limit) / 2
    axes.annotate(
        f"median {number(median)} ms",
        (median, counts.max() * 1.18),
        xytext=(6 if is_left else -6, -2),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="top",
        color=INK,
        fontsize=11,
    )
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    label_axes(axes, "ms for one token", "tokens")
    spots = [
        Spot(edges[i], edges[i + 1], f"{number(edges[i])} to {number(edges[i + 1])} ms: "
              f"{count:,} of {len(samples):,} tokens")
        for i, count in enumerate(counts)
    ]  # fmt: skip
    return Drawing("Distribution of the time of a token", spots)
