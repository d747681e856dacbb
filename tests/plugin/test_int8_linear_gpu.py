# SPDX-License-Identifier: MIT
"""int8 activations times int8 weights against the same arithmetic in numpy, on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from pipeline.int8_activations import GROUP, int8_product, round_activations, widen_activations
from pipeline.quantize import Packing, round_to_nearest
from pipeline.s6_library import call
from pipeline.s6_prefill import (
    FLOAT16,
    FLOAT32,
    AddRmsNormProblem,
    Int8LinearProblem,
    QuantiseRowsProblem,
)
from tests.plugin import oracle

pytestmark = pytest.mark.gpu

# As those of mamba-130m's two products, a stretch that fills no tile, and more than 4 token tiles.
SHAPES = [
    (1, 8, 128),
    (9, 3072, 768),
    (128, 128, 256),
    (129, 136, 384),
    (200, 768, 1536),
    (1100, 264, 512),
]
UNWRITTEN_CODE = -128


class Product(NamedTuple):
    """Factors of one product."""

    codes: np.ndarray
    scales: np.ndarray
    words: np.ndarray
    weight_scales: np.ndarray


def enqueue(torch, function, problem):
    """Runs one call on torch's current stream and waits for it."""
    call(function, problem, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


def on_gpu(torch, array):
    """A copy of a numpy array."""
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def with_outliers(tokens, columns, seed=0):
    """Float16 rows of very different size, with a few outliers and a group of zeros."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(tokens, columns)) * np.exp(generator.normal(size=(tokens, 1)))
    x[generator.random(x.shape) < 2e-3] *= 50
    if tokens > 1:
        x[0, :GROUP] = 0
    return x.astype(np.float16)


def factors(tokens, rows, columns, group_size=GROUP, seed=0):
    """A random product."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(rows, columns)).astype(np.float32)
    words, weight_scales = round_to_nearest("matrix", matrix, Packing(8, group_size))
    x = with_outliers(tokens, columns, seed).astype(np.float32)
    return Product(*round_activations(x), words, weight_scales)


def multiply(torch, product, y, group_size=GROUP, *, wide, y_row=0, add=False):
    """One call of s6_int8_linear."""
    tokens, columns = product.codes.shape
    arrays = (product.words, product.weight_scales.T, product.codes, product.scales)
    words, weight_scales, codes, scales = (on_gpu(torch, array) for array in arrays)
    problem = Int8LinearProblem(
        tokens=tokens,
        rows=len(product.words),
        columns=columns,
        group_size=group_size,
        y_dtype=FLOAT32 if wide else FLOAT16,
        add=int(add),
        weight=words.data_ptr(),
        weight_scales=weight_scales.data_ptr(),
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        y=y.data_ptr(),
        y_row=y_row,
    )
    enqueue(torch, "s6_int8_linear", problem)


@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES, ids=str)
def test_wide_results_are_exact_but_for_the_order_of_the_sum(tokens, rows, columns):
    torch = oracle.require_gpu()
    product = factors(tokens, rows, columns)
    y = torch.full((tokens, rows), float("nan"), device="cuda")
    multiply(torch, product, y, wide=True)
    wanted = int8_product(*product)
    error = np.abs(y.cpu().numpy() - wanted)
    # Of each group two roundings and one of the sum: see the magnitudes that are added.
    size = np.abs(wanted).max(axis=1, keepdims=True) + 1
    assert (error <= 1e-5 * size).all()


@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES, ids=str)
def test_adding_and_narrow_results_touch_their_rows_only(tokens, rows, columns):
    torch = oracle.require_gpu()
    product = factors(tokens, rows, columns, seed=1)
    wanted = int8_product(*product)
    largest = np.abs(wanted).max()
    before = np.random.default_rng(2).normal(size=(tokens, rows + 8)).astype(np.float32)
    for wide in (True, False):
        start = before if wide else before.astype(np.float16)
        y = on_gpu(torch, start)
        multiply(torch, product, y, wide=wide, add=wide, y_row=rows + 8)
        found = y.cpu().numpy()
        sums = wanted + (before[:, :rows] if wide else 0)
        np.testing.assert_allclose(
            found[:, :rows], sums, rtol=0 if wide else 2**-10, atol=1e-5 * largest
        )
        np.testing.assert_array_equal(found[:, rows:], start[:, rows:])


