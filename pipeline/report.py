# SPDX-License-Identifier: MIT
"""One HTML file from one or many benchmark records, complete without a network.

The page is laid out by `report_template.html.jinja`; here its values are made. Charts are SVG
whose colours are the page's own variables, so they follow light and dark; each is drawn twice,
for wide and for narrow screens, because scaled-down text cannot be read.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import __version__
from pipeline.errors import RecordError
from pipeline.records import (
    BenchRecord,
    is_record,
    number,
    parse_record,
    percent,
    read_record,
)
from pipeline.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEMPLATE = "report_template.html.jinja"

# Beyond these a page is no pleasure any more: the table still lists every record.
MAXIMUM_DETAILED = 12
MAXIMUM_BARS = 24

# Colours that stand for the page's variables until the SVG is finished; see `_svg`.
_INK, _MUTED, _RULE, _ACCENT = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule", _ACCENT: "--accent"}
_WIDTHS = {"wide": 720, "narrow": 340}
_POINTS_PER_INCH = 72
_SVG = "http://www.w3.org/2000/svg"
# Share of samples that a chart's latency axis shows; the note under it counts the others.
_SHOWN_SHARE = 0.99


@dataclass(frozen=True)
class Broken:
    """A file that is no part of the report.

    Attributes:
        path: Where it is.
        reason: Why.
        fix: What the user can do.
    """

    path: str
    reason: str
    fix: str


def write_report(sources: Sequence[Path], output: Path) -> Path:
    """Writes the report.

    Args:
        sources: Record files, or folders that are searched for `*.json` at any depth. JSON of
            other kinds in a folder is passed over; a record that cannot be read is listed in
            the report with the reason.
        output: The HTML file.

    Returns:
        The file that was written.

    Raises:
        RecordError: Not one record could be read.
        StorageError: The file cannot be written.
    """
    records, broken = collect_records(sources)
    if not records:
        searched = ", ".join(str(source) for source in sources)
        if broken:
            raise RecordError(broken[0].reason, fix=broken[0].fix)
        raise RecordError(
            f"no benchmark record in {searched}",
            fix="make one with `mamba-orin bench ENGINE --output record.json`",
        )
    write_atomically(output, render_report(records, broken).encode())
    return output


def collect_records(sources: Sequence[Path]) -> tuple[list[BenchRecord], list[Broken]]:
    """Reads every record, once each, ordered by size of the model, precision, machine and date.

    Args:
        sources: As for `write_report`.
    """
    records: dict[str, BenchRecord] = {}
    first_seen: dict[str, Path] = {}
    broken = []
    for path, is_named in _files(sources):
        try:
            record = read_record(path) if is_named else _read_found(path)
        except RecordError as error:
            broken.append(Broken(str(path), str(error), error.fix))
            continue
        if record is None:
            continue
        if record.record_id in records:
            reason = f"the same record as {first_seen[record.record_id]}"
            broken.append(Broken(str(path), reason, "nothing to do: it counts once"))
            continue
        records[record.record_id], first_seen[record.record_id] = record, path
    ordered = sorted(
        records.values(),
        key=lambda r: (
            r.model.parameters,
            r.model.name,
            r.model.precision,
            r.board.name,
            r.date_utc,
        ),
    )
    return ordered, broken


def _files(sources: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Each file once, and whether the user named it."""
    seen = set()
    for source in sources:
        is_folder = source.is_dir()
        for path in sorted(source.rglob("*.json")) if is_folder else [source]:
            if path.resolve() not in seen and not path.is_dir():
                seen.add(path.resolve())
                yield path, not is_folder


def _read_found(path: Path) -> BenchRecord | None:
    """A record that was found, not named; None for JSON that never claimed to be one."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return read_record(path)  # raises the error that explains it
    return parse_record(values, path) if is_record(values) else None


def render_report(records: Sequence[BenchRecord], broken: Sequence[Broken] = ()) -> str:
    """The page as text.

    Args:
        records: At least one, in the order of the page.
        broken: Files to list as unreadable.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "ms": lambda value: f"{number(value)} ms",
        "percent": percent,
        "bytes": byte_size,
        "day": lambda text: text.replace("T", " ").replace("+00:00", " UTC"),
    }
    fastest = max(record.timings.tokens_per_second for record in records)
    by_speed = sorted(records, key=lambda r: r.timings.tokens_per_second, reverse=True)
    return environment.get_template(_TEMPLATE).render(
        records=records,
        fastest=fastest,
        bars=by_speed[:MAXIMUM_BARS],
        detailed=[_details(record) for record in records[:MAXIMUM_DETAILED]],
        broken=broken,
        generator=f"mamba-orin {__version__}",
    )


