# SPDX-License-Identifier: MIT
"""Other implementations to measure beside ours: same weights, prompt and machine, one record.

A peer that cannot run here is part of the record with the reason; none is left out silently.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BenchmarkError, PipelineError, UsageError
from pipeline.measuring import BenchProgress, Task, measure
from pipeline.records import Comparison, Timings


@dataclass(frozen=True)
class Measured:
    """What a peer's run gave.

    Attributes:
        timings: Its samples and summaries.
        version: Its version; None when it does not tell.
        precision: What it computed in.
    """

    timings: Timings
    version: str | None
    precision: str


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        lacks: What it needs and this machine lacks, with how to get it; None when nothing.
        measure: Runs the task.
        package: Python package whose version goes into the record; None for a program.
    """

    lacks: Callable[[Task], str | None]
    measure: Callable[[Task], Measured]
    package: str | None = None


def _lacks_package(package: str, extra: str) -> Callable[[Task], str | None]:
    def lacks(_: Task) -> str | None:
        if importlib.util.find_spec(package) is not None:
            return None
        return f"not installed; pip install 'mamba-orin[{extra}]' brings it"

    return lacks


def _measure_torch(task: Task) -> Measured:
    from pipeline.torch_session import open_torch_session

    task.progress(BenchProgress("torch", "load"))
    session = open_torch_session(task.bundle, task.architecture, task.settings.threads)
    return Measured(measure(session, task, "torch"), version_of("torch"), "fp32")


def _lacks_onnxruntime(task: Task) -> str | None:
    if task.backend == "onnxruntime":
        return "it is what this record itself measures"
    return _lacks_package("onnxruntime", "")(task)


