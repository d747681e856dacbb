# SPDX-License-Identifier: MIT
"""The decode step against the reference model on the same weights, on a GPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from pipeline.architecture import MambaArchitecture, state_spaces
from tests.plugin import oracle

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin" / "bench"))

pytestmark = pytest.mark.gpu

#: Largest difference in log-probability. Activations are rounded to float16 before each product.
TOLERANCE = 2e-2
#: Relative L2 of the states, for the same reason.
STATE_TOLERANCE = 5e-3

SMALL = dataclasses.replace(state_spaces(256, 3), vocab_size=1021, vocab_rows=1024, dt_rank=16)
SHAPES = {
    "small": SMALL,
    "130m": dataclasses.replace(state_spaces(768, 2)),
    "370m": dataclasses.replace(state_spaces(1024, 2)),
    "2.8b": dataclasses.replace(state_spaces(2560, 2)),
    "falcon": dataclasses.replace(SMALL, mixer_norm_eps=1e-6),
    "narrow convolution": dataclasses.replace(SMALL, d_conv=3),
    "high rank": dataclasses.replace(SMALL, dt_rank=256),
}


@pytest.fixture(scope="module")
def torch():
    return oracle.require_gpu()


def make(shape: str | MambaArchitecture, precision: str, head: str | None = None):
    from random_model import RandomModel

    architecture = SHAPES[shape] if isinstance(shape, str) else shape
    return RandomModel(architecture, precision, head)


def run(torch, model, token_ids, sms: int = 0):
    """Logits (steps, b, vocab), greedy ids (steps, b) and the buffers after the last token."""
    from pipeline.s6_decode import decode

    buffers = {}
    problem = model.problem(token_ids.shape[1], sms, buffers)
    logits, greedy = [], []
    for ids in token_ids:
        buffers["ids"].copy_(ids)
        buffers["logits"].fill_(float("nan"))
        decode(problem, torch.cuda.current_stream().cuda_stream)
        logits.append(buffers["logits"].clone())
        greedy.append(buffers["ids"].clone())
    torch.cuda.synchronize()
    return torch.stack(logits), torch.stack(greedy), buffers


def tokens(torch, model, batch: int, steps: int = 5):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, model.architecture.vocab_size, (steps, batch), generator=generator)


def reference(torch, model, token_ids):
    """Log-probabilities (steps, b, vocab) and the state after the last token."""
    from pipeline.model import Mamba

    with torch.device("meta"):
        mamba = Mamba(model.architecture)
    mamba.load_state_dict(model.dequantised(), assign=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        logits, state = mamba(token_ids.t().cuda())
    return logits.transpose(0, 1).log_softmax(-1), state


@pytest.mark.parametrize("sms", [0, 8])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("shape", ["small", "130m", "2.8b"])
def test_equals_the_reference(torch, shape, precision, batch, sms) -> None:
    model = make(shape, precision)
    ids = tokens(torch, model, batch)
    logits, greedy, buffers = run(torch, model, ids, sms)
    wanted, state = reference(torch, model, ids)
    assert torch.isfinite(logits).all()
    assert (logits.log_softmax(-1) - wanted).abs().max() < TOLERANCE
    assert torch.equal(greedy, logits.argmax(-1).int())
    for found, expected in (("ssm_state", state.ssm), ("conv_state", state.conv)):
        error = (buffers[found] - expected).norm() / expected.norm()
        assert error < STATE_TOLERANCE, found


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("shape", ["370m", "falcon", "narrow convolution", "high rank"])
def test_other_shapes(torch, shape, precision, batch) -> None:
    model = make(shape, precision)
    ids = tokens(torch, model, batch)
    logits, _, _ = run(torch, model, ids)
    wanted, _ = reference(torch, model, ids)
    assert (logits.log_softmax(-1) - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("precision", "head"), [("int8", "fp16"), ("int4", "fp16"), ("int4", "int4")]
)
def test_head_of_another_precision(torch, precision, head) -> None:
    model = make("small", precision, head)
    ids = tokens(torch, model, 1)
    logits, _, _ = run(torch, model, ids)
    wanted, _ = reference(torch, model, ids)
    assert (logits.log_softmax(-1) - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_text_does_not_depend_on_its_company(torch, precision) -> None:
    model = make("small", precision)
    ids = tokens(torch, model, 8)
    together, _, _ = run(torch, model, ids)
    fewer, _, _ = run(torch, model, ids[:, :3].contiguous())
    assert torch.equal(together[:, :3], fewer)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("stray", [-1, 2**31 - 1])
def test_an_id_outside_the_table_reads_zeros_and_no_foreign_memory(torch, precision, stray) -> None:
    model = make("small", precision)
    ids = tokens(torch, model, 2, steps=1)
    known, _, _ = run(torch, model, ids)
    ids[0, 1] = stray
    logits, _, _ = run(torch, model, ids)
    assert torch.equal(logits[:, 0], known[:, 0])
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[:, 1], known[:, 1])


def test_numbers_of_texts_take_turns_on_one_workspace(torch) -> None:
    """Calls in between, one to three of them, change nothing: values carry two bits of an epoch."""
    from pipeline.s6_decode import decode

    model = make("130m", "fp16")
    calls = [3, 1, 3, 1, 1, 3, 1, 1, 1, 3, 3, 1, 3, 3, 3, 1]
    ids = {b: tokens(torch, model, b, steps=calls.count(b)) for b in (1, 3)}
    buffers: dict[int, dict] = {1: {}, 3: {}}
    problems = {b: model.problem(b, 0, buffers[b]) for b in (1, 3)}
    problems[1].workspace = problems[3].workspace
    found: dict[int, list] = {1: [], 3: []}
    for b in calls:
        buffers[b]["ids"].copy_(ids[b][len(found[b])])
        decode(problems[b], torch.cuda.current_stream().cuda_stream)
        found[b].append(buffers[b]["logits"].clone())
    for b in (1, 3):
        wanted, _, _ = run(torch, model, ids[b])
        assert torch.equal(torch.stack(found[b]), wanted)


@pytest.mark.parametrize("batch", [1, 4])
def test_two_runs_are_equal_to_the_last_bit(torch, batch) -> None:
    model = make("130m", "fp16")
    ids = tokens(torch, model, batch, steps=20)
    first, _, one = run(torch, model, ids)
    second, _, two = run(torch, model, ids)
    assert torch.equal(first, second)
    assert torch.equal(one["ssm_state"], two["ssm_state"])


def test_a_graph_feeds_each_choice_to_the_next_token(torch) -> None:
    from pipeline.s6_decode import decode

    model = make("small", "fp16")
    start = torch.tensor([[3]])
    _, greedy, _ = run(torch, model, start)
    wanted = []
    ids = [3]
    for _ in range(12):
        logits, _, _ = run(torch, model, torch.tensor(ids)[:, None])
        wanted.append(int(logits[-1, 0].argmax()))
        ids.append(wanted[-1])
    buffers = {}
    problem = model.problem(1, 0, buffers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(problem, torch.cuda.current_stream().cuda_stream)
    buffers["ids"].fill_(3)
    found = []
    for _ in range(12):
        graph.replay()
        found.append(int(buffers["ids"][0]))
    assert found == wanted
    assert int(greedy[0, 0]) == wanted[0]