def byte_size(value: float) -> str:
    """Bytes in decimal units, as data sheets give them."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} TB"


def _details(record: BenchRecord) -> dict[str, Any]:
    """What the section of one record shows beside the record itself."""
    slowest = {
        "first": max(
            [record.timings.first_token.median_ms]
            + [c.timings.first_token.median_ms for c in record.comparisons if c.timings]
        ),
        "decode": max(
            [record.timings.decode.median_ms]
            + [c.timings.decode.median_ms for c in record.comparisons if c.timings]
        ),
    }
    decoded = np.asarray(record.timings.decode_samples_ms)  # (iteration, new token)
    limit = _axis_limit(decoded)
    return {
        "record": record,
        "slowest": slowest,
        "continuation": _both_widths(_draw_continuation, decoded, limit),
        "distribution": _both_widths(_draw_distribution, decoded, limit),
        "beyond": int((decoded > limit).sum()),
        "beyond_ms": limit,
        "machine": _machine_facts(record),
        "summaries": (
            ("first token", record.timings.first_token),
            ("each further token", record.timings.decode),
        ),
        "percentiles": ("p10_ms", "median_ms", "p90_ms", "p95_ms", "p99_ms"),
        "missing": _missing(record),
    }


def _machine_facts(record: BenchRecord) -> list[tuple[str, str]]:
    board, jetson = record.board, record.board.jetson
    facts: list[tuple[str, str | None]] = [
        ("Machine", board.name),
        ("Host", board.hostname),
        ("Processor", f"{board.cpu or 'unknown'}, {board.cores or 'unknown number of'} cores"),
        ("Memory", byte_size(board.memory_bytes) if board.memory_bytes else None),
        ("Swap", byte_size(board.swap_bytes) if board.swap_bytes is not None else None),
        ("GPU", ", ".join(gpu.name for gpu in board.gpus) or None),
        ("System", board.operating_system),
        ("Kernel", board.kernel),
        ("CUDA", board.cuda),
        ("TensorRT", board.tensorrt),
    ]
    if jetson:
        super_mode = {True: "Super boot chain", False: "original boot chain", None: "unknown"}
        facts += [
            ("Power mode", jetson.power_mode),
            ("Boot chain", super_mode[jetson.is_super]),
            ("Jetson Linux", jetson.l4t),
            ("JetPack", jetson.jetpack),
            ("GPU clock limit", f"{jetson.gpu_clock_limit_mhz:g} MHz"
             if jetson.gpu_clock_limit_mhz else None),
        ]  # fmt: skip
    known = [(title, value) for title, value in facts if value]
    return known + [(name, version) for name, version in sorted(record.versions.items())]


def _missing(record: BenchRecord) -> list[tuple[str, str]]:
    """Everything that has no value, with its reason; the readers of a report ask for it."""
    parts: list[tuple[str, dict[str, str]]] = [
        ("", record.missing),
        ("first token: ", record.timings.first_token.missing),
        ("each further token: ", record.timings.decode.missing),
        ("machine: ", record.board.missing),
    ]
    if record.board.jetson:
        parts.append(("board: ", record.board.jetson.missing))
    if record.roofline:
        parts.append(("roofline: ", record.roofline.missing))
    parts += [(f"{peer.peer}: ", peer.missing) for peer in record.comparisons]
    return [
        (prefix + field.replace("_", " "), reason)
        for prefix, missing in parts
        for field, reason in missing.items()
    ]


# --- charts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spot:
    """A part of a chart that explains itself when pointed at; data coordinates."""

    left: float
    right: float
    text: str


def _axis_limit(decoded: Any) -> float:
    """Where the latency axis ends: a few long pauses must not squeeze all the rest."""
    shown = float(np.quantile(decoded, _SHOWN_SHARE, method="lower"))
    return max(shown * 1.1, float(np.median(decoded)) * 1.5)


def _both_widths(draw: Any, decoded: Any, limit: float) -> Markup:
    """One chart for wide and one for narrow screens; the page shows one of them."""
    parts = []
    for name, width in _WIDTHS.items():
        figure, axes = _new_figure(width, 220)
        title, spots = draw(axes, decoded, limit)
        parts.append(f'<div class="chart {name}">{_svg(figure, axes, title, spots)}</div>')
    return Markup("".join(parts))


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
    figure.patch.set_visible(False)
    axes = figure.add_axes((44 / width, 40 / height, 1 - 56 / width, 1 - 54 / height))
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(length=0, labelsize=11, labelcolor=_MUTED, pad=6)
    axes.grid(visible=True, axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_continuation(axes: Axes, decoded: Any, limit: float) -> tuple[str, list[_Spot]]:
    """Median over the iterations at each position, in the range of all of them."""
    from matplotlib.ticker import MaxNLocator

    positions = np.arange(1, decoded.shape[1] + 1)
    median, low, high = np.median(decoded, axis=0), decoded.min(axis=0), decoded.max(axis=0)
    if len(decoded) > 1:
        axes.fill_between(positions, low, high, color=_ACCENT, alpha=0.16, linewidth=0)
    axes.plot(
        positions, median, color=_ACCENT, linewidth=1.6, marker="o" if len(positions) < 3 else ""
    )
    axes.set_xlim(0.5, len(positions) + 0.5)
    axes.set_ylim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("token of the continuation", color=_MUTED, fontsize=11, labelpad=6)
    axes.set_title("ms", color=_MUTED, fontsize=11, loc="left", x=-32 / (axes.bbox.width or 1))
    spots = [
        _Spot(
            position - 0.5,
            position + 0.5,
            f"token {position}: {number(median[i])} ms ({number(low[i])} to {number(high[i])} ms)",
        )
        for i, position in enumerate(positions)
    ]
    return "Time of each token over the continuation", spots


def _draw_distribution(axes: Axes, decoded: Any, limit: float) -> tuple[str, list[_Spot]]:
    """Histogram of all decoded tokens, with the median marked."""
    from matplotlib.ticker import MaxNLocator

    samples = decoded.ravel()
    shown = samples[samples <= limit]
    # A clock may be too coarse to tell the samples apart; the axis needs some width then.
    start, limit = float(shown.min()), max(float(shown.max()), float(shown.min()) * 1.01)
    bins = 48 if axes.bbox.width > _WIDTHS["narrow"] else 28
    counts, edges = np.histogram(shown, bins=bins, range=(start, limit))
    axes.bar(
        edges[:-1], counts, width=np.diff(edges) * 0.86, align="edge", color=_ACCENT, alpha=0.75
    )
    median = float(np.median(samples))
    axes.axvline(median, color=_INK, linewidth=1)
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
        color=_INK,
        fontsize=11,
    )
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("ms for one token", color=_MUTED, fontsize=11, labelpad=6)
    axes.set_title("tokens", color=_MUTED, fontsize=11, loc="left", x=-32 / axes.bbox.width)
    spots = [
        _Spot(edges[i], edges[i + 1], f"{number(edges[i])} to {number(edges[i + 1])} ms: "
              f"{count:,} of {len(samples):,} tokens")
        for i, count in enumerate(counts)
    ]  # fmt: skip
    return "Distribution of the time of a token", spots


def _svg(figure: Figure, axes: Axes, title: str, spots: Sequence[_Spot]) -> str:
    """The figure as inline SVG in the page's colours and font, with spots to point at."""
    import matplotlib as mpl

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
    _add_spots(root, axes, spots)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    # Charts share a page, so the names inside them must not clash.
    prefix = "c" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="([\w.]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)


def _add_spots(root: ElementTree.Element, axes: Axes, spots: Sequence[_Spot]) -> None:
    """Invisible rectangles over the chart; the page shows their text when pointed at."""
    height = float(root.attrib["viewBox"].split()[3])
    box = axes.bbox
    scale = _POINTS_PER_INCH / axes.figure.dpi
    group = ElementTree.SubElement(root, f"{{{_SVG}}}g", {"class": "spots"})
    for spot in spots:
        left, right = (
            float(axes.transData.transform((x, 0))[0]) * scale for x in (spot.left, spot.right)
        )
        ElementTree.SubElement(
            group,
            f"{{{_SVG}}}rect",
            {
                "x": f"{left:.2f}",
                "y": f"{height - box.y1 * scale:.2f}",
                "width": f"{right - left:.2f}",
                "height": f"{box.height * scale:.2f}",
                "data-tip": spot.text,
            },
        )
