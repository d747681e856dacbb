# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pipeline.bundle import convert
from pipeline.cli import main
from pipeline.engine import build, load_engine
from pipeline.errors import ArtifactNotFoundError, DiskFullError, UsageError
from pipeline.evaluation import Evaluation, Measured, Row, evaluate
from pipeline.manifest import read_bundle
from pipeline.scoring import score
from pipeline.tokenizer import Tokenizer
from pipeline.torch_session import open_torch_session
from tests.checkpoints import RandomCheckpoint
from tests.pipeline.conftest import DEMO

TEXT = DEMO / "heldout.txt"
# A little more than the least that gives intervals.
TOKENS = 1300


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in several precisions, and an engine of it."""
    folder = tmp_path_factory.mktemp("versions")
    for precision in ("fp16", "int8", "int4"):
        convert(DEMO, folder / precision, precision)
    build(folder / "int8", folder / "int8-engine")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def evaluation(folders: dict[str, Path]) -> Evaluation:
    order = [folders[name] for name in ("int4", "int8-engine", "fp16", "int8")]
    return evaluate(order, TEXT, max_tokens=TOKENS)


def row(evaluation: Evaluation, name: str) -> Row:
    (found,) = (row for row in evaluation.rows if row.name == name)
    return found


def value(measured: Measured | None) -> float:
    assert measured is not None
    return measured.value


def test_rows_come_in_the_order_given_and_say_what_they_are(evaluation: Evaluation) -> None:
    assert [(row.name, row.kind, row.precision) for row in evaluation.rows] == [
        ("int4", "bundle", "int4"),
        ("int8-engine", "engine", "int8"),
        ("fp16", "bundle", "fp16"),
        ("int8", "bundle", "int8"),
    ]
    assert evaluation.reference == "fp16"
    assert row(evaluation, "int4").method == "rtn"
    assert row(evaluation, "int4").embedding_precision == "int8"
    assert row(evaluation, "fp16").method is None
    assert evaluation.text.tokens == TOKENS
    sizes = [row(evaluation, name).weight_bytes for name in ("fp16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)


def test_perplexity_is_that_of_score(
    evaluation: Evaluation, folders: dict[str, Path], tmp_path: Path
) -> None:
    ids = Tokenizer(DEMO).encode(TEXT.read_text())[:TOKENS]
    build(folders["fp16"], tmp_path / "engine")
    for name, engine in (("fp16", tmp_path / "engine"), ("int8-engine", folders["int8-engine"])):
        expected = score(load_engine(engine).session, ids).perplexity
        assert value(row(evaluation, name).perplexity) == pytest.approx(expected, rel=1e-5)


def test_bits_of_a_byte_are_those_of_the_text_that_was_read(evaluation: Evaluation) -> None:
    prefix = Tokenizer(DEMO).decode(Tokenizer(DEMO).encode(TEXT.read_text())[:TOKENS])
    assert evaluation.text.bytes == len(prefix.encode())
    for one in evaluation.rows:
        bits = math.log2(one.perplexity.value) * (TOKENS - 1)
        assert value(one.bits_per_byte) == pytest.approx(bits / len(prefix.encode()))


def test_agreement_is_what_the_torch_reference_says(
    evaluation: Evaluation, folders: dict[str, Path]
) -> None:
    """Computed another way: the reference model on the unpacked weights, all tokens at once."""
    ids = np.array([Tokenizer(DEMO).encode(TEXT.read_text())[: TOKENS - 1]])

    def logprobs(name: str) -> torch.Tensor:
        bundle = folders[name]
        session = open_torch_session(bundle, read_bundle(bundle).architecture)
        logits, _ = session.prefill(ids, all_logits=True)
        return torch.log_softmax(torch.from_numpy(logits[0]), dim=-1)

    exact, packed = logprobs("fp16"), logprobs("int4")
    kl = torch.nn.functional.kl_div(packed, exact, log_target=True, reduction="batchmean")
    top1 = (exact.argmax(-1) == packed.argmax(-1)).double().mean()
    found = row(evaluation, "int4")
    assert value(found.kl_nats) == pytest.approx(float(kl), rel=1e-3)
    assert value(found.top1_percent) == pytest.approx(100 * float(top1), abs=0.1)


def test_only_the_reference_is_compared_with_nothing(evaluation: Evaluation) -> None:
    for one in evaluation.rows:
        compared = (one.perplexity_change_percent, one.kl_nats, one.top1_percent)
        assert all((found is None) == (one.name == "fp16") for found in compared)


def test_fewer_bits_cost_more_and_rounded_activations_cost_something(
    evaluation: Evaluation,
) -> None:
    kl = {one.name: value(one.kl_nats) for one in evaluation.rows if one.kl_nats}
    assert kl["int8"] < kl["int8-engine"] < kl["int4"]


def test_the_change_is_that_of_the_perplexities_with_a_narrower_interval(
    evaluation: Evaluation,
) -> None:
    for one in evaluation.rows:
        around = one.perplexity
        assert around.low is not None
        assert around.high is not None
        assert around.low < around.value < around.high
        change = one.perplexity_change_percent
        if change is None:
            continue
        ratio = one.perplexity.value / row(evaluation, "fp16").perplexity.value
        assert change.value == pytest.approx(100 * (ratio - 1), abs=1e-9)
        assert change.low is not None
        assert change.high is not None
        assert change.low < change.value < change.high
        width_percent = 100 * (around.high - around.low) / around.value
        assert change.high - change.low < width_percent / 4


def test_another_reference_and_a_text_too_short_for_intervals(folders: dict[str, Path]) -> None:
    found = evaluate(
        [folders["int4"], folders["int8"]], TEXT, reference=folders["int8"], max_tokens=200
    )
    assert found.reference == "int8"
    assert row(found, "int8").kl_nats is None
    assert row(found, "int4").kl_nats == Measured(
        value=value(row(found, "int4").kl_nats), low=None, high=None
    )


def test_versions_without_a_reference_are_still_measured(folders: dict[str, Path]) -> None:
    found = evaluate([folders["int4"], folders["int8"]], TEXT, max_tokens=100)
    assert found.reference is None
    assert all(one.kl_nats is None and one.perplexity.value > 1 for one in found.rows)


def test_nothing_is_left_in_the_temporary_folder(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    steps: list[tuple[int, int]] = []
    versions = [folders["fp16"], folders["int4"]]
    evaluate(versions, TEXT, max_tokens=300, progress=lambda *step: steps.append(step))
    assert not list(tmp_path.iterdir())
    assert [total for _, total in steps] == [600] * len(steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (600, 600)


def test_a_full_temporary_folder_is_said_beforehand(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(DiskFullError):
        evaluate([folders["fp16"], folders["int4"]], TEXT)


def test_a_model_with_another_tokenizer_is_refused(
    folders: dict[str, Path], checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    other = tmp_path / "demo"
    shutil.copytree(DEMO, other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    tokens["model"]["merges"] = tokens["model"]["merges"][:-500]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    convert(other, tmp_path / "other", "int8")
    with pytest.raises(UsageError, match="different tokens"):
        evaluate([folders["fp16"], tmp_path / "other"], TEXT)

    convert(checkpoint.path, tmp_path / "mute")
    with pytest.raises(UsageError, match="no tokenizer"):
        evaluate([tmp_path / "mute"], TEXT)


def test_wrong_arguments_are_explained(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--reference"):
        evaluate([folders["fp16"]], TEXT, reference=folders["int4"])
    with pytest.raises(ArtifactNotFoundError, match="neither a bundle nor an engine"):
        evaluate([folders["fp16"], tmp_path], TEXT)
    (tmp_path / "short").write_text("a")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path, reason in (("short", "fewer than 2"), ("bytes", "UTF-8"), ("none", "cannot read")):
        with pytest.raises(UsageError, match=reason):
            evaluate([folders["fp16"]], tmp_path / path)


def test_command_line_gives_table_record_and_chart(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = [str(folders[name]) for name in ("fp16", "int8", "int4")]
    words = ["evaluate", *versions, "--text", str(TEXT), "--max-tokens", str(TOKENS)]
    files = ["--output", str(tmp_path / "q.json"), "--chart", str(tmp_path / "q.svg")]
    assert main([*words, *files]) == 0
    table = capsys.readouterr().out
    record = Evaluation.model_validate_json((tmp_path / "q.json").read_text())
    for one in record.rows:
        (line,) = (line for line in table.splitlines() if line.split()[:1] == [one.name])
        assert f"{one.perplexity.value:.3f}" in line
        if one.kl_nats:
            assert f"{one.kl_nats.value:.5f}" in line
    chart = (tmp_path / "q.svg").read_text()
    names = [element.text for element in ElementTree.fromstring(chart).iter() if element.text]
    assert "int8" in names
    assert "int4" in names

    assert main([*words[:-1], "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]["tokens"] == 100
    assert main([*words, "--chart", str(tmp_path / "q.bmp")]) == UsageError.exit_code
