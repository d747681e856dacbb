# SPDX-License-Identifier: MIT
"""The rows of many records in an embedded analytical engine, and what it is asked.

The only module that imports duckdb. Nothing is kept: the record files are the store, and the
table is made anew from them within seconds.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import RecordError
from pipeline.record_rows import COLUMNS, RecordRow
from pipeline.storage import write_atomically

# What makes records comparable: only the board may differ within a group.
GROUP = (
    "model",
    "precision",
    "machine",
    "power_mode",
    "backend",
    "scenario",
    "batch",
    "sequence_length",
)
# A record stands out when it is this far from its group, in scaled median absolute deviations,
# and by this much at all: groups that hardly scatter would call everything an outlier.
_DEVIATIONS = 4.0
_LEAST_PERCENT = 5.0
_SCALED = 1.4826  # makes the deviation of normally distributed values a standard deviation
_FEWEST_IN_GROUP = 5
# A change from an earlier report counts beyond three standard errors of both medians, and from
# this much on.
_ERRORS = 3.0
_LEAST_CHANGE_PERCENT = 2.0
_MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean

_TYPES = {
    "int": "BIGINT",
    "float": "DOUBLE",
    "float | None": "DOUBLE",
    "str": "VARCHAR",
    "str | None": "VARCHAR",
    "tuple[str, ...]": "VARCHAR[]",
}

Row = dict[str, Any]


class FleetStore:
    """A table `records` with a row for each record; close it, or use it in a `with` block.

    Args:
        rows: One for each record.
    """

    def __init__(self, rows: Sequence[RecordRow]) -> None:
        self._database = duckdb.connect(":memory:")
        # Whatever it can do must be in the package: a report is made without a network.
        self._database.execute("SET autoinstall_known_extensions = false")
        columns = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(RecordRow)}
        with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as file:
            for row in rows:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()
            self._database.execute(
                "CREATE TABLE records AS SELECT * FROM "
                "read_json($path, format = 'newline_delimited', columns = $columns)",
                {"path": file.name, "columns": columns},
            )

    def __enter__(self) -> FleetStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def totals(self) -> Row:
        """How many records, boards, models and failures there are, and of which days."""
        return self._ask(
            "SELECT count(*) AS records, count(DISTINCT host) AS boards, "
            "count(DISTINCT model) AS models, "
            "count(*) FILTER (len(failed) > 0) AS failed, "
            "min(date_utc) AS first, max(date_utc) AS last FROM records"
        )[0]

    def groups(self) -> list[Row]:
        """One row for each group of comparable records: medians over those without a failure.

        A group in which every record failed a check has its medians over all, and says so by
        `valid` being 0.
        """
        return self._ask(_GROUPS.format(table="records") + f" ORDER BY {_ORDER}")

    def boards(self) -> list[Row]:
        """One row for each board: how near it comes to the roofline, its heat and its clocks."""
        return self._ask(
            "SELECT host, any_value(machine) AS machine, count(*) AS records, "
            "count(*) FILTER (len(failed) > 0) AS failed, "
            "median(share_percent) AS share_percent, max(peak_c) AS peak_c, "
            "min(100 * clock_lowest_mhz / clock_limit_mhz) AS clock_percent, "
            "max(date_utc) AS last FROM records GROUP BY host ORDER BY host"
        )

    def outliers(self) -> list[Row]:
        """Records that stand out of their group in time or energy, the farthest first."""
        found = []
        for field, title in (("ms_per_token", "ms/token"), ("j_per_token", "J/token")):
            found += self._ask(
                f"""
                WITH centre AS (
                  SELECT {_KEYS}, median({field}) AS middle, mad({field}) AS spread,
                         count({field}) AS n
                  FROM records GROUP BY {_KEYS})
                SELECT record_id, host, {_KEYS}, failed, failed_details, date_utc,
                       '{title}' AS quantity, {field} AS value, middle,
                       100 * ({field} / middle - 1) AS percent
                FROM records JOIN centre USING ({_KEYS})
                WHERE n >= {_FEWEST_IN_GROUP} AND middle > 0
                  AND abs({field} - middle) > {_DEVIATIONS * _SCALED} * spread
                  AND 100 * abs({field} / middle - 1) > {_LEAST_PERCENT}
                """
            )
        return sorted(found, key=lambda row: (-abs(row["percent"]), row["record_id"]))

    def changes(self, earlier: FleetStore) -> list[Row]:
        """Groups that are in both, with what has changed and whether that is more than noise."""
        before = {tuple(row[key] for key in GROUP): row for row in earlier.groups()}
        rows = []
        for group in self.groups():
            old = before.get(tuple(group[key] for key in GROUP))
            if old is None:
                continue
            row = {key: group[key] for key in GROUP}
            for field in ("ms_per_token", "j_per_token"):
                row |= _change(field, old, group)
            rows.append(row)
        return rows

    def records(self) -> list[Row]:
        """All rows, in the order in which they came."""
        return self._ask("SELECT * FROM records")

    def export(self, path: Path) -> None:
        """Writes all rows as CSV or Parquet, by the ending of the name.

        Raises:
            RecordError: The ending is neither.
            StorageError: The file cannot be written.
        """
        forms = {".csv": "FORMAT csv, HEADER", ".parquet": "FORMAT parquet, COMPRESSION zstd"}
        form = forms.get(path.suffix.lower())
        if form is None:
            raise RecordError(f"{path} ends neither in .csv nor in .parquet", fix="name it so")
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / f"records{path.suffix}"
            # CSV has no lists: names of failed checks are joined.
            columns = ", ".join(
                f"array_to_string({name}, '; ') AS {name}"
                if name in ("failed", "failed_details") and path.suffix.lower() == ".csv"
                else name
                for name in COLUMNS
            )
            self._database.execute(f"COPY (SELECT {columns} FROM records) TO '{place}' ({form})")
            write_atomically(path, place.read_bytes())

    def _ask(self, question: str) -> list[Row]:
        answer = self._database.execute(question)
        names = [column[0] for column in answer.description or ()]
        return [dict(zip(names, values, strict=True)) for values in answer.fetchall()]


_KEYS = ", ".join(GROUP)
_ORDER = "parameters, model, precision, machine, power_mode, batch, sequence_length, backend"
_GROUPS = f"""
WITH counted AS (
  SELECT *, count(*) FILTER (len(failed) = 0) OVER (PARTITION BY {_KEYS}) AS valid_in_group
  FROM {{table}}),
