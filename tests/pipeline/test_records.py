# SPDX-License-Identifier: MIT
"""Records: what is derived, what is refused, what survives the way to disk and back."""

import json
import statistics
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from pipeline.errors import RecordError
from pipeline.records import (
    BenchRecord,
    BenchSettings,
    Board,
    Check,
    Comparison,
    Gpu,
    ModelFacts,
    Timings,
    has_percentile,
    number,
    percent,
    read_record,
    spread_percent,
    summarize,
)


def a_board() -> Board:
    values: dict[str, Any] = dict.fromkeys(
        ("hostname", "operating_system", "kernel", "cpu", "cuda", "tensorrt", "cudnn", "jetson")
    )
    values |= {"instruction_set": "x86_64", "cores": 2, "usable_cores": 2}
    values |= {"memory_bytes": 8_000_000_000, "swap_bytes": 0}
    missing = {name: "not in this test" for name, value in values.items() if value is None}
    return Board(name="test machine", python="3.11.7", gpus=(), missing=missing, **values)


def a_record(record_id: str = "one") -> BenchRecord:
    timings = Timings.from_samples(
        [100.0, 110.0, 90.0],
        [[10.0, 20.0], [11.0, 19.0], [12.0, 18.0]],
        sequence_length=7,
        batch=1,
        stopped="iterations",
    )
    absent = ["load_s", "peak_memory_bytes", "power", "temperature", "roofline"]
    absent += ["pinned", "telemetry", "clocks", "served"]
    nothing: dict[str, Any] = dict.fromkeys(absent)
    return BenchRecord(
        record_id=record_id,
        date_utc="2026-11-23T12:00:00+00:00",
        generator="test",
        command="mamba-orin bench engine",
        board=a_board(),
        versions={"numpy": "2"},
        model=ModelFacts(
            name="tiny",
            architecture={"d_model": 4},
            parameters=12,
            precision="fp32",
            weight_bytes=48,
            weights_sha256="00" * 32,
        ),
        backend="onnxruntime",
        settings=BenchSettings(sequence_length=7, new_tokens=2, threads=2),
        timings=timings,
        checks=(Check(name="enough samples", passed=True, detail="3 of 3"),),
        comparisons=(),
        missing=dict.fromkeys(absent, "not in this test"),
        **nothing,
    )


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(a_record().to_json())
    assert read_record(path) == a_record()


def test_derived_values_follow_from_the_raw_samples() -> None:
    timings = a_record().timings
    flat = [10.0, 20.0, 11.0, 19.0, 12.0, 18.0]
    assert timings.first_token.median_ms == 100.0
    assert timings.decode.mean_ms == pytest.approx(statistics.mean(flat))
    assert timings.decode.standard_deviation_ms == pytest.approx(statistics.stdev(flat))
    assert timings.tokens_per_second == pytest.approx(6 / 0.090)
    assert timings.prompt_tokens_per_second == pytest.approx(21 / 0.300)


def test_tokens_of_every_text_of_a_batch_count() -> None:
    timings = Timings.from_samples(
        [10.0], [[10.0]], sequence_length=5, batch=4, stopped="iterations"
    )
    assert timings.tokens_per_second == pytest.approx(400)
    assert timings.prompt_tokens_per_second == pytest.approx(2000)


@pytest.mark.parametrize(
    ("percent", "needed"), [(10, 100), (50, 20), (90, 100), (95, 200), (99, 1000)]
)
def test_a_percentile_needs_ten_samples_beyond_it(percent: float, needed: int) -> None:
    assert has_percentile(percent, needed)
    assert not has_percentile(percent, needed - 1)


def test_too_few_samples_give_a_reason_instead_of_a_percentile() -> None:
    summary = summarize([float(i) for i in range(1, 151)])
    assert summary.p90_ms == pytest.approx(135.1)
    assert summary.p95_ms is None
    assert summary.missing["p95_ms"] == "needs 200 samples, there are 150"
    assert summarize([5.0]).standard_deviation_ms is None
    assert summarize([5.0, 6.0]).spread_percent is None


def test_spread_is_where_half_of_the_samples_lie() -> None:
    assert spread_percent([90.0, 99.0, 100.0, 101.0, 130.0]) == pytest.approx(1.0)


def test_one_long_pause_shows_in_mean_and_maximum_but_not_in_the_spread() -> None:
    summary = summarize([10.0, 10.1, 9.9, 10.0, 500.0])
    assert summary.spread_percent == pytest.approx(1.0)
    assert summary.maximum_ms == 500.0
    assert summary.mean_ms > 100


