# SPDX-License-Identifier: MIT
"""The scan kernels against the oracle, every variant, on a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline import s6_library
from pipeline.errors import PluginError
from tests.plugin import oracle

pytestmark = pytest.mark.gpu

#: Relative L2 error allowed for y. fp16 and bf16 outputs round by 2^-12 and 2^-9 rms; fp32 carries
#: a compensated state, so that only a handful of roundings per token remain.
TOLERANCE = {"float16": 2e-3, "bfloat16": 8e-3, "float32": 1e-6}
#: For the fp32 state: the tuned kernels take softplus from a polynomial, decays from ex2.approx.
STATE_TOLERANCE = {"float16": 2e-4, "bfloat16": 2e-4, "float32": 1e-6}
TUNED = ("lane", "relay")


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem; every named case differs from the base in one thing."""

    b: int = 1
    l: int = 70
    d: int = 96
    n: int = 16
    dtype: str = "float16"
    variant: str = "auto"
    gate: bool = True
    skip: bool = True
    bias: bool = True
    softplus: bool = True
    state: bool = True
    lengths: tuple[int, ...] | None = None
    delta: tuple[float, float] = (-5.0, 1.5)  # mean and deviation before softplus
    rate: float = 1.0  # factor on A = -(1..n)
    sm_count: int = 0  # 0 asks the device
    seed: int = 0


def make(torch, case: Case):
    """Seeded inputs of a case as GPU tensors; strided slices where a network has them."""
    generator = torch.Generator(device="cuda").manual_seed(case.seed)
    kind = getattr(torch, case.dtype)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    b, length, d, n = case.b, case.l, case.d, case.n
    both = normal(b, length, 2 * d).to(kind)  # x and z are halves of one projection
    pad = 8
    narrow = normal(b, length, pad + 2 * n).to(kind)  # B and C follow dt in another
    delta = normal(b, length, d) * case.delta[1]
    delta = delta + case.delta[0]
    if not case.softplus:
        delta = torch.exp(delta)
    A = -torch.arange(1, n + 1, device="cuda", dtype=torch.float32)[:, None].repeat(1, d)
    A = A * case.rate * torch.exp(0.2 * normal(n, d))
    inputs = {
        "u": both[..., :d],
        "delta": delta.to(kind),
        "A": A.contiguous(),
        "B": narrow[..., pad : pad + n],
        "C": narrow[..., pad + n :],
    }
    options = {
        "D": normal(d) if case.skip else None,
        "z": both[..., d:] if case.gate else None,
        "delta_bias": 0.3 * normal(d) if case.bias and case.softplus else None,
        "state_in": normal(b, n, d) if case.state else None,
        "lengths": (
            torch.tensor(case.lengths, dtype=torch.int32, device="cuda") if case.lengths else None
        ),
    }
    return inputs, options


def run(torch, case: Case, inputs, options, **extra):
    """Runs the kernel over poisoned outputs."""
    y = torch.full(
        (case.b, case.l, case.d), float("nan"), dtype=getattr(torch, case.dtype), device="cuda"
    )
    state = torch.full((case.b, case.n, case.d), float("nan"), device="cuda")
    s6_library.selective_scan(
        *(inputs[name] for name in ("u", "delta", "A", "B", "C")),
        y,
        **options,
        state_out=state,
        delta_softplus=case.softplus,
        **{"variant": case.variant, "sm_count": case.sm_count, **extra},
    )
    torch.cuda.synchronize()
    return y, state


def wanted(case: Case, inputs, options):
    """The oracle's answer to the same inputs."""

    def host(tensor):
        return None if tensor is None else tensor.double().cpu().numpy()

    return oracle.selective_scan(
        *(host(inputs[name]) for name in ("u", "delta", "A", "B", "C")),
        **{name: host(value) for name, value in options.items() if name != "lengths"},
        lengths=case.lengths,
        delta_softplus=case.softplus,
    )


