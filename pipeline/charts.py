# SPDX-License-Identifier: MIT
"""Charts as SVG in the colours of the page, drawn by matplotlib.

Colours are the page's own variables, so a chart follows light and dark. Each is drawn twice, for
wide and for narrow screens, because scaled-down text cannot be read; the page shows one of them.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for the page's variables until the SVG is finished.
INK, MUTED, RULE, ACCENT, BAD = "#010203", "#010204", "#010205", "#010206", "#010207"
SERIES = ("#010208", "#010209", "#01020a", "#01020b")
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    BAD: "--bad",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}
NARROW = 340
_WIDTHS = {"wide": 720, "narrow": NARROW}
_POINTS_PER_INCH = 72
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Spot:
    """A part of a chart that explains itself when pointed at; data coordinates.

    Attributes:
        left: Where it begins.
        right: Where it ends.
        text: What it says.
        bottom: Lower edge; None reaches over the whole height.
        top: Upper edge, likewise.
    """

    left: float
    right: float
    text: str
    bottom: float | None = None
    top: float | None = None


@dataclass(frozen=True)
class Dots:
    """Many points of one colour, drawn as one path; data coordinates.

    Attributes:
        x: Where.
        y: Where.
        colour: One of the colours above.
        size: Diameter in pixels.
        opacity: 1 hides what is below.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    size: float = 3.0
    opacity: float = 0.35


@dataclass
class Drawing:
    """What is laid over matplotlib's own drawing.

    Attributes:
        title: For who cannot see it.
        spots: See `Spot`.
        dots: See `Dots`.
    """

    title: str
    spots: list[Spot] = field(default_factory=list)
    dots: list[Dots] = field(default_factory=list)


def both_widths(
    draw: Callable[[Axes], Drawing], owner: str, height: int = 220, left: int = 44
) -> Markup:
    """One chart for wide and one for narrow screens.

    Args:
        draw: Draws into the axes and says what to lay over them.
        owner: What it is a chart of; charts share a page, and names inside them must not clash.
        height: In pixels.
        left: Room for what stands left of the axes, in pixels.
    """
    parts = []
    for name, width in _WIDTHS.items():
        figure, axes = _new_figure(width, height, left)
        drawing = draw(axes)
        parts.append(f'<div class="chart {name}">{_svg(figure, axes, drawing, owner + name)}</div>')
    return Markup("".join(parts))


def is_narrow(axes: Axes) -> bool:
    """Whether this is the drawing for narrow screens."""
    return bool(axes.bbox.width <= NARROW)


def label_axes(axes: Axes, below: str, unit: str) -> None:
    """Names what runs along the bottom, and the unit at the top left."""
    axes.set_xlabel(below, color=MUTED, fontsize=11, labelpad=6)
    axes.set_title(unit, color=MUTED, fontsize=11, loc="left", x=-32 / (axes.bbox.width or 1))


def _new_figure(width: float, height: float, left: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
    figure.patch.set_visible(False)
    axes = figure.add_axes((left / width, 40 / height, 1 - (left + 12) / width, 1 - 54 / height))
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=11, labelcolor=MUTED, pad=6)
    axes.grid(visible=True, axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, axes: Axes, drawing: Drawing, owner: str) -> str:
    """The figure as inline SVG in the page's colours and font, with spots to point at."""
    import matplotlib as mpl

    title = drawing.title
    buffer = io.BytesIO()
    # Text stays text, and the same record always gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "path.simplify": True}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    # matplotlib's preamble names the DTD on another server; only the element itself is kept.
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": title}
    _add_dots(root, axes, drawing.dots)
    _add_spots(root, axes, drawing.spots)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    prefix = "c" + hashlib.sha256((owner + text).encode()).hexdigest()[:8]
    text = re.sub(r'\bid="([\w.]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)


def _place(axes: Axes, height: float, x: float, y: float) -> tuple[float, float]:
    """Data coordinates in those of the SVG, whose y runs down."""
    scale = _POINTS_PER_INCH / axes.figure.dpi
    across, up = axes.transData.transform((x, y))
    return float(across) * scale, height - float(up) * scale


def _add_dots(root: ElementTree.Element, axes: Axes, dots: Sequence[Dots]) -> None:
    """A path of strokes without length, whose round caps are the dots."""
    height = float(root.attrib["viewBox"].split()[3])
    scale = _POINTS_PER_INCH / axes.figure.dpi
    for layer in dots:
        places = axes.transData.transform(np.column_stack((layer.x, layer.y))) * scale
        # Dots that fall on the same tenth of a pixel are one.
        moments = dict.fromkeys(f"M{x:.1f} {height - y:.1f}h0" for x, y in places.tolist())
        ElementTree.SubElement(
            root,
            f"{{{_SVG}}}path",
            {
                "d": "".join(moments),
                "style": f"fill: none; stroke: {layer.colour}; stroke-linecap: round; "
                f"stroke-width: {layer.size}; stroke-opacity: {layer.opacity}",
            },
        )


def _add_spots(root: ElementTree.Element, axes: Axes, spots: Sequence[Spot]) -> None:
    """Invisible rectangles over the chart; the page shows their text when pointed at."""
    height = float(root.attrib["viewBox"].split()[3])
    lowest, highest = axes.get_ylim()
    group = ElementTree.SubElement(root, f"{{{_SVG}}}g", {"class": "spots"})
    for spot in spots:
        bottom = lowest if spot.bottom is None else spot.bottom
        top = highest if spot.top is None else spot.top
        left, upper = _place(axes, height, spot.left, top)
        right, lower = _place(axes, height, spot.right, bottom)
        ElementTree.SubElement(
            group,
            f"{{{_SVG}}}rect",
            {
                "x": f"{left:.2f}",
                "y": f"{upper:.2f}",
                "width": f"{max(0.0, right - left):.2f}",
                "height": f"{max(0.0, lower - upper):.2f}",
                "data-tip": spot.text,
            },
        )
