# SPDX-License-Identifier: MIT
"""What a prefill does around its products and scans, against numpy, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quantize import Packing, choose_packing, dequantise, round_to_nearest
from pipeline.s6_library import call
from pipeline.s6_prefill import (
    FLOAT16,
    FLOAT32,
    AddRmsNormProblem,
    ConvertProblem,
    DequantiseProblem,
    EmbeddingRowsProblem,
    QuantLinearProblem,
    SliceNormsProblem,
)
from tests.plugin import oracle

pytestmark = pytest.mark.gpu

HALF_ROUNDING = 2**-11


def enqueue(torch, function, problem):
    """Runs one call on torch's current stream and waits for it."""
    call(function, problem, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


def on_gpu(torch, array):
    """A copy of a numpy array."""
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def unwritten(torch, *shape, dtype="float16"):
    """An output in which what nobody writes stays NaN."""
    return torch.full(shape, float("nan"), dtype=getattr(torch, dtype), device="cuda")


def packed(rows, columns, precision, group_size=None, seed=0):
    """Words, scales and the exact matrix they stand for."""
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    packing = choose_packing(precision, columns, group_size)
    words, scales = round_to_nearest("matrix", matrix, packing)
    return packing, words, scales, dequantise(words, scales, packing.bits)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"),
    [
        (16, 64, None),
        (1, 16, 16),
        (37, 48, None),
        (50, 160, None),
        (300, 2560, None),
        (33, 768, 32),
    ],
    ids=str,
)
def test_dequantise_gives_the_rounded_weights(precision, rows, columns, group_size):
    """Equal to the bit to the product of code and scale, rounded once."""
    torch = oracle.require_gpu()
    packing, words, scales, wanted = packed(rows, columns, precision, group_size)
    y = unwritten(torch, rows, columns)
    device_words, device_scales = on_gpu(torch, words), on_gpu(torch, scales.T)
    problem = DequantiseProblem(
        rows=rows,
        columns=columns,
        bits=packing.bits,
        group_size=packing.group_size,
        words=device_words.data_ptr(),
        scales=device_scales.data_ptr(),
        y=y.data_ptr(),
    )
    enqueue(torch, "s6_dequantise", problem)
    np.testing.assert_array_equal(y.cpu().numpy(), wanted.astype(np.float16))


def test_dequantise_of_some_rows_equals_those_rows():
    """Rows 16 to 40 of a larger matrix, whose scales lie further apart than 24."""
    torch = oracle.require_gpu()
    packing, words, scales, wanted = packed(100, 128, "int4")
    first, rows = 16, 24
    y = unwritten(torch, rows, 128)
    device_words, device_scales = on_gpu(torch, words), on_gpu(torch, scales.T)
    problem = DequantiseProblem(
        rows=rows,
        columns=128,
        bits=4,
        group_size=packing.group_size,
        words=device_words[first:].data_ptr(),
        scales=device_scales.data_ptr() + 2 * first,
        y=y.data_ptr(),
        scale_group=100,
    )
    enqueue(torch, "s6_dequantise", problem)
    np.testing.assert_array_equal(y.cpu().numpy(), wanted[first : first + rows].astype(np.float16))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("m", [16, 768, 2560])
def test_embedding_rows(precision, m):
    """Rows in the order of the ids; ids outside the table give zeros."""
    torch = oracle.require_gpu()
    rows = 50
    if precision == "fp16":
        packing = Packing(16, 0)
        exact = np.random.default_rng(1).normal(size=(rows, m)).astype(np.float16)
        table, scales = on_gpu(torch, exact), None
    else:
        packing, words, table_scales, exact = packed(rows, m, precision)
        table, scales = on_gpu(torch, words), on_gpu(torch, table_scales.T)
        exact = exact.astype(np.float16)
    ids = np.array([3, 49, 0, 3, -1, 50, 17], dtype=np.int32)
    wanted = np.where(((ids >= 0) & (ids < rows))[:, None], exact[np.clip(ids, 0, rows - 1)], 0)
    x = unwritten(torch, len(ids), m, dtype="float32")
    device_ids = on_gpu(torch, ids)
    problem = EmbeddingRowsProblem(
        tokens=len(ids),
        m=m,
        vocab_rows=rows,
        bits=packing.bits,
        group_size=packing.group_size,
        table=table.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        token_ids=device_ids.data_ptr(),
        x=x.data_ptr(),
    )
    enqueue(torch, "s6_embedding_rows", problem)
    np.testing.assert_array_equal(x.cpu().numpy(), wanted.astype(np.float32))