def test_a_missing_value_must_have_a_reason() -> None:
    with pytest.raises(ValidationError, match="memory_bytes"):
        Gpu(name="GPU", memory_bytes=None, driver="1")
    with pytest.raises(ValidationError, match="driver"):
        Gpu(name="GPU", memory_bytes=1, driver="1", missing={"driver": "no reason to say so"})


def test_a_check_that_could_not_be_made_does_not_fail_a_record() -> None:
    record = a_record()
    unsure = Check(name="swap", passed=None, detail="unknown")
    failed = Check(name="swap", passed=False, detail="3 pages")
    assert record.model_copy(update={"checks": (unsure,)}).is_valid
    assert not record.model_copy(update={"checks": (unsure, failed)}).is_valid


def _changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(a_record().to_json()), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "found", "fix"),
    [
        (a_record().to_json()[:700], "end too early", "copy the file again"),
        (b"", "an empty file", "bench ENGINE"),
        (b"\x89PNG\r\n", "not JSON", "bench ENGINE"),
        (b'{"kind": "engine"}', "kind 'engine'", "mamba-orin bench"),
        (b"[1, 2]", "without a record's `kind`", "mamba-orin bench"),
        (_changed(schema_version=3), "schema 3; this version reads 2", "update mamba-orin"),
        (_changed(schema_version="x"), "schema 'x'", "measure again"),
        (_changed(backend=7), "backend", "measure again"),
        (_changed(settings={"seed": "12"}), "settings.seed", "measure again"),
        (_changed(surprise=1), "surprise", "measure again"),
        (_changed(missing={}), "do not match", "measure again"),
    ],
)
def test_refuses_what_is_no_record(tmp_path: Path, content: bytes, found: str, fix: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert found in str(error.value)
    assert fix in error.value.fix


def test_refuses_every_cut_of_a_record(tmp_path: Path) -> None:
    path, whole = tmp_path / "cut.json", a_record().to_json().rstrip()
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError):
            read_record(path)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "none.json")


def test_samples_of_an_iteration_stand_on_one_line() -> None:
    assert b"[10.0, 20.0]" in a_record().to_json()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (0.9996, "1.000"),
        (1.234, "1.23"),
        (56.78, "56.8"),
        (123.4, "123"),
        (45678.9, "45,679"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_have_two_digits() -> None:
    assert percent(6.27) == "6.3 %"
    assert percent(73.4) == "73 %"


def test_the_summary_says_result_peers_and_failed_checks() -> None:
    record = a_record()
    text = record.summary_text()
    assert "tiny fp32, onnxruntime on test machine, 2 threads" in text
    assert "100 ms" in text
    assert "15.0 ms" in text
    assert "66.7 tokens/s" in text
    assert "valid: none of 1 checks failed" in text
    peer = Comparison(
        peer="torch",
        version="9",
        precision="fp32",
        timings=record.timings,
        first_token_ratio=2.0,
        ms_per_token_ratio=3.0,
    )
    failed = Check(name="no swapping", passed=False, detail="3 pages")
    text = record.model_copy(update={"comparisons": (peer,), "checks": (failed,)}).summary_text()
    assert "torch 9 takes 2.00 times as long to the first token and 3.00 times" in text
    assert "check failed: no swapping: 3 pages" in text


def test_a_record_of_schema_1_is_still_read() -> None:
    """The one that is kept from before records knew power."""
    path = Path(__file__).parents[1] / "records" / "schema_1.json"
    assert json.loads(path.read_text())["schema_version"] == 1
    record = read_record(path)
    assert record.schema_version == 2
    assert record.telemetry is None
    assert record.missing["telemetry"] == "no part of a record of schema 1"
    assert record.settings.telemetry == "none"
    assert record.timings.decode.count > 0


def test_the_published_schema_is_that_of_the_code_and_records_keep_to_it() -> None:
    folder = Path(__file__).parents[2] / "docs"
    schema = json.loads((folder / "record.schema.json").read_text())
    found = {**BenchRecord.model_json_schema(mode="serialization")}
    assert {key: schema[key] for key in found} == found, "run: make schema"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(json.loads(a_record().to_json()))
    wrong = {**json.loads(a_record().to_json()), "backend": 7}
    assert [error.json_path for error in validator.iter_errors(wrong)] == ["$.backend"]
