# SPDX-License-Identifier: MIT
"""One HTML file from one or many benchmark records, complete without a network.

One record gets a page of its own (`report_template.html.jinja`), many get a page that compares
them (`fleet_template.html.jinja`) and shows some of them as the former does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import __version__
from pipeline.errors import RecordError
from pipeline.fleet_page import fleet_page
from pipeline.fleet_store import FleetStore
from pipeline.record_charts import axis_limit, continuation, distribution, sensors
from pipeline.record_rows import SYNTHETIC, Broken, Collected, Outcome, collect
from pipeline.records import BenchRecord, number, percent, read_record
from pipeline.storage import write_atomically

# Beyond these a page is no pleasure any more: the tables still list every record.
MAXIMUM_DETAILED = 12
DETAILED_OF_MORE = 4
MAXIMUM_BARS = 24


def write_report(
    sources: Sequence[Path],
    output: Path,
    *,
    against: Sequence[Path] = (),
    tables: Sequence[Path] = (),
) -> Path:
    """Writes the report.

    Args:
        sources: Record files, or folders that are searched for `*.json` at any depth. JSON of
            other kinds in a folder is passed over; a record that cannot be read is listed in
            the report with the reason.
        output: The HTML file.
        against: Records of an earlier report, likewise, to tell what has changed since.
        tables: Files for the rows of all records, by their ending CSV or Parquet.

    Returns:
        The HTML file that was written.

    Raises:
        RecordError: Not one record could be read, neither now nor of the earlier ones.
        StorageError: A file cannot be written.
    """
    found = collect(sources)
    if not found.rows and not found.outcomes:
        raise _nothing_found(found, sources)
    earlier = collect(against)
    if against and not earlier.rows:
        raise _nothing_found(earlier, against)
    with FleetStore(found.rows) as store, FleetStore(earlier.rows) as before:
        for table in tables:
            store.export(table)
        if len(found.rows) == 1 and not against and not found.outcomes:
            page = render_record(read_record(Path(found.rows[0].path)), found.broken)
        else:
            page = _render_fleet(found, store, before if against else None, against)
    write_atomically(output, page.encode())
    return output


def _nothing_found(found: Collected, sources: Sequence[Path]) -> RecordError:
    if found.broken:
        return RecordError(found.broken[0].reason, fix=found.broken[0].fix)
    searched = ", ".join(str(source) for source in sources)
    return RecordError(
        f"no benchmark record in {searched}",
        fix="make one with `mamba-orin bench ENGINE --output record.json`",
    )


def render_record(
    record: BenchRecord, broken: Sequence[Broken] = (), outcomes: Sequence[Outcome] = ()
) -> str:
    """The page of one record.

    Args:
        record: The record.
        broken: Files to list as unreadable.
        outcomes: Boards to list as without a record.
    """
    return (
        _environment()
        .get_template("report_template.html.jinja")
        .render(
            details=_details(record),
            broken=broken,
            outcomes=outcomes,
            generator=f"mamba-orin {__version__}",
            is_synthetic=record.generator.startswith(SYNTHETIC),
        )
    )


def _render_fleet(
    found: Collected, store: FleetStore, before: FleetStore | None, against: Sequence[Path]
) -> str:
    page = fleet_page(store, before, most_bars=MAXIMUM_BARS)
    most = MAXIMUM_DETAILED if len(found.rows) <= MAXIMUM_DETAILED else DETAILED_OF_MORE
    detailed = [_details(read_record(path)) for path in page.in_detail(found.rows, most)]
    return (
        _environment()
        .get_template("fleet_template.html.jinja")
        .render(
            **page.values,
            detailed=detailed,
            earlier=", ".join(str(path) for path in against),
            broken=found.broken,
            outcomes=found.outcomes,
            generator=f"mamba-orin {__version__}",
            is_synthetic=any(row.is_synthetic for row in found.rows),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["zip"] = zip
    environment.filters |= {
        "number": number,
        "ms": lambda value: f"{number(value)} ms",
        "percent": percent,
        "bytes": byte_size,
        "day": lambda text: text.replace("T", " ").replace("+00:00", " UTC"),
    }
    return environment


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
    limit = axis_limit(decoded)
    return {
        "record": record,
        "slowest": slowest,
        "continuation": continuation(decoded, limit, record.record_id),
        "distribution": distribution(decoded, limit, record.record_id),
        "sensors": sensors(record),
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
    if record.power:
        parts.append(("power: ", record.power.missing))
    if record.telemetry:
        parts.append(("readings: ", record.telemetry.missing))
    parts += [(f"{peer.peer}: ", peer.missing) for peer in record.comparisons]
    return [
        (prefix + field.replace("_", " "), reason)
        for prefix, missing in parts
        for field, reason in missing.items()
    ]