@pytest.mark.parametrize("m", [8, 768, 1024, 1032, 2560, 4096, 16384])
@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize("sum_place", ["nowhere", "over x", "apart"])
def test_norm_with_and_without_an_addition(m, with_delta, sum_place):
    """The sum is written where it is wanted and nowhere else; rows of zeros stay zeros."""
    if with_delta and sum_place == "nowhere":
        pytest.skip("refused: see prefill_checks_test.cpp")
    torch = oracle.require_gpu()
    generator = np.random.default_rng(2)
    x = generator.normal(scale=3, size=(5, m)).astype(np.float32)
    x[3] = 0
    delta = generator.normal(size=(5, m)).astype(np.float16)
    delta[3] = 0
    weight = generator.normal(size=m).astype(np.float32)
    eps = 1e-5
    residual = x + delta.astype(np.float32) if with_delta else x
    exact = residual.astype(np.float64)
    wanted = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + eps) * weight
    device_x, device_delta, device_weight = (on_gpu(torch, v) for v in (x, delta, weight))
    apart = unwritten(torch, 5, m, dtype="float32")
    places = {"nowhere": None, "over x": device_x, "apart": apart}
    place = places[sum_place]
    y = unwritten(torch, 5, m)
    problem = AddRmsNormProblem(
        rows=5,
        m=m,
        eps=eps,
        x=device_x.data_ptr(),
        delta=device_delta.data_ptr() if with_delta else None,
        weight=device_weight.data_ptr(),
        sum=None if place is None else place.data_ptr(),
        y=y.data_ptr(),
    )
    enqueue(torch, "s6_add_rms_norm", problem)
    if place is not None:
        np.testing.assert_array_equal(place.cpu().numpy(), residual)
    if sum_place != "over x":
        np.testing.assert_array_equal(device_x.cpu().numpy(), x)
    np.testing.assert_allclose(y.cpu().numpy(), wanted, rtol=2 * HALF_ROUNDING, atol=1e-6)


def test_norm_of_every_third_row():
    """As for the last token of each text: rows further apart than their width."""
    torch = oracle.require_gpu()
    x = np.random.default_rng(3).normal(size=(9, 64)).astype(np.float32)
    device_x, weight = on_gpu(torch, x), torch.ones(64, device="cuda")
    y = unwritten(torch, 3, 64)
    problem = AddRmsNormProblem(
        rows=3,
        m=64,
        eps=0,
        x=device_x[2:].data_ptr(),
        weight=weight.data_ptr(),
        y=y.data_ptr(),
        x_row=3 * 64,
    )
    enqueue(torch, "s6_add_rms_norm", problem)
    rows = x[2::3]
    wanted = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(y.cpu().numpy(), wanted, rtol=2 * HALF_ROUNDING)


@pytest.mark.parametrize(("r", "n", "row"), [(256, 16, 288), (5, 16, 40), (48, 16, 80), (3, 7, 17)])
def test_slice_norms_leave_what_is_between_rows_alone(r, n, row):
    """dt, B and C of each row, in place."""
    torch = oracle.require_gpu()
    eps, rows = 1e-6, 19
    x = np.random.default_rng(4).normal(size=(rows, row)).astype(np.float16)
    device_x = on_gpu(torch, x)
    problem = SliceNormsProblem(rows=rows, r=r, n=n, eps=eps, x=device_x.data_ptr(), x_row=row)
    enqueue(torch, "s6_slice_norms", problem)
    found = device_x.cpu().numpy()
    for part in (slice(0, r), slice(r, r + n), slice(r + n, r + 2 * n)):
        exact = x[:, part].astype(np.float64)
        wanted = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + eps)
        np.testing.assert_allclose(found[:, part], wanted, rtol=2 * HALF_ROUNDING, atol=1e-7)
    np.testing.assert_array_equal(found[:, r + 2 * n :], x[:, r + 2 * n :])


