# SPDX-License-Identifier: MIT
"""The values of the page that compares many records; `fleet_template.html.jinja` lays it out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.fleet_charts import fleet_charts
from pipeline.fleet_store import FleetStore, Row
from pipeline.record_rows import RecordRow

# More than these nobody reads; the table of all records has the others.
MAXIMUM_OUTLIERS = 40

_RECORD_COLUMNS = (
    ("board", "host", False),
    ("model", "model", False),
    ("precision", "precision", False),
    ("power mode", "power_mode", False),
    ("backend", "backend", False),
    ("first token, ms", "first_ms", True),
    ("ms/token", "ms_per_token", True),
    ("tokens/s", "tokens_per_second", True),
    ("watts", "mean_w", True),
    ("J/token", "j_per_token", True),
    ("roofline, %", "share_percent", True),
    ("peak °C", "peak_c", True),
    ("checks", "failed", True),
    ("date, UTC", "date_utc", False),
)
_EMBEDDED = (*(field for _, field, _ in _RECORD_COLUMNS), "machine", "record_id")
_KINDS = ("machine", "backend", "scenario", "batch", "sequence_length")
_CHOICES = ("model", "precision", "power_mode")


@dataclass(frozen=True)
class FleetPage:
    """What the template is rendered with.

    Attributes:
        values: By the names that the template knows.
    """

    values: dict[str, Any]

    def in_detail(self, rows: Sequence[RecordRow], most: int) -> list[Path]:
        """Files of the records to show in detail: all, or those that stand out first."""
        if len(rows) <= most:
            return [Path(row.path) for row in rows]
        paths = {row.record_id: row.path for row in rows}
        chosen = dict.fromkeys(outlier["record_id"] for outlier in self.values["outliers"])
        chosen |= dict.fromkeys(row.record_id for row in rows[:most])
        return [Path(paths[record_id]) for record_id in list(chosen)[:most]]


def fleet_page(store: FleetStore, before: FleetStore | None, *, most_bars: int) -> FleetPage:
    """Asks the store for everything that the page shows.

    Args:
        store: Rows of all records.
        before: The rows of an earlier report; None without one.
        most_bars: Groups in the chart of bars.
    """
    groups, outliers = store.groups(), store.outliers()
    bars = sorted(groups, key=lambda row: row["tokens_per_second"], reverse=True)[:most_bars]
    rails = sorted({row["rail"] for row in groups if row["rail"]})
    records = store.records()
    return FleetPage(
        {
            "totals": store.totals(),
            "groups": groups,
            "bars": bars,
            "boards": store.boards(),
            "outliers": outliers[:MAXIMUM_OUTLIERS],
            "outliers_found": len(outliers),
            "changes": None if before is None else store.changes(before),
            "rails": ", ".join(rails),
            # What is the same everywhere needs no column.
            "varied": tuple(
                field.replace("_", " ") for field in _KINDS if len(_distinct(groups, field)) > 1
            ),
            "constant": "; ".join(
                f"{field.replace('_', ' ')} {_distinct(groups, field)[0]}"
                for field in _KINDS
                if len(_distinct(groups, field)) == 1
            ),
            "charts": fleet_charts(records, groups),
            "choices": {field: sorted({row[field] for row in records}) for field in _CHOICES},
            "record_columns": _RECORD_COLUMNS,
            "rows_json": _embedded(records),
        }
    )


def _distinct(rows: Sequence[Row], field: str) -> list[Any]:
    return sorted({row[field] for row in rows})


def _embedded(records: Sequence[Row]) -> Markup:
    """All rows as JSON that may stand inside a script element."""
    values = {
        "columns": _EMBEDDED,
        "rows": [[row[field] for field in _EMBEDDED] for row in records],
    }
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