BASE = Case()
CASES = {
    "base": BASE,
    **{f"variant-{v}": dataclasses.replace(BASE, variant=v) for v in ("generic", *TUNED)},
    **{
        f"{v}-l{length}": dataclasses.replace(BASE, variant=v, l=length)
        for v in ("generic", *TUNED)
        for length in (1, 7, 8, 9, 16, 17, 61, 257)
    },
    **{
        f"{v}-d{d}": dataclasses.replace(BASE, variant=v, d=d)
        for v, d in (
            *(("generic", d) for d in (8, 40, 136)),
            *(("relay", d) for d in (8, 40, 136)),
            *(("lane", d) for d in (32, 160)),
        )
    },
    **{
        f"{v}-batch-ragged": dataclasses.replace(BASE, variant=v, b=5, lengths=(70, 1, 0, 33, 99))
        for v in ("generic", *TUNED)
    },
    **{f"{v}-no-gate": dataclasses.replace(BASE, variant=v, gate=False) for v in TUNED},
    **{f"{v}-no-skip": dataclasses.replace(BASE, variant=v, skip=False) for v in TUNED},
    **{f"{v}-no-bias": dataclasses.replace(BASE, variant=v, bias=False) for v in TUNED},
    **{f"{v}-no-softplus": dataclasses.replace(BASE, variant=v, softplus=False) for v in TUNED},
    **{f"{v}-no-state": dataclasses.replace(BASE, variant=v, state=False) for v in TUNED},
    **{f"{v}-bf16": dataclasses.replace(BASE, variant=v, dtype="bfloat16") for v in TUNED},
    # A block of the relay has 8 channels and 16 warps where each such block has a multiprocessor,
    # else 16 and 12, but 24 and 8 where those blocks fit; a warp's turn is 8 tokens.
    **{
        f"relay-sms{sms}-l{length}": dataclasses.replace(
            BASE, variant="relay", sm_count=sms, l=length
        )
        for sms in (12, 6, 4)
        for length in (1, 8, 16, 95, 97, 128, 129, 257)
    },
    **{
        f"relay-sms{sms}-d136-ragged": dataclasses.replace(
            BASE, variant="relay", sm_count=sms, d=136, b=5, lengths=(70, 1, 0, 33, 99)
        )
        for sms in (85, 30, 1)
    },
    "fp32": dataclasses.replace(BASE, dtype="float32"),
    "odd-d": dataclasses.replace(BASE, d=37),
    **{f"n{n}": dataclasses.replace(BASE, n=n) for n in (1, 5, 8, 17, 64, 256)},
    "fp32-n40": dataclasses.replace(BASE, n=40, dtype="float32"),
    # Extremes: dt of 20 empties the state at once and leaves the polynomial's range; dt of 1e-6
    # never forgets; A of 1e-4 likewise; one slow and one fast state side by side.
    **{
        f"{v}-large-delta": dataclasses.replace(BASE, variant=v, delta=(20.0, 5.0))
        for v in ("generic", *TUNED)
    },
    **{
        f"{v}-tiny-delta": dataclasses.replace(BASE, variant=v, l=2000, delta=(-12.0, 0.5), d=32)
        for v in ("generic", *TUNED)
    },
    **{
        f"{v}-tiny-A": dataclasses.replace(BASE, variant=v, l=2000, rate=1e-4, d=32)
        for v in ("generic", *TUNED)
    },
    **{
        f"{v}-large-A": dataclasses.replace(BASE, variant=v, rate=50.0, delta=(0.0, 1.0))
        for v in ("generic", *TUNED)
    },
    "fp32-large-delta": dataclasses.replace(BASE, dtype="float32", delta=(20.0, 5.0)),
    "fp32-tiny-delta": dataclasses.replace(
        BASE, dtype="float32", l=16384, delta=(-13.0, 0.5), d=32
    ),
    "fp32-tiny-A": dataclasses.replace(BASE, dtype="float32", l=16384, rate=1e-4, d=32),
    "fp32-long": dataclasses.replace(BASE, dtype="float32", l=16384, d=64),
    **{f"{v}-long": dataclasses.replace(BASE, variant=v, l=16384, d=64) for v in TUNED},
}