@pytest.mark.parametrize("count", [1, 255, 256, 257, 100_001])
def test_convert_there_and_back(count):
    """Rounds to nearest on the way to float16, exact on the way back."""
    torch = oracle.require_gpu()
    x = np.random.default_rng(5).normal(size=count).astype(np.float32)
    device_x = on_gpu(torch, x)
    narrow, wide = unwritten(torch, count), unwritten(torch, count, dtype="float32")
    for source, target, types in (
        (device_x, narrow, {"from_dtype": FLOAT32, "to_dtype": FLOAT16}),
        (narrow, wide, {"from_dtype": FLOAT16, "to_dtype": FLOAT32}),
    ):
        problem = ConvertProblem(count=count, x=source.data_ptr(), y=target.data_ptr(), **types)
        enqueue(torch, "s6_convert", problem)
    np.testing.assert_array_equal(narrow.cpu().numpy(), x.astype(np.float16))
    np.testing.assert_array_equal(wide.cpu().numpy(), x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 8])
@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (5, 16), (80, 1536), (1000, 2560)])
@pytest.mark.parametrize("adds", [False, True])
def test_a_small_product_of_stored_weights(precision, tokens, rows, columns, adds):
    """Against float64 with the rounded weights; rows further apart than their width."""
    torch = oracle.require_gpu()
    generator = np.random.default_rng(6)
    if precision == "fp16":
        packing = Packing(16, 0)
        exact = generator.normal(size=(rows, columns)).astype(np.float16)
        weight, scales = on_gpu(torch, exact), None
    else:
        packing, words, matrix_scales, exact = packed(rows, columns, precision)
        weight, scales = on_gpu(torch, words), on_gpu(torch, matrix_scales.T)
        exact = exact.astype(np.float16)
    x = generator.normal(size=(tokens, columns + 8)).astype(np.float16)
    before = generator.normal(size=(tokens, rows + 3)).astype(np.float32)
    y = on_gpu(torch, before if adds else before.astype(np.float16))
    device_x = on_gpu(torch, x)
    problem = QuantLinearProblem(
        tokens=tokens,
        rows=rows,
        columns=columns,
        bits=packing.bits,
        group_size=packing.group_size,
        y_dtype=FLOAT32 if adds else FLOAT16,
        add=int(adds),
        weight=weight.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        x=device_x.data_ptr(),
        y=y.data_ptr(),
        x_row=columns + 8,
        y_row=rows + 3,
    )
    enqueue(torch, "s6_quant_linear", problem)
    found = y.cpu().numpy().astype(np.float64)
    wanted = x[:, :columns].astype(np.float64) @ exact.T.astype(np.float64)
    wanted += before[:, :rows] if adds else 0
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(found[:, :rows], wanted, atol=scale * (1e-5 if adds else 1e-3))
    untouched = before if adds else before.astype(np.float16)
    np.testing.assert_array_equal(found[:, rows:], untouched[:, rows:])


def test_a_row_of_a_small_product_does_not_depend_on_the_others():
    """To the last bit: one row alone, and in company."""
    torch = oracle.require_gpu()
    _, words, scales, _ = packed(96, 768, "int4")
    weight, device_scales = on_gpu(torch, words), on_gpu(torch, scales.T)
    x = on_gpu(torch, np.random.default_rng(7).normal(size=(8, 768)).astype(np.float16))
    results = []
    for tokens in (8, 3, 1):
        y = unwritten(torch, tokens, 96, dtype="float32")
        problem = QuantLinearProblem(
            tokens=tokens,
            rows=96,
            columns=768,
            bits=4,
            group_size=64,
            y_dtype=FLOAT32,
            weight=weight.data_ptr(),
            scales=device_scales.data_ptr(),
            x=x.data_ptr(),
            y=y.data_ptr(),
        )
        enqueue(torch, "s6_quant_linear", problem)
        results.append(y[0].cpu().numpy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