def test_scales_of_the_weights_may_cover_several_groups():
    torch = oracle.require_gpu()
    product = factors(33, 40, 1024, group_size=512)
    y = torch.full((33, 40), float("nan"), device="cuda")
    multiply(torch, product, y, 512, wide=True)
    wanted = int8_product(*product)
    np.testing.assert_allclose(y.cpu().numpy(), wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_largest_sums_are_exact():
    """Every code at its limit, which is as far as a group's sum goes."""
    torch = oracle.require_gpu()
    codes = np.full((2, GROUP), 127, dtype=np.int8)
    codes[1] = -127
    words = np.zeros((8, GROUP // 4), dtype=np.int32)  # Codes of 0: weights of -128.
    product = Product(codes, np.ones((1, 2), np.float32), words, np.ones((8, 1), np.float16))
    y = torch.full((2, 8), float("nan"), device="cuda")
    multiply(torch, product, y, wide=True)
    limit = 128 * 127 * GROUP
    np.testing.assert_array_equal(y.cpu().numpy(), np.array([[-limit] * 8, [limit] * 8]))


def test_a_product_run_twice_gives_the_same_bits_and_a_row_does_not_depend_on_others():
    torch = oracle.require_gpu()
    product = factors(300, 136, 512, seed=3)
    results = []
    for tokens in (300, 300, 7):
        part = product._replace(codes=product.codes[:tokens], scales=product.scales[:, :tokens])
        y = torch.full((tokens, 136), float("nan"), device="cuda")
        multiply(torch, part, y, wide=True)
        results.append(y.cpu().numpy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0][:7], results[2])


@pytest.mark.parametrize(("tokens", "columns"), [(1, 128), (5, 768), (17, 1536), (40, 5120)])
@pytest.mark.parametrize("beside", [0, 24])
def test_rounding_of_float16_rows(tokens, columns, beside):
    """Codes that differ by one from numpy's lie on the border between two."""
    torch = oracle.require_gpu()
    x = with_outliers(tokens, columns + beside, seed=4)
    codes = torch.full((tokens, columns), UNWRITTEN_CODE, dtype=torch.int8, device="cuda")
    scales = torch.full((columns // GROUP, tokens), float("nan"), device="cuda")
    device_x = on_gpu(torch, x)
    problem = QuantiseRowsProblem(
        tokens=tokens,
        columns=columns,
        x=device_x.data_ptr(),
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        x_row=columns + beside,
    )
    enqueue(torch, "s6_quantise_rows", problem)
    assert_codes_stand_for(
        codes.cpu().numpy(), scales.cpu().numpy(), x[:, :columns].astype(np.float32)
    )


@pytest.mark.parametrize("m", [128, 768, 1024, 2560, 4096, 16384])
def test_the_norm_gives_codes(m):
    """And the sum, as without codes."""
    torch = oracle.require_gpu()
    tokens, eps = 6, 1e-5
    generator = np.random.default_rng(5)
    x = with_outliers(tokens, m, seed=5).astype(np.float32)
    x[2] = 0
    weight = generator.normal(size=m).astype(np.float32)
    wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + eps) * weight
    codes = torch.full((tokens, m), UNWRITTEN_CODE, dtype=torch.int8, device="cuda")
    scales = torch.full((m // GROUP, tokens), float("nan"), device="cuda")
    residual = torch.full((tokens, m), float("nan"), device="cuda")
    device_x, device_weight = on_gpu(torch, x), on_gpu(torch, weight)
    problem = AddRmsNormProblem(
        rows=tokens,
        m=m,
        eps=eps,
        x=device_x.data_ptr(),
        weight=device_weight.data_ptr(),
        sum=residual.data_ptr(),
        y=codes.data_ptr(),
        y_scales=scales.data_ptr(),
    )
    enqueue(torch, "s6_add_rms_norm", problem)
    np.testing.assert_array_equal(residual.cpu().numpy(), x)
    assert_codes_stand_for(codes.cpu().numpy(), scales.cpu().numpy(), wanted.astype(np.float32))


def assert_codes_stand_for(codes, scales, x):
    """Within half a step of x everywhere, with numpy's scales and nearly all of numpy's codes."""
    wanted_codes, wanted_scales = round_activations(x)
    np.testing.assert_allclose(scales, wanted_scales, rtol=1e-6)
    differing = codes != wanted_codes
    assert differing.mean() < 1e-3
    assert np.abs(codes.astype(int) - wanted_codes).max() <= 1
    half_step = np.repeat(scales.T, GROUP, axis=1) / 2
    assert (np.abs(widen_activations(codes, scales) - x) <= half_step * (1 + 1e-3)).all()
