# SPDX-License-Identifier: MIT
"""The causal convolution against the oracle, on a GPU."""

from __future__ import annotations

import pytest

from pipeline import s6_library
from tests.plugin import oracle

pytestmark = pytest.mark.gpu

TOLERANCE = {"float16": 1e-3, "bfloat16": 5e-3, "float32": 1e-6}


def make(torch, *, b=2, l=37, d=96, k=4, dtype="float16", weights="float32", seed=0):
    """Seeded inputs; x is the first half of a wider projection."""
    generator = torch.Generator(device="cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    kind = getattr(torch, dtype)
    return {
        "x": normal(b, l, 2 * d).to(kind)[..., :d],
        "weight": normal(k, d).to(getattr(torch, weights)),
        "bias": normal(d).to(getattr(torch, weights)),
        "state_in": normal(b, k - 1, d).to(kind),
    }


def host(tensor):
    """A tensor as doubles on the host."""
    return tensor.double().cpu().numpy()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"l": 1},
        {"l": 2},
        {"l": 8},
        {"l": 9},
        {"l": 1000},
        {"d": 37},
        {"k": 2},
        {"k": 3},
        {"k": 8},
        {"dtype": "bfloat16"},
        {"dtype": "float32"},
        {"weights": "float16"},
        {"dtype": "bfloat16", "weights": "bfloat16"},
        {"k": 8, "d": 5, "l": 3},
    ],
    ids=str,
)
def test_matches_the_oracle(change):
    """Within tolerance of the oracle, state bit-equal, every output element written."""
    torch = oracle.require_gpu()
    inputs = make(torch, **change)
    x = inputs["x"]
    y = torch.full(x.shape, float("nan"), dtype=x.dtype, device="cuda")
    state = torch.full_like(inputs["state_in"], float("nan"))
    s6_library.causal_conv1d(
        x,
        inputs["weight"],
        y,
        bias=inputs["bias"],
        state_in=inputs["state_in"],
        state_out=state,
        step=x.shape[1] == 1,
    )
    y_wanted, state_wanted = oracle.causal_conv1d(
        host(x),
        host(inputs["weight"]),
        bias=host(inputs["bias"]),
        state_in=host(inputs["state_in"]),
    )
    assert oracle.relative_error(host(y), y_wanted) < TOLERANCE[change.get("dtype", "float16")]
    assert (host(state) == state_wanted).all()


def test_ragged_rows_and_no_options():
    """Rows of different length, no bias, no state, no SiLU."""
    torch = oracle.require_gpu()
    inputs = make(torch, b=4)
    lengths = (37, 2, 0, 20)
    y = torch.full(inputs["x"].shape, float("nan"), dtype=torch.float16, device="cuda")
    state = torch.full_like(inputs["state_in"], float("nan"))
    s6_library.causal_conv1d(
        inputs["x"],
        inputs["weight"],
        y,
        state_out=state,
        lengths=torch.tensor(lengths, dtype=torch.int32, device="cuda"),
        silu=False,
    )
    y_wanted, state_wanted = oracle.causal_conv1d(
        host(inputs["x"]), host(inputs["weight"]), lengths=lengths, silu=False
    )
    assert oracle.relative_error(host(y), y_wanted) < 1e-3
    assert (host(state) == state_wanted).all()


@pytest.mark.parametrize("cut", [1, 2, 8, 36])
def test_a_split_sequence_is_bit_equal(cut):
    """Parts through the state, in place, equal one call."""
    torch = oracle.require_gpu()
    inputs = make(torch)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    whole, parts = (torch.empty(x.shape, dtype=x.dtype, device="cuda") for _ in range(2))
    state_whole, state = inputs["state_in"].clone(), inputs["state_in"].clone()
    s6_library.causal_conv1d(
        x, weight, whole, bias=bias, state_in=state_whole, state_out=state_whole
    )
    for rows in (slice(0, cut), slice(cut, None)):
        s6_library.causal_conv1d(
            x[:, rows], weight, parts[:, rows], bias=bias, state_in=state, state_out=state
        )
    assert torch.equal(whole, parts)
    assert torch.equal(state_whole, state)
