# SPDX-License-Identifier: MIT
"""The page of many records: every number is computed again here, from the files, without SQL."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.errors import RecordError
from pipeline.record_rows import OUTCOME_KIND, collect
from pipeline.report import MAXIMUM_DETAILED, write_report
from tests.pipeline.synthetic_fleet import a_synthetic_record, write_fleet
from tests.pipeline.test_report import Page

BOARDS, RECORDS = 40, 360
Key = tuple[Any, ...]


class Tables(HTMLParser):
    """Cells of each table that has a name: text, and value by field."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._table: str | None = None
        self._cell: dict[str, Any] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self._table = given.get("id")
        if tag == "tr" and self._table:
            self.rows[self._table].append({"cells": []})
        if tag == "td" and self._table:
            self._cell = {"text": "", "field": given.get("data-field")}
            self._cell["value"] = given.get("data-value")
            self.rows[self._table][-1]["cells"].append(self._cell)

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = None
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell["text"] += data

    def of(self, name: str) -> list[dict[str, Any]]:
        """Rows of a table: words of the cells without a field, and the fields' values."""
        found = []
        for row in self.rows[name]:
            if not row["cells"]:
                continue
            words = [cell["text"].strip() for cell in row["cells"] if not cell["field"]]
            values = {cell["field"]: cell["value"] for cell in row["cells"] if cell["field"]}
            texts = {cell["field"]: cell["text"].strip() for cell in row["cells"] if cell["field"]}
            found.append({"words": words, "values": values, "texts": texts})
        return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 40 boards, now and before; today int4 is 10 % slower."""
    folder = tmp_path_factory.mktemp("fleet")
    write_fleet(folder / "before", BOARDS, RECORDS, samples=16)
    write_fleet(folder / "now", BOARDS, RECORDS, samples=16)
    for path in (folder / "now").rglob("*.json"):
        _, number, board, day = path.stem.split("-")
        if int(number) // 3 % 3 == 2:
            slower = a_synthetic_record(int(number), int(board), int(day), slower=1.10, samples=16)
            path.write_bytes(slower.to_json())
    write_report(
        [folder / "now"],
        folder / "report.html",
        against=[folder / "before"],
        tables=[folder / "rows.csv", folder / "rows.parquet"],
    )
    return folder


@pytest.fixture(scope="module")
def page(fleet: Path) -> str:
    return (fleet / "report.html").read_text()


@pytest.fixture(scope="module")
def raw(fleet: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((fleet / "now").rglob("*.json"))]


def group_of(record: dict[str, Any]) -> Key:
    return (
        record["model"]["name"],
        record["model"]["precision"],
        record["board"]["jetson"]["power_mode"],
    )


def is_valid(record: dict[str, Any]) -> bool:
    return all(check["passed"] is not False for check in record["checks"])


OF_A_RECORD: dict[str, Callable[[dict[str, Any]], float]] = {
    "tokens_per_second": lambda r: r["timings"]["tokens_per_second"],
    "ms_per_token": lambda r: statistics.median(
        ms for row in r["timings"]["decode_samples_ms"] for ms in row
    ),
    "first_ms": lambda r: statistics.median(r["timings"]["first_token_samples_ms"]),
    "mean_w": lambda r: r["power"]["mean_w"],
    "j_per_token": lambda r: r["power"]["energy_per_token_j"],
    "net_j_per_token": lambda r: r["power"]["phases"][0]["net_energy_per_token_j"],
    "share_percent": lambda r: r["roofline"]["share_percent"],
    "peak_c": lambda r: r["temperature"]["peak_c"],
}


def grouped(records: list[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[group_of(record)].append(record)
    return groups


def medians(records: list[dict[str, Any]]) -> dict[str, float]:
    trusted = [record for record in records if is_valid(record)] or records
    return {field: statistics.median(map(value, trusted)) for field, value in OF_A_RECORD.items()}


def assert_shows(row: dict[str, Any], field: str, value: float) -> None:
    """The cell holds the value, and its text is the value to three digits."""
    assert float(row["values"][field]) == pytest.approx(value, rel=1e-9), field
    text = re.sub(r"[^\d.e+-]", "", row["texts"][field])
    assert float(text) == pytest.approx(value, rel=6e-3, abs=0.5 if value >= 100 else 0), field


def test_every_group_has_its_medians_and_counts(page: str, raw: list[dict[str, Any]]) -> None:
    shown = {tuple(row["words"]): row for row in Tables(page).of("groups")}
    groups = grouped(raw)
    assert set(shown) == set(groups)
    for key, records in groups.items():
        row = shown[key]
        for field, value in medians(records).items():
            assert_shows(row, field, value)
        assert int(row["values"]["records"]) == len(records)
        assert int(row["values"]["valid"]) == sum(map(is_valid, records))
        hosts = {record["board"]["hostname"] for record in records}
        assert int(row["values"]["boards"]) == len(hosts)


def test_every_board_has_its_row(page: str, raw: list[dict[str, Any]]) -> None:
    boards: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in raw:
        boards[record["board"]["hostname"]].append(record)
    shown = {row["words"][0]: row for row in Tables(page).of("boards")}
    assert set(shown) == set(boards)
    for host, records in boards.items():
        row = shown[host]
        assert int(row["values"]["records"]) == len(records)
        assert int(row["values"]["failed"]) == sum(not is_valid(record) for record in records)
        shares = [record["roofline"]["share_percent"] for record in records]
        assert_shows(row, "share_percent", statistics.median(shares))
        assert_shows(row, "peak_c", max(record["temperature"]["peak_c"] for record in records))
        clocks = [100 * r["clocks"]["lowest_mhz"] / r["clocks"]["limit_mhz"] for r in records]
        assert_shows(row, "clock_percent", min(clocks))
        assert row["words"][2] == max(record["date_utc"] for record in records)[:10]


def test_every_record_is_in_the_table_that_can_be_searched(
    page: str, raw: list[dict[str, Any]]
) -> None:
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    assert found
    embedded = json.loads(found[1])
    rows = [dict(zip(embedded["columns"], row, strict=True)) for row in embedded["rows"]]
    by_id = {row["record_id"]: row for row in rows}
    assert len(by_id) == len(rows) == len(raw)
    for record in raw:
        row = by_id[record["record_id"]]
        for field, value in OF_A_RECORD.items():
            if field in row:
                assert row[field] == pytest.approx(value(record), rel=1e-12)
        assert row["host"] == record["board"]["hostname"]
        failed = [check["name"] for check in record["checks"] if check["passed"] is False]
        assert row["failed"] == failed


def test_what_stands_out_is_what_an_own_computation_finds(
    page: str, raw: list[dict[str, Any]]
) -> None:
    expected = set()
    for records in grouped(raw).values():
        for field, title in (("ms_per_token", "ms/token"), ("j_per_token", "J/token")):
            values = [OF_A_RECORD[field](record) for record in records]
            middle = statistics.median(values)
            spread = statistics.median(abs(value - middle) for value in values)
            for record, value in zip(records, values, strict=True):
                far = abs(value - middle) > 4 * 1.4826 * spread
                if far and abs(value / middle - 1) > 0.05:
                    expected.add((record["board"]["hostname"], *group_of(record), title))
    shown = Tables(page).of("outliers")
    assert len(shown) == min(len(expected), 40)
    assert {tuple(row["words"][:5]) for row in shown} <= expected
    assert f"{len(expected)} lie more than four scaled deviations" in Page(page).text
    throttled = [row for row in shown if row["words"][0] == "orin-011"]
    assert throttled
    for row in throttled:
        assert "not throttled: held back by gpu in 40 readings; at most 98 °C (tj)" in " ".join(
            row["words"][5].split()
        )


def test_a_change_is_told_from_noise(page: str, fleet: Path, raw: list[dict[str, Any]]) -> None:
    before = grouped(
        [json.loads(path.read_text()) for path in sorted((fleet / "before").rglob("*.json"))]
    )
    now = grouped(raw)
    rows = Tables(page).of("changes")
    assert {tuple(row["words"]) for row in rows} == set(now)
    for row in rows:
        key = tuple(row["words"])
        for field in ("ms_per_token", "j_per_token"):
            old, new = medians(before[key])[field], medians(now[key])[field]
            assert_shows(row, f"{field}_before", old)
            assert_shows(row, f"{field}_after", new)
            percent = 100 * (new / old - 1)
            assert float(row["values"][f"{field}_percent"]) == pytest.approx(percent, abs=1e-9)
            verdict = "worse" if key[1] == "int4" else "same"
            assert row["texts"][f"{field}_percent"] == f"{percent:+.1f} % {verdict}"


def test_the_head_of_the_page_counts_right(page: str, raw: list[dict[str, Any]]) -> None:
    text = Page(page).text
    failed = sum(not is_valid(record) for record in raw)
    assert f"{len(raw)} benchmark records" in text
    assert f"3 models on {BOARDS} machines" in text
    assert f"{failed} of {len(raw)} records failed a check" in text


def test_bars_and_rings_are_the_medians(page: str, raw: list[dict[str, Any]]) -> None:
    found = {key: medians(records) for key, records in grouped(raw).items()}
    speeds = sorted((values["tokens_per_second"] for values in found.values()), reverse=True)
    bars = page[page.index('<div class="bars">') : page.index("Speed against power")]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", bars)]
    assert widths == pytest.approx([100 * s / speeds[0] for s in speeds[:24]], abs=0.01)
    tips = Page(page).tips
    for key, values in found.items():
        text = f"{key[0]} {key[1]}, {key[2]}: "
        ring = next(tip for tip in tips if tip.startswith(text) and " tokens/s at " in tip)
        numbers = [float(n) for n in re.findall(r"([\d.]+) (?:tokens|W)", ring.replace(",", ""))]
        assert numbers == pytest.approx(
            [values["tokens_per_second"], values["mean_w"]], rel=6e-3, abs=0.5
        )


def test_dots_are_as_many_as_records(page: str, raw: list[dict[str, Any]]) -> None:
    """Of the wide drawing; those on one tenth of a pixel are one dot."""
    start = page.index("Speed against power")
    chart = page[start : page.index('<div class="chart narrow">', start)]
    dots = re.findall(r"M[\d.]+ [\d.]+h0", chart)
    assert 0.9 * len(raw) < len(dots) <= len(raw)


def test_synthetic_records_are_called_that_at_the_top(page: str) -> None:
    text = Page(page).text
    assert text.index("Synthetic test data. No number on this page was measured.") < text.index(
        "records failed a check"
    )


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert all(address.startswith("#") for address in parsed.addresses)
    assert set(re.findall(r"https?://[\w./-]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_tables_hold_the_same_rows(fleet: Path, raw: list[dict[str, Any]]) -> None:
    with (fleet / "rows.csv").open(newline="") as file:
        rows = {row["record_id"]: row for row in csv.DictReader(file)}
    answer = duckdb.sql(f"SELECT record_id, ms_per_token, failed FROM '{fleet}/rows.parquet'")
    stored = {record_id: (ms, failed) for record_id, ms, failed in answer.fetchall()}
    assert len(rows) == len(stored) == len(raw)
    for record in raw:
        row, (ms, failed) = rows[record["record_id"]], stored[record["record_id"]]
        expected = OF_A_RECORD["ms_per_token"](record)
        assert float(row["ms_per_token"]) == pytest.approx(expected)
        assert ms == pytest.approx(expected)
        names = [check["name"] for check in record["checks"] if check["passed"] is False]
        assert row["failed"] == "; ".join(names)
        assert failed == names


def test_a_table_must_be_one_of_the_two(fleet: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="ends neither in"):
        write_report([fleet / "now"], tmp_path / "r.html", tables=[tmp_path / "rows.xlsx"])


def test_boards_without_a_record_are_named_with_their_reason(tmp_path: Path) -> None:
    write_fleet(tmp_path / "fleet", 3, 3, samples=16)
    outcome = {"kind": OUTCOME_KIND, "host": "orin-09", "date_utc": "2026-01-01T00:00:00+00:00"}
    dead = {**outcome, "reason": "the board did not answer: No route to host"}
    (tmp_path / "fleet" / "orin-09.json").write_text(json.dumps(dead))
    write_report([tmp_path / "fleet"], tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "1 board lacks a record" in text
    assert "orin-09 the board did not answer: No route to host" in text
    assert "Each record" in text
    assert MAXIMUM_DETAILED >= 3


def test_a_fleet_that_gave_nothing_is_still_a_report(tmp_path: Path) -> None:
    dead = {"kind": OUTCOME_KIND, "host": "a", "date_utc": "2026", "reason": "dead"}
    (tmp_path / "a.json").write_text(json.dumps(dead))
    write_report([tmp_path], tmp_path / "report.html")
    assert "1 board lacks a record" in Page((tmp_path / "report.html").read_text()).text


def test_records_of_older_schemas_and_broken_ones_are_sorted_out(tmp_path: Path) -> None:
    write_fleet(tmp_path, 2, 2, samples=16)
    shutil.copy(Path(__file__).parents[1] / "records" / "schema_1.json", tmp_path / "old.json")
    (tmp_path / "cut.json").write_bytes(a_synthetic_record(5, 5).to_json()[:999])
    (tmp_path / "other.json").write_text('{"kind": "engine"}')
    found = collect([tmp_path])
    assert len(found.rows) == 3
    assert [Path(file.path).name for file in found.broken] == ["cut.json"]
    assert "end too early" in found.broken[0].reason


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_it_without_an_error_and_its_search_works(
    page: str, raw: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The page as it is, and one that types into its own search field and reports the result."""
    probe = (
        "<script>addEventListener('load', () => {"
        "const field = document.getElementById('search'); field.value = 'orin-011 int4';"
        "field.dispatchEvent(new Event('input'));"
        "document.querySelector('#records th button[data-field=ms_per_token]').click();"
        "document.title = document.getElementById('found').textContent + ' / ' + "
        "[...document.querySelectorAll('#records tbody tr')].map((row) => "
        "row.cells[0].textContent + ' ' + row.cells[6].textContent).join(', ');});</script>"
    )
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", probe + "</body>"))
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr",
         "--virtual-time-budget=10000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    mine = [
        record
        for record in raw
        if record["board"]["hostname"] == "orin-011" and record["model"]["precision"] == "int4"
    ]
    counted, _, listed = title[1].partition(" / ")
    assert counted == f"{len(mine)} of {len(raw)} records"
    times = [float(row.split()[1]) for row in listed.split(", ")]
    assert times == pytest.approx(sorted(map(OF_A_RECORD["ms_per_token"], mine)), rel=6e-3)
