# SPDX-License-Identifier: MIT
"""Reports: complete without a network, true to their records, honest about the rest."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.errors import RecordError
from pipeline.record_rows import collect
from pipeline.records import BenchRecord, Comparison, RooflineShare, Timings, number
from pipeline.report import byte_size, render_record, write_report
from tests.pipeline.test_records import a_record

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Text, links and nesting of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tips: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every element must be closed"

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "data"}:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "data-tip":
                self.tips.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.words.append(data)


def timings(step_ms: float, iterations: int = 5, tokens: int = 32) -> Timings:
    generator = np.random.default_rng(3)
    decode = step_ms * (1 + 0.01 * generator.standard_normal((iterations, tokens)))
    first = 40 * step_ms * (1 + 0.01 * generator.standard_normal(iterations))
    return Timings.from_samples(
        first.tolist(), decode.tolist(), sequence_length=1024, batch=1, stopped="settled"
    )


def named(record_id: str, step_ms: float = 12.5, **changes: Any) -> BenchRecord:
    values = a_record(record_id).model_dump()
    model = {**values["model"], "name": f"model-{record_id}"}
    return BenchRecord.model_validate(
        {**values, "timings": timings(step_ms), "model": model, **changes}
    )


def write(folder: Path, *records: BenchRecord) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / f"{record.record_id}.json").write_bytes(record.to_json())
    return folder


def test_one_record_gives_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "records", named("one"))
    output = write_report([folder / "one.json"], tmp_path / "out" / "report.html")
    html = output.read_text()
    page = Page(html)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    # The only addresses are the names of XML vocabularies, which nobody fetches.
    assert set(re.findall(r"https?://[\w./-]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert html.startswith("<!DOCTYPE html>")
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert len(page.ids) == len(set(page.ids))


def test_numbers_are_those_of_the_record() -> None:
    record = named("one")
    text = Page(render_record(record)).text
    found = record.timings
    samples = np.concatenate([np.asarray(row) for row in found.decode_samples_ms])
    assert f"{np.median(samples):.1f} ms/token" in text
    assert f"{np.median(found.first_token_samples_ms):.0f} ms" in text
    assert f"{1e3 * len(samples) / samples.sum():.1f} tokens/s" in text
    assert f"{samples.max():.1f}" in text
    assert f"{np.percentile(samples, 90):.1f}" in text
    assert record.board.name in text
    assert "2-core" not in text
    assert "numpy" in text
    assert record.command in text
    for check in record.checks:
        assert check.name in text
        assert check.detail in text


def test_charts_are_drawn_from_the_samples() -> None:
    record = named("one")
    page = Page(render_record(record))
    decoded = np.asarray(record.timings.decode_samples_ms)
    first = f"token 1: {number(float(np.median(decoded[:, 0])))} ms"
    assert sum(tip.startswith(first) for tip in page.tips) == 2, "wide and narrow"
    for wide in (True, False):
        counts = [
            int(match[1].replace(",", ""))
            for tip in page.tips
            if (match := re.search(r": ([\d,]+) of 160 tokens", tip))
        ]
        histogram = counts[:48] if wide else counts[48:]
        assert sum(histogram) == 160


def test_charts_take_the_colours_of_the_page() -> None:
    charts = re.findall(r"<svg.*?</svg>", render_record(named("one")), re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        ElementTree.fromstring(chart)  # well-formed on its own
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", chart))
        assert all(colour == "none" or colour.startswith("var(--") for colour in colours)
        assert "var(--accent)" in chart
        assert "<text" in chart


def test_the_same_records_give_the_same_page() -> None:
    assert render_record(named("one")) == render_record(named("one"))


@pytest.mark.parametrize(
    "samples", [[[1.0]], [[2.0, 2.0, 2.0]], [[0.001] * 9 + [9000.0]], [[1.0], [3.0]]]
)
def test_few_and_odd_samples_can_be_drawn_too(samples: list[list[float]]) -> None:
    odd = Timings.from_samples([5.0], samples, sequence_length=1, batch=1, stopped="iterations")
    text = Page(render_record(named("one", timings=odd))).text
    assert "nan" not in text.lower()
    assert ("1 slower than" in text) == (9000.0 in samples[0])


def test_peers_are_shown_with_their_ratio_or_their_reason() -> None:
    peer = Comparison(
        peer="torch",
        version="9.9",
        precision="fp32",
        timings=timings(50.0),
        first_token_ratio=4.0,
        ms_per_token_ratio=4.0,
    )
    fields = ("version", "precision", "timings", "first_token_ratio", "ms_per_token_ratio")
    failed = Comparison.model_validate(
        {
            **dict.fromkeys(fields),
            "peer": "other",
            "missing": dict.fromkeys(fields, "it ran out of memory"),
        }
    )
    text = Page(render_record(named("one", comparisons=(peer, failed)))).text
    assert "torch 9.9" in text
    assert "4.00\u00d7" in text
    assert "it ran out of memory" in text


def test_a_failed_check_is_said_at_the_top() -> None:
    checks = [
        {"name": "no other load", "passed": False, "detail": "others used 40 %"},
        {"name": "no swapping", "passed": None, "detail": "cannot tell"},
    ]
    text = Page(render_record(named("one", checks=checks))).text
    assert text.index("1 of 2 checks failed: no other load") < text.index("Time to first token")
    assert "others used 40 %" in text
    fine = Page(render_record(named("two", checks=checks[1:]))).text
    assert "valid: no check failed" in fine


def test_a_roofline_is_called_predicted_and_a_missing_one_is_explained() -> None:
    known = RooflineShare(
        bytes_per_token=265_000_000,
        read_gb_per_s=81.0,
        board="orin-nano-8gb, MAXN_SUPER",
        bandwidth_gb_per_s=102.4,
        bound_ms_per_token=2.59,
        share_percent=79.1,
    )
    missing = {key: value for key, value in a_record().missing.items() if key != "roofline"}
    text = Page(render_record(named("one", roofline=known, missing=missing))).text
    assert "79 % of what the memory of orin-nano-8gb, MAXN_SUPER allows" in text
    assert "a prediction from data sheets" in text
    fields = ("board", "bandwidth_gb_per_s", "bound_ms_per_token", "share_percent")
    unknown = {**known.model_dump(), **dict.fromkeys(fields)}
    unknown["missing"] = dict.fromkeys(fields, "this machine is not in the board table")
    text = Page(render_record(named("one", roofline=unknown, missing=missing))).text
    assert "A share cannot be given: this machine is not in the board table" in text


def test_what_has_no_value_has_a_reason_on_the_page() -> None:
    text = Page(render_record(named("one"))).text
    assert "power not in this test" in text
    assert "first token: p90 ms needs 100 samples, there are 5" in text


def test_text_from_a_record_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>&\"'"
    html = render_record(named("one", command=evil, generator=evil))
    assert "<script>alert" not in html
    assert evil in Page(html).text


def test_folders_are_searched_and_foreign_json_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a", named("one"))
    write(tmp_path / "b" / "deep", named("two"))
    (tmp_path / "b" / "manifest.json").write_text('{"kind": "engine"}')
    (tmp_path / "b" / "notes.txt").write_text("not JSON")
    found = collect([tmp_path])
    assert [row.record_id for row in found.rows] == ["one", "two"]
    assert found.broken == []


def test_a_broken_record_is_listed_and_the_others_are_kept(tmp_path: Path) -> None:
    write(tmp_path, named("one"))
    (tmp_path / "cut.json").write_bytes(named("two").to_json()[:500])
    newer = {**json.loads(named("three").to_json()), "schema_version": 99}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    output = write_report([tmp_path, tmp_path / "absent.json"], tmp_path / "report.html")
    text = Page(output.read_text()).text
    assert "model-one" in text
    assert "3 files could not be taken into this report" in text
    assert "end too early" in text
    assert "schema 99; this version reads 2" in text
    assert "update mamba-orin to read it" in text
    assert "No such file" in text


def test_a_record_counts_once_however_often_it_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "records", named("one"))
    (folder / "copy.json").write_bytes(named("one").to_json())
    found = collect([folder, folder / "one.json"])
    assert len(found.rows) == 1
    assert "the same record as" in found.broken[0].reason


def test_a_named_file_that_is_no_record_is_listed(tmp_path: Path) -> None:
    write(tmp_path, named("one"))
    other = tmp_path / "manifest.json"
    other.write_text('{"kind": "engine"}')
    found = collect([tmp_path / "one.json", other])
    assert "a file of kind 'engine'" in found.broken[0].reason


def test_no_record_at_all_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no benchmark record in") as error:
        write_report([tmp_path], tmp_path / "report.html")
    assert "mamba-orin bench" in error.value.fix
    (tmp_path / "cut.json").write_text('{"kind": ')
    with pytest.raises(RecordError, match=r"cut\.json"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_sizes_are_readable() -> None:
    assert byte_size(0) == "0 B"
    assert byte_size(265_600_000) == "266 MB"
    assert byte_size(7_976_910_848) == "7.98 GB"