trusted AS (SELECT * FROM counted WHERE len(failed) = 0 OR valid_in_group = 0),
everything AS (
  SELECT {_KEYS}, any_value(parameters) AS parameters, count(*) AS records,
         count(DISTINCT host) AS boards, count(*) FILTER (len(failed) = 0) AS valid
  FROM {{table}} GROUP BY {_KEYS}),
medians AS (
  SELECT {_KEYS}, median(first_ms) AS first_ms, median(ms_per_token) AS ms_per_token,
         mad(ms_per_token) AS ms_per_token_mad, count(ms_per_token) AS ms_per_token_count,
         median(tokens_per_second) AS tokens_per_second,
         quantile_cont(tokens_per_second, 0.1) AS tokens_per_second_p10,
         quantile_cont(tokens_per_second, 0.9) AS tokens_per_second_p90,
         median(mean_w) AS mean_w, median(j_per_token) AS j_per_token,
         mad(j_per_token) AS j_per_token_mad, count(j_per_token) AS j_per_token_count,
         median(net_j_per_token) AS net_j_per_token, median(share_percent) AS share_percent,
         median(peak_c) AS peak_c, any_value(rail) AS rail
  FROM trusted GROUP BY {_KEYS})
SELECT * FROM everything JOIN medians USING ({_KEYS})
"""


def _change(field: str, old: Row, new: Row) -> Row:
    before, after = old[field], new[field]
    if before is None or after is None:
        return {f"{field}_before": before, f"{field}_after": after, f"{field}_percent": None,
                f"{field}_verdict": "unknown"}  # fmt: skip
    percent = 100 * (after / before - 1)
    error = sum(
        (_MEDIAN_ERROR * _SCALED * row[f"{field}_mad"]) ** 2 / row[f"{field}_count"]
        for row in (old, new)
    )
    is_more_than_noise = abs(after - before) > _ERRORS * error**0.5
    if not is_more_than_noise or abs(percent) < _LEAST_CHANGE_PERCENT:
        verdict = "same"
    else:
        verdict = "worse" if percent > 0 else "better"
    return {
        f"{field}_before": before,
        f"{field}_after": after,
        f"{field}_percent": percent,
        f"{field}_verdict": verdict,
    }