@pytest.mark.parametrize("name", CASES)
def test_matches_the_oracle(name, record_property):
    """Within tolerance of the oracle, every output element written."""
    torch = oracle.require_gpu()
    case = CASES[name]
    inputs, options = make(torch, case)
    y, state = run(torch, case, inputs, options)
    y_wanted, state_wanted = wanted(case, inputs, options)
    error = oracle.relative_error(y.double().cpu().numpy(), y_wanted)
    state_error = oracle.relative_error(state.double().cpu().numpy(), state_wanted)
    record_property("y_error", error)
    record_property("state_error", state_error)

    assert error < TOLERANCE[case.dtype]
    assert state_error < STATE_TOLERANCE[case.dtype]


@pytest.mark.parametrize("variant", ["generic", *TUNED])
def test_two_runs_are_bit_equal(variant):
    """The same call twice gives the same bits."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, variant=variant, d=1536, l=517, b=2)
    inputs, options = make(torch, case)
    first, second = (run(torch, case, inputs, options) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("variant", ["generic", *TUNED])
@pytest.mark.parametrize("cut", [1, 8, 13, 64])
def test_a_split_sequence_equals_one_call(variant, dtype, cut):
    """Parts through the state, in place, the rest token by token at the end."""
    if dtype == "float32" and variant != "generic":
        pytest.skip("the tuned kernels take 16-bit tensors only")
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, variant=variant, dtype=dtype)
    inputs, options = make(torch, case)
    whole, state_whole = run(torch, case, inputs, options)
    state = options["state_in"].clone()
    parts = torch.full_like(whole, float("nan"))
    single = 3

    def part(begin, end, **extra):
        rows = slice(begin, end)
        s6_library.selective_scan(
            inputs["u"][:, rows],
            inputs["delta"][:, rows],
            inputs["A"],
            inputs["B"][:, rows],
            inputs["C"][:, rows],
            parts[:, rows],
            D=options["D"],
            z=options["z"][:, rows],
            delta_bias=options["delta_bias"],
            state_in=state,
            state_out=state,
            **extra,
        )

    part(0, cut, variant=variant)
    if cut < case.l - single:
        part(cut, case.l - single, variant=variant)
    for token in range(max(cut, case.l - single), case.l):
        part(token, token + 1, step=True)
    torch.cuda.synchronize()
    # Not bit-equal: tiles begin elsewhere and the step computes decays exactly. One rounding of
    # the output type, and what the polynomials of the tuned kernels are off.
    bound = {"float16": 1e-3, "bfloat16": 5e-3, "float32": 5e-7}[dtype]
    assert oracle.relative_error(parts.double().cpu(), whole.double().cpu().numpy()) < bound
    assert oracle.relative_error(state.double().cpu(), state_whole.double().cpu().numpy()) < (
        1e-6 if dtype == "float32" else 1e-4
    )


@pytest.mark.parametrize("d", [40, 136])
def test_blocks_that_overlap_leave_each_others_state_alone(d):
    """Channels that are no whole blocks of the relay, the state in place: as into a fresh one."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, variant="relay", d=d, sm_count=1, b=3)
    inputs, options = make(torch, case)
    y, state = run(torch, case, inputs, options)
    in_place = options["state_in"].clone()
    again = torch.full_like(y, float("nan"))
    s6_library.selective_scan(
        *(inputs[name] for name in ("u", "delta", "A", "B", "C")),
        again,
        **{**options, "state_in": in_place},
        state_out=in_place,
        variant="relay",
        sm_count=1,
    )
    assert torch.equal(again, y)
    assert torch.equal(in_place, state)


