# SPDX-License-Identifier: MIT
"""delta, B and C of the selection kernel against two products in float64, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.s6_library import call
from pipeline.s6_selection import STATE, SelectionProblem
from tests.plugin import oracle

pytestmark = pytest.mark.gpu

POISON = float("nan")


def select(torch, u, x_proj, dt_proj, spare_rows=0):
    """One call; delta, B and C, with rows after them that it must not touch."""
    tokens, d = u.shape
    rank = dt_proj.shape[1]
    delta = torch.full((tokens + spare_rows, d), POISON, dtype=torch.float16, device="cuda")
    B, C = torch.full((2, tokens + spare_rows, STATE), POISON, dtype=torch.float16, device="cuda")
    problem = SelectionProblem(
        tokens=tokens,
        d=d,
        r=rank,
        n=STATE,
        u=u.data_ptr(),
        x_proj=x_proj.data_ptr(),
        dt_proj=dt_proj.data_ptr(),
        delta=delta.data_ptr(),
        B=B.data_ptr(),
        C=C.data_ptr(),
    )
    call("s6_selection", problem, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return delta, B, C


def factors(torch, tokens, d, rank, seed=0):
    """Random u, x_proj and dt_proj whose products are of order 1."""
    generator = torch.Generator(device="cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator)

    x_proj = normal(rank + 2 * STATE, d) * d**-0.5
    return normal(tokens, d).half(), x_proj.half(), (normal(d, rank) * rank**-0.5).half()


def relative_error(found, expected):
    """Relative L2."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("tokens", "d", "rank"),
    [
        (1, 128, 16),
        (31, 256, 32),
        (32, 512, 16),
        (33, 1536, 48),
        (200, 2048, 48),
        (65, 2560, 32),
        (2048, 1536, 48),
    ],
)
def test_equals_two_products_with_dt_rounded_between_them(tokens, d, rank):
    torch = oracle.require_gpu()
    u, x_proj, dt_proj = factors(torch, tokens, d, rank)
    delta, B, C = select(torch, u, x_proj, dt_proj, spare_rows=40)
    exact = (u.double() @ x_proj.double().T).cpu().numpy()
    # float32 sums of up to 2560 terms, then one rounding to float16.
    found = torch.cat([B, C], dim=1)[:tokens].double().cpu().numpy()
    np.testing.assert_allclose(found, exact[:, rank:], rtol=6e-4, atol=1e-5 * d**0.5)
    dt = (u.float() @ x_proj.float().T)[:, :rank].half().double()
    expected = (dt @ dt_proj.double().T).cpu().numpy()
    assert relative_error(delta[:tokens].double().cpu().numpy(), expected) < 6e-4
    for output in (delta, B, C):
        assert bool(torch.isnan(output[tokens:]).all())


def test_two_runs_are_bit_equal_and_rows_do_not_depend_on_their_neighbours():
    torch = oracle.require_gpu()
    u, x_proj, dt_proj = factors(torch, 300, 1536, 48, seed=1)
    first = select(torch, u, x_proj, dt_proj)
    again = select(torch, u, x_proj, dt_proj)
    part = select(torch, u[100:117].contiguous(), x_proj, dt_proj)
    for whole, repeated, some in zip(first, again, part, strict=True):
        assert torch.equal(whole, repeated)
        assert torch.equal(whole[100:117], some)


def test_no_tokens_launch_nothing():
    torch = oracle.require_gpu()
    u, x_proj, dt_proj = factors(torch, 0, 256, 16)
    delta, *_ = select(torch, u, x_proj, dt_proj, spare_rows=3)
    assert bool(torch.isnan(delta).all())