def _measure_onnxruntime(task: Task) -> Measured:
    from pipeline.engine import build, load_engine

    task.progress(BenchProgress("onnxruntime", "load"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "engine"
        manifest = build(task.bundle, place, "onnxruntime", max_batch=task.settings.batch)
        engine = load_engine(place, task.settings.threads)
        timings = measure(engine.session, task, "onnxruntime")
    return Measured(timings, version_of("onnxruntime"), manifest.precision)


def _refuses_batches(name: str, task: Task) -> str | None:
    return f"{name} measures one text at a time" if task.settings.batch > 1 else None


_MAMBA_SSM_EPS = 1e-5


def _lacks_mamba_ssm(task: Task) -> str | None:
    # It runs without causal-conv1d too, several times slower than its authors mean it to.
    for package in ("mamba_ssm", "causal_conv1d_cuda"):
        if importlib.util.find_spec(package) is None:
            return (
                f"not installed: there is no Python package {package}; pip install mamba-ssm "
                "causal-conv1d builds both where CUDA is"
            )
    a = task.architecture
    if a.mixer_norm_eps is not None or a.norm_eps != _MAMBA_SSM_EPS:
        return "it has no model with these norms"
    import torch

    return None if torch.cuda.is_available() else "it runs on a GPU alone, and torch finds none"


def _measure_mamba_ssm(task: Task) -> Measured:
    from pipeline.mamba_ssm_session import MambaSsmSession

    task.progress(BenchProgress("mamba-ssm", "load"))
    settings = task.settings
    most = settings.sequence_length + settings.new_tokens + 1
    try:
        session = MambaSsmSession(task.bundle, task.architecture, settings.batch, most)
        timings = measure(session, task, "mamba-ssm")
    except RuntimeError as error:  # torch's, out of memory included
        raise BenchmarkError(f"mamba-ssm failed: {error}") from error
    return Measured(timings, version_of("mamba-ssm"), "fp16")


def _lacks_tensorrt(task: Task) -> str | None:
    for package in ("tensorrt", "cuda"):
        if importlib.util.find_spec(package) is None:
            return f"not installed: there is no Python package {package}"
    return _refuses_batches("TensorRT in plain layers", task)


def _measure_tensorrt(task: Task) -> Measured:
    from pipeline.manifest import read_bundle
    from pipeline.plain_layers_session import PlainLayersSession
    from pipeline.tensorrt_runtime import VERSION

    task.progress(BenchProgress("tensorrt-plain", "load"))
    session = PlainLayersSession(task.bundle, task.architecture)
    timings = measure(session, task, "tensorrt-plain")
    return Measured(timings, VERSION, read_bundle(task.bundle).precision)


# --- llama.cpp ----------------------------------------------------------------------------

_LLAMA_BENCH = "llama-bench"
# Embeddings that are tied or not, and rows of padding, change the count a little.
_PARAMETER_TOLERANCE = 0.02
_LLAMA_TIMEOUT_S = 3600


def _lacks_llama(task: Task) -> str | None:
    if shutil.which(_LLAMA_BENCH) is None:
        return f"not installed: no {_LLAMA_BENCH} on the PATH"
    if task.llama_model is None:
        return "it needs the same model as GGUF: name the file with --llama-model"
    return _refuses_batches(_LLAMA_BENCH, task)


def _measure_llama(task: Task) -> Measured:
    task.progress(BenchProgress("llama.cpp", "measure"))
    settings = task.settings
    command = [
        _LLAMA_BENCH,
        "--model",
        str(task.llama_model),
        "--n-prompt",
        str(settings.sequence_length),
        "--n-gen",
        str(settings.new_tokens),
        "--threads",
        str(settings.threads),
        "--repetitions",
        str(settings.minimum_iterations),
        "--output",
        "json",
    ]
    if task.backend == "onnxruntime":
        command += ["--n-gpu-layers", "0"]  # ours runs on the CPU, too
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LLAMA_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchmarkError(f"{_LLAMA_BENCH} did not run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(f"{_LLAMA_BENCH} ended with code {done.returncode}: {last}")
    return parse_llama_bench(done.stdout, task)


def parse_llama_bench(text: str, task: Task) -> Measured:
    """Timings of what `llama-bench --output json` prints.

    It tells the time of each repetition, not of each token, so a sample of decoding is the mean
    over one continuation and its spread is narrower than that of single tokens.

    Args:
        text: What it printed.
        task: What was asked for.

    Raises:
        BenchmarkError: It is not that, or of another model.
    """
    try:
        tests: list[dict[str, Any]] = json.loads(text)
        prompts = next(test for test in tests if test["n_prompt"] and not test["n_gen"])
        decode = next(test for test in tests if test["n_gen"] and not test["n_prompt"])
        parameters = int(decode["model_n_params"])
        first_ms = [float(ns) / 1e6 for ns in prompts["samples_ns"]]
        each_ms = [float(ns) / 1e6 / int(decode["n_gen"]) for ns in decode["samples_ns"]]
        precision, version = str(decode["model_type"]), str(decode["build_commit"])
    except (ValueError, TypeError, KeyError, StopIteration, AttributeError) as error:
        raise BenchmarkError(f"{_LLAMA_BENCH} printed something unknown: {error!r}") from error
    ours = task.architecture.parameters
    if abs(parameters - ours) > _PARAMETER_TOLERANCE * ours:
        raise BenchmarkError(
            f"{task.llama_model} has {parameters:,} parameters and this model {ours:,}, so they "
            "are not the same",
            fix="convert the same checkpoint with llama.cpp's convert_hf_to_gguf.py",
        )
    if not first_ms or not each_ms or min(*first_ms, *each_ms) <= 0:
        raise BenchmarkError(f"{_LLAMA_BENCH} gave no times")
    timings = Timings.from_samples(
        first_ms,
        [[ms] for ms in each_ms],
        sequence_length=task.settings.sequence_length,
        batch=1,
        stopped="iterations",
    )
    return Measured(timings, version, precision)


PEERS: dict[str, Peer] = {
    "torch": Peer(_lacks_package("torch", "convert"), _measure_torch, package="torch"),
    "onnxruntime": Peer(_lacks_onnxruntime, _measure_onnxruntime, package="onnxruntime"),
    "mamba-ssm": Peer(_lacks_mamba_ssm, _measure_mamba_ssm, package="mamba-ssm"),
    "tensorrt-plain": Peer(_lacks_tensorrt, _measure_tensorrt),
    "llama.cpp": Peer(_lacks_llama, _measure_llama),
}
"""Peers by the name that `--compare` takes."""


def check_peers(names: Sequence[str], llama_model: Path | None) -> None:
    """Refuses what cannot be meant before anything is measured.

    Raises:
        UsageError: An unknown name, with the choices, or a model that is no file.
    """
    for name in names:
        if name not in PEERS:
            raise UsageError(
                f"unknown peer {name!r} in --compare", fix=f"choose from: {', '.join(PEERS)}"
            )
    if llama_model is not None and not llama_model.is_file():
        raise UsageError(
            f"--llama-model {llama_model} is not a file",
            fix="name the GGUF file that llama.cpp's convert_hf_to_gguf.py wrote",
        )


def compare(name: str, task: Task, ours: Timings) -> Comparison:
    """Measures one peer; what it cannot do is None in the result, with the reason."""
    peer = PEERS[name]
    reason = peer.lacks(task)
    if reason is None:
        try:
            return _comparison(name, peer.measure(task), ours)
        except PipelineError as error:
            # What was measured of ours is worth keeping when a peer fails.
            reason = str(error)
    version = version_of(peer.package) if peer.package else None
    fields = ("version", "precision", "timings", "first_token_ratio", "ms_per_token_ratio")
    values: dict[str, Any] = {**dict.fromkeys(fields), "version": version}
    missing = {field: reason for field, value in values.items() if value is None}
    return Comparison(peer=name, missing=missing, **values)


def _comparison(name: str, found: Measured, ours: Timings) -> Comparison:
    theirs = found.timings
    return Comparison(
        peer=name,
        version=found.version,
        precision=found.precision,
        timings=theirs,
        first_token_ratio=theirs.first_token.median_ms / ours.first_token.median_ms,
        ms_per_token_ratio=theirs.decode.median_ms / ours.decode.median_ms,
        missing={} if found.version else {"version": f"{name} does not tell it"},
    )


def version_of(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