def test_lanes_need_whole_warps_of_channels():
    """A multiple of 8 that is none of 32: refused by name, run by choice."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, d=24, sm_count=1, b=20)
    inputs, options = make(torch, case)
    with pytest.raises(PluginError, match="variant cannot run"):
        run(torch, dataclasses.replace(case, variant="lane"), inputs, options)
    y, _ = run(torch, case, inputs, options)
    y_wanted, _ = wanted(case, inputs, options)
    assert oracle.relative_error(y.double().cpu(), y_wanted) < TOLERANCE[case.dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("n", [4, 16, 100])
def test_a_step_matches_the_oracle(dtype, n):
    """The decode entry point, into a fresh state and in place."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, l=1, dtype=dtype, b=3, n=n, d=200)
    inputs, options = make(torch, case)
    y, state = run(torch, case, inputs, options, step=True)
    y_wanted, state_wanted = wanted(case, inputs, options)
    assert oracle.relative_error(y.double().cpu(), y_wanted) < TOLERANCE[dtype]
    assert oracle.relative_error(state.double().cpu(), state_wanted) < 1e-6
    in_place = options["state_in"].clone()
    s6_library.selective_scan(
        *(inputs[name] for name in ("u", "delta", "A", "B", "C")),
        y,
        **{**options, "state_in": in_place},
        state_out=in_place,
        step=True,
    )
    assert torch.equal(in_place, state)


def test_refusals_launch_nothing():
    """Bad arguments raise with the library's text and leave the outputs alone."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, l=4)
    inputs, options = make(torch, case)
    y = torch.full((1, 4, case.d), 7.0, dtype=torch.float16, device="cuda")

    def call(**changed):
        tensors = {**inputs, "y": y, **changed}
        s6_library.selective_scan(
            *(tensors[name] for name in ("u", "delta", "A", "B", "C", "y")),
            **{**options, "variant": changed.get("variant", "auto")},
        )

    with pytest.raises(PluginError, match="variant cannot run"):
        s6_library.selective_scan(
            *(inputs[name].float() for name in ("u", "delta", "A", "B", "C")),
            y.float(),
            variant="lane",
        )
    with pytest.raises(PluginError, match="B has shape"):
        call(B=inputs["B"][..., :8])
    with pytest.raises(PluginError, match="delta is float32"):
        call(delta=inputs["delta"].float())
    with pytest.raises(PluginError, match="not on a GPU"):
        call(u=inputs["u"].cpu())
    torch.cuda.synchronize()
    assert bool((y == 7.0).all())


def test_drop_in_for_mamba_ssm():
    """selective_scan_fn takes and returns mamba-ssm's layout."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, state=False, b=2)
    inputs, options = make(torch, case)
    y, state = s6_library.selective_scan_fn(
        inputs["u"].transpose(1, 2),
        inputs["delta"].transpose(1, 2),
        inputs["A"].t(),
        inputs["B"].transpose(1, 2)[:, None],
        inputs["C"].transpose(1, 2),
        options["D"],
        options["z"].transpose(1, 2),
        options["delta_bias"],
        delta_softplus=True,
        return_last_state=True,
    )
    y_wanted, state_wanted = wanted(case, inputs, options)
    assert oracle.relative_error(y.transpose(1, 2).double().cpu(), y_wanted) < 2e-3
    assert oracle.relative_error(state.transpose(1, 2).double().cpu(), state_wanted) < 2e-4


def test_the_choice_of_kernel_does_not_change_the_answer():
    """Auto on 8 and on 132 multiprocessors agree within the output's rounding."""
    torch = oracle.require_gpu()
    case = dataclasses.replace(BASE, d=1536, l=300)
    inputs, options = make(torch, case)
    few, _ = run(torch, case, inputs, options, sm_count=8)
    many, _ = run(torch, case, inputs, options, sm_count=132)
    assert np.isfinite(few.float().cpu().numpy()).all()
    assert oracle.relative_error(few.double().cpu(), many.double().cpu().numpy()) < 1e-3
