# SPDX-License-Identifier: MIT
"""Ranges for a token on a board: the formula, its figures, and that it says it predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import measured_decode
from pipeline.architecture import PUBLISHED
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.expectation import expected_decoding, render_expected
from pipeline.roofline import BOARDS, predict

MEASURED = Path(__file__).parents[2] / "docs" / "measurements" / "decode.json"


def test_the_figures_are_those_of_the_measurement() -> None:
    rows = [row for row in json.loads(MEASURED.read_text())["rows"] if row["batch"] == 1]
    on_stand_in = [row for row in rows if row["sms"] == measured_decode.MULTIPROCESSORS]
    found = {(row["model"], row["precision"]): row["ms_per_token"] for row in on_stand_in}
    assert found == measured_decode.MILLISECONDS
    shares = [row["read_gbps"] / row["stream_read_gbps"] for row in rows]
    assert max(shares) == pytest.approx(measured_decode.BUS_SHARE, abs=5e-4)


def test_the_formula_on_a_board_that_waits_for_its_memory() -> None:
    """mamba-2.8b in fp16 at 102.4 GB/s: 5,567 MB a token, 9.3 ms of the stand-in."""
    fastest = expected_decoding(PUBLISHED["mamba-2.8b"], "fp16", "orin-nano-8gb")[-1]
    assert fastest.power_mode == "MAXN_SUPER"
    floor = predict(PUBLISHED["mamba-2.8b"], "fp16").decode.bound_ms
    assert fastest.memory_ms == pytest.approx(floor)
    measured = measured_decode.MILLISECONDS["mamba-2.8b", "fp16"]
    assert fastest.compute_ms == pytest.approx(measured * 1980 / 1020)
    assert fastest.compute_ms < fastest.memory_ms
    assert fastest.fastest_ms == fastest.memory_ms
    assert fastest.slowest_ms == pytest.approx(floor / measured_decode.BUS_SHARE)


def test_half_of_the_multiprocessors_take_twice_as_long() -> None:
    board = "orin-nano-8gb-original"
    expected = expected_decoding(PUBLISHED["mamba-130m"], "int4", board)
    modes = {of_mode.power_mode: of_mode for of_mode in expected}
    clocks = {mode.name: mode.gpu_clock_mhz for mode in BOARDS[board].modes}
    wanted = modes["15W"].compute_ms * 2 * clocks["15W"] / clocks["7W"]
    assert modes["7W"].compute_ms == pytest.approx(wanted)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize(("model", "precision"), measured_decode.MILLISECONDS)
def test_ranges_are_ordered_and_not_below_the_roofline(
    board: str, model: str, precision: str
) -> None:
    for of_mode in expected_decoding(PUBLISHED[model], precision, board):
        floor = predict(PUBLISHED[model], precision, board, of_mode.power_mode).decode.bound_ms
        assert floor <= of_mode.fastest_ms * (1 + 1e-9)
        assert of_mode.fastest_ms <= of_mode.slowest_ms


def test_sizes_that_were_not_measured_have_no_range() -> None:
    assert expected_decoding(PUBLISHED["mamba-790m"], "fp16", "orin-nano-8gb") == []
    assert expected_decoding(PUBLISHED["mamba-130m"], "fp32", "orin-nano-8gb") == []
    assert "not measured with these sizes" in render_expected([])
    with pytest.raises(UsageError, match="unknown board"):
        expected_decoding(PUBLISHED["mamba-790m"], "fp16", "orin")


def test_the_command_says_that_it_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "--model", "mamba-370m", "--precision", "int8"])
    text = capsys.readouterr().out
    assert "Predicted, not measured on a board." in text
    assert all(mode.name in text for mode in BOARDS["orin-nano-8gb"].modes)
    main(["predict", "--model", "mamba-370m", "--precision", "int8", "--json"])
    ranges = json.loads(capsys.readouterr().out)["expected_decoding"]
    assert [r["kind"] for r in ranges] == ["prediction"] * len(BOARDS["orin-nano-8gb"].modes)
