# SPDX-License-Identifier: MIT
"""Roofline: published floors are met, units are named, nonsense is refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.architecture import PUBLISHED, MambaArchitecture
from pipeline.board import read_board
from pipeline.errors import UsageError
from pipeline.quantize import QuantisationChoice, choose_packings
from pipeline.roofline import (
    BOARDS,
    board_limits,
    decode_work,
    find_model,
    limits_of,
    predict,
    prefill_work,
    render,
    state_bytes,
    weight_bytes,
)
from pipeline.stored_tensors import plan_tensors
from pipeline.weights import plan_places
from tests.pipeline.test_board import original_8gb, super_8gb

# Milliseconds for a token that must read all weights, at 68.3 and at 102.4 GB/s, for fp16;
# counted independently for this project, with the vectors in float16 and without the state of
# the convolution. Ours are in float32 and counted with it, which is worth up to 1.3 % on the
# small models.
PUBLISHED_FLOORS_MS = {
    "mamba-130m": (3.89, 2.59),
    "mamba-370m": (11.2, 7.43),
    "mamba-790m": (23.7, 15.8),
    "mamba-1.4b": (40.9, 27.1),
    "mamba-2.8b": (82.3, 54.6),
}
TINY = MambaArchitecture(
    d_model=4,
    n_layer=2,
    d_inner=8,
    d_state=3,
    d_conv=4,
    dt_rank=2,
    vocab_size=10,
    vocab_rows=16,
)


@pytest.mark.parametrize("model", PUBLISHED_FLOORS_MS)
def test_decode_floors_are_the_published_ones(model: str) -> None:
    for mode, floor_ms in zip(("15W", "MAXN_SUPER"), PUBLISHED_FLOORS_MS[model], strict=True):
        found = predict(PUBLISHED[model], "fp16", "orin-nano-8gb", mode)
        assert found.fits_in_memory
        assert found.decode.bound_ms == pytest.approx(floor_ms, rel=0.014)
        assert found.decode.limiting_unit == "memory"
        assert found.tokens_per_second_bound == pytest.approx(1e3 / found.decode.bound_ms)


def test_a_model_of_7b_fits_in_int4_only() -> None:
    fits = {
        precision: predict(PUBLISHED["falcon-mamba-7b"], precision).fits_in_memory
        for precision in ("fp16", "int8", "int4")
    }
    assert fits == {"fp16": False, "int8": False, "int4": True}


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_weights_are_counted_as_convert_stores_them(model: str, precision: Any) -> None:
    packed = choose_packings(PUBLISHED[model], precision, QuantisationChoice())
    places = plan_places(plan_tensors(PUBLISHED[model], precision, packed))
    assert weight_bytes(PUBLISHED[model], precision) == sum(p.length for p in places.values())


def test_weight_bytes_of_mamba_2_8b() -> None:
    """The published size has the vectors in float16; ours add two bytes to each."""
    architecture = find_model("mamba-2.8b")
    vectors = sum(w.elements for w in architecture.weights().values() if w.kind == "vector")
    found = weight_bytes(architecture, "fp16") - 2 * vectors
    assert found / 1e6 == pytest.approx(5536.7, abs=0.06)


def test_bytes_of_a_token_counted_by_hand() -> None:
    in_proj, x_proj, dt_proj, out_proj = 16 * 4, 8 * 8, 8 * 2, 4 * 8
    vectors = 4 + 4 * 8 + 8 + 8 + 3 * 8 + 8
    embedding = 16 * 4
    elements = 2 * (in_proj + x_proj + dt_proj + out_proj) + embedding
    floats = 2 * vectors + 4
    state = 2 * (3 * 8 + 3 * 8)
    assert state_bytes(TINY) == 4 * state
    assert decode_work(TINY, "fp32").bytes == 4 * (elements + floats + 2 * state)
    assert decode_work(TINY, "fp16").bytes == 2 * elements + 4 * (floats + 2 * state)
    # No group divides rows this short: they stay in float16.
    assert decode_work(TINY, "int4").bytes == decode_work(TINY, "fp16").bytes


def test_packed_bytes_of_a_token_counted_by_hand() -> None:
    architecture = MambaArchitecture(
        d_model=128, n_layer=0, d_inner=8, d_state=3, d_conv=4, dt_rank=2, vocab_size=10,
        vocab_rows=10, tied_head=False,
    )  # fmt: skip
    row = 128 + 2  # of embedding and head, which are int8 in int4 models: codes and one scale
    assert decode_work(architecture, "int8").bytes == 10 * row + row + 4 * 128
    assert decode_work(architecture, "int4").bytes == 10 * row + row + 4 * 128


def test_only_an_untied_embedding_gives_one_row_a_token() -> None:
    tied, untied = TINY, MambaArchitecture(**{**TINY.to_dict(), "tied_head": False})
    row = 4 * 4
    assert decode_work(untied, "fp32").bytes == decode_work(tied, "fp32").bytes + row
    assert decode_work(untied, "fp32", batch=3).bytes - 6 * state_bytes(untied) == (
        decode_work(tied, "fp32", batch=3).bytes - 6 * state_bytes(tied) + 3 * row
    )


def test_a_prompt_reads_the_weights_once_and_computes_for_every_token() -> None:
    one, many = prefill_work(TINY, "fp16", 1), prefill_work(TINY, "fp16", 100)
    head = 2 * 16 * 4
    assert many.bytes == one.bytes
    assert many.matrix_operations - head == 100 * (one.matrix_operations - head)
    assert many.exponentials == 100 * 2 * 8 * 3


def test_a_long_prompt_is_limited_by_computing() -> None:
    found = predict(find_model("mamba-2.8b"), "fp16", sequence_length=2048)
    assert found.decode.limiting_unit == "memory"
    assert found.prefill.limiting_unit == "tensor cores"
    assert found.prefill.bound_ms == max(found.prefill.unit_ms.values())


def test_single_precision_has_no_tensor_cores() -> None:
    found = predict(find_model("mamba-130m"), "fp32", sequence_length=2048)
    assert found.prefill.unit_ms["tensor cores"] == 0
    assert found.prefill.limiting_unit == "CUDA cores"


@pytest.mark.parametrize(
    ("board", "mode", "gb_per_s", "tensor_tflops", "float_tflops"),
    [
        ("orin-nano-8gb", "MAXN_SUPER", 102.4, 16.7, 2.09),
        ("orin-nano-8gb", "15W", 68.3, 10.0, 1.25),
        ("orin-nano-8gb-original", "15W", 68.3, 10.2, 1.28),
        ("orin-nano-4gb", "MAXN_SUPER", 51.2, 8.36, 1.04),
        ("orin-nano-4gb-original", "10W", 34.1, 5.12, 0.64),
    ],
)
def test_limits_are_those_of_the_data_sheets(
    board: str, mode: str, gb_per_s: float, tensor_tflops: float, float_tflops: float
) -> None:
    limits = board_limits(board, mode)
    assert limits.memory_gb_per_s == pytest.approx(gb_per_s, rel=0.002)
    assert limits.tensor_tflops == pytest.approx(tensor_tflops, rel=0.01)
    assert limits.float_tflops == pytest.approx(float_tflops, rel=0.01)
    assert limits.exponentials_g_per_s == pytest.approx(limits.float_tflops * 1e3 / 16, rel=1e-9)


def test_a_faster_mode_is_never_slower() -> None:
    for name, board in BOARDS.items():
        floors = [
            predict(find_model("mamba-370m"), "fp16", name, mode.name).prefill.bound_ms
            for mode in board.modes
        ]
        assert floors == sorted(floors, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (("fp16", "orin-nano"), "orin-nano-8gb, orin-nano-8gb-original, orin-nano-4gb"),
        (("fp16", "orin-nano-8gb", "10W"), "15W, 25W, MAXN_SUPER"),
        (("fp16", "orin-nano-8gb-original", "25W"), "25W is a mode of orin-nano-8gb"),
        (("fp8", "orin-nano-8gb"), "fp32, fp16, int8, int4"),
    ],
)
def test_an_unknown_word_is_answered_with_the_choices(
    arguments: tuple[str, ...], choices: str
) -> None:
    with pytest.raises(UsageError) as error:
        predict(find_model("mamba-130m"), *arguments)
    assert choices in error.value.fix


def test_models_by_the_names_people_use() -> None:
    assert find_model("state-spaces/mamba-370m-hf") == PUBLISHED["mamba-370m"]
    with pytest.raises(UsageError) as error:
        find_model("mamba-999b")
    assert "mamba-130m, mamba-370m" in error.value.fix


def test_no_tokens_have_no_cost() -> None:
    with pytest.raises(UsageError, match="0 tokens"):
        predict(TINY, "fp16", sequence_length=0)


def test_what_is_printed_says_that_it_is_predicted() -> None:
    text = render(predict(find_model("mamba-370m"), "fp16", model="mamba-370m"))
    assert "Predicted from data sheets, not measured." in text
    assert "mamba-370m fp16 on Jetson Orin Nano 8 GB, Super boot chain, MAXN_SUPER" in text
    assert "7.45 ms" in text
    assert all(len(line) <= 78 for line in text.splitlines())
    assert predict(TINY, "fp16").model_dump()["kind"] == "prediction"
    too_large = render(predict(find_model("falcon-mamba-7b"), "fp16"))
    assert "do NOT fit" in too_large


def test_the_limits_of_a_board_that_was_read(tmp_path: Path) -> None:
    limits = limits_of(read_board(super_8gb(tmp_path / "super")))
    assert limits == board_limits("orin-nano-8gb", "MAXN_SUPER")
    # This one claims a mode that its boot chain does not have: no floor is better than a wrong one.
    assert limits_of(read_board(original_8gb(tmp_path / "original"))) == (
        "orin-nano-8gb-original in mode MAXN_SUPER is not in the board table"
    )
    assert limits_of(read_board(tmp_path)) == "this machine is not in the board table"
