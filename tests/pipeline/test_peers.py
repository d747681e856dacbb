# SPDX-License-Identifier: MIT
"""Peers: found or said to lack something; llama.cpp by what its benchmark prints."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.architecture import MambaArchitecture
from pipeline.errors import BenchmarkError, UsageError
from pipeline.measuring import Task
from pipeline.peers import PEERS, check_peers, compare, parse_llama_bench
from pipeline.records import BenchSettings, Timings

ARCHITECTURE = MambaArchitecture(
    d_model=4, n_layer=1, d_inner=8, d_state=2, d_conv=4, dt_rank=1, vocab_size=11, vocab_rows=16
)
OURS = Timings.from_samples(
    [10.0, 10.0], [[1.0, 1.0]], sequence_length=512, batch=1, stopped="settled"
)


def task(**changes: Any) -> Task:
    settings = BenchSettings(sequence_length=512, new_tokens=128, threads=2, minimum_iterations=3)
    made = Task(Path(), ARCHITECTURE, np.zeros((1, 512), np.int64), settings, lambda: 0.0,
                lambda _: None, "onnxruntime")  # fmt: skip
    return replace(made, **changes)


def llama_bench(parameters: int = ARCHITECTURE.parameters) -> list[dict[str, Any]]:
    """What `llama-bench --output json` prints, but for the fields that nobody reads here."""
    shared = {"build_commit": "883718e", "model_type": "mamba 0.1B F16", "n_threads": 2}
    shared |= {"model_n_params": parameters, "model_size": 260_000_000, "backends": "CPU"}
    return [
        {**shared, "n_prompt": 512, "n_gen": 0, "samples_ns": [30_000_000, 31_000_000, 32_000_000]},
        {**shared, "n_prompt": 0, "n_gen": 128, "samples_ns": [256_000_000, 384_000_000]},
    ]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "llama-bench"
    program.write_text(f"#!{sys.executable}\nimport json, sys\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_llama_bench_prints_becomes_timings() -> None:
    found = parse_llama_bench(json.dumps(llama_bench()), task())
    assert found.timings.first_token_samples_ms == (30.0, 31.0, 32.0)
    assert found.timings.decode_samples_ms == ((2.0,), (3.0,))
    assert found.timings.tokens_per_second == pytest.approx(400)
    assert (found.version, found.precision) == ("883718e", "mamba 0.1B F16")


def test_what_cannot_be_meant_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown peer 'lama'"):
        check_peers(["torch", "lama"], None)
    with pytest.raises(UsageError, match=r"none\.gguf is not a file"):
        check_peers(["llama.cpp"], tmp_path / "none.gguf")


def test_a_program_on_the_path_is_run_with_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps(llama_bench())
    install(tmp_path, monkeypatch, f"open({str(tmp_path / 'seen')!r}, 'w').write(' '.join("
            f"sys.argv[1:]))\nprint({answer!r})")  # fmt: skip
    found = compare("llama.cpp", task(llama_model=tmp_path / "m.gguf"), OURS)
    assert found.timings is not None, found.missing
    assert found.first_token_ratio == pytest.approx(3.1)
    assert found.ms_per_token_ratio == pytest.approx(2.5)
    words = (tmp_path / "seen").read_text()
    for part in ("--n-prompt 512", "--n-gen 128", "--threads 2", "--repetitions 3",
                 "--n-gpu-layers 0", "m.gguf"):  # fmt: skip
        assert part in words


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.exit('failed to load model')", "ended with code 1: failed to load model"),
        ("print('{}')", "printed something unknown"),
        (f"print({json.dumps(llama_bench(9_000_000))!r})", "are not the same"),
    ],
)
def test_a_peer_that_fails_says_what_it_said(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, script)
    found = compare("llama.cpp", task(llama_model=tmp_path / "m.gguf"), OURS)
    assert found.timings is None
    assert words in found.missing["timings"]


def test_what_a_peer_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no llama-bench" in compare("llama.cpp", task(), OURS).missing["timings"]
    install(tmp_path, monkeypatch, "")
    assert "--llama-model" in compare("llama.cpp", task(), OURS).missing["timings"]
    assert "itself measures" in compare("onnxruntime", task(), OURS).missing["timings"]
    for peer in ("mamba-ssm", "tensorrt-plain"):
        assert "not installed" in compare(peer, task(), OURS).missing["timings"]


def test_onnx_runtime_is_measured_beside_another_backend(bundle: Path) -> None:
    from pipeline.manifest import read_bundle

    architecture = read_bundle(bundle).architecture
    settings = BenchSettings(sequence_length=4, new_tokens=4, iterations=1, threads=1)
    found = compare(
        "onnxruntime",
        task(
            bundle=bundle,
            architecture=architecture,
            prompt=np.zeros((1, 4), np.int64),
            settings=settings,
            clock=__import__("time").perf_counter,
            backend="cuda",
        ),
        OURS,
    )
    assert found.timings is not None, found.missing
    assert found.version
    assert found.precision == "fp32"


JSON = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["n_prompt", "n_gen", "samples_ns", "model_n_params", "model_type"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_answer_of_the_program_is_read_or_refused(answer: Any) -> None:
    with contextlib.suppress(BenchmarkError):
        parse_llama_bench(json.dumps(answer), task())


def test_every_peer_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.command_line import command_line

    with pytest.raises(SystemExit):
        command_line().parse_args(["bench", "--help"])
    text = capsys.readouterr().out
    for name in PEERS:
        assert name in text
