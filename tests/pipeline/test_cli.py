# SPDX-License-Identifier: MIT
"""What a user meets: help that is quick, results on stdout, one message and one code an error."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import cli, errors
from pipeline.cli import main
from pipeline.manifest import MANIFEST_FILE
from tests.checkpoints import RandomCheckpoint, state_spaces

HEAVY = {
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "pydantic",
    "rich",
    "tokenizers",
    "transformers",
    "fastapi",
    "uvicorn",
}
VERBS = (
    *("convert", "build", "generate", "score", "evaluate", "bench", "report", "serve", "board"),
    "predict",
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; returns exit code, stdout and stderr."""

    def run_once(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_once


def assert_one_clear_message(stderr: str, *expected: object) -> None:
    """One error, with a fix, with what was found, and no traceback."""
    assert stderr.count("mamba-orin: error: ") == 1
    assert "\n  fix: " in stderr
    assert "Traceback" not in stderr
    for part in expected:
        assert str(part) in stderr


# --- help ----------------------------------------------------------------------------------


def test_import_and_help_load_no_heavy_module() -> None:
    program = (
        "import sys, pipeline, pipeline.cli\n"
        "try: pipeline.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('loaded:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "loaded: []" in done.stdout


def test_every_verb_that_may_be_typed_does_something() -> None:
    assert set(cli.VERBS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_teaches_by_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert f"mamba-orin {verb}" in capsys.readouterr().out.split("Example:", 1)[1]


def test_exit_codes_are_unique() -> None:
    def tree(error: type[errors.PipelineError]) -> Iterator[type[errors.PipelineError]]:
        yield error
        for child in error.__subclasses__():
            yield from tree(child)

    codes = [error.exit_code for error in tree(errors.PipelineError)]
    assert len(codes) == len(set(codes))
    assert errors.__doc__ is not None
    listed = {tuple(re.findall(r"(\w+Error) +(\d+)", line)) for line in errors.__doc__.splitlines()}
    for error in tree(errors.PipelineError):
        assert ((error.__name__, str(error.exit_code)),) in listed


# --- text ----------------------------------------------------------------------------------


def test_generate_prints_the_text_as_token_ids_without_a_tokenizer(run: Run, engine: Path) -> None:
    words = ("generate", engine, "--token-ids", "1,2,3", "--max-new-tokens", 5)
    code, streamed, _ = run(*words)
    assert code == 0
    code, printed, _ = run(*words, "--json")
    assert code == 0
    result = json.loads(printed)
    assert streamed.split() == [str(token_id) for token_id in result["tokens"]]
    assert len(result["tokens"]) == 5
    assert result["finish_reason"] == "length"
    assert result["prompt_tokens"] == 3


def test_a_seed_repeats_a_sampled_text_and_another_seed_does_not(run: Run, engine: Path) -> None:
    def sample(seed: int) -> str:
        _, printed, _ = run(
            *("generate", engine, "--token-ids", "1", "--temperature", 1.0, "--seed", seed)
        )
        return printed

    assert sample(5) == sample(5)
    assert sample(5) != sample(6)


# --- bad input -----------------------------------------------------------------------------


def test_missing_checkpoint(run: Run, tmp_path: Path) -> None:
    code, _, stderr = run("convert", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert code == errors.CheckpointNotFoundError.exit_code
    assert_one_clear_message(stderr, tmp_path / "nowhere")


def test_missing_config(run: Run, checkpoint: RandomCheckpoint, tmp_path: Path) -> None:
    shutil.copy(checkpoint.path / "model.safetensors", tmp_path)
    code, _, stderr = run("convert", tmp_path, "--output", tmp_path / "out")
    assert code == errors.CheckpointNotFoundError.exit_code
    assert_one_clear_message(stderr, "config.json")


@pytest.mark.parametrize("container", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_truncated_weights(run: Run, tmp_path: Path, container: str, kept: float) -> None:
    made = state_spaces(tmp_path / "checkpoint", container)
    weights = next(path for path in made.path.iterdir() if path.suffix != ".json")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * kept)])
    code, _, stderr = run("convert", made.path, "--output", tmp_path / "out")
    assert code == errors.CheckpointCorruptError.exit_code
    assert_one_clear_message(stderr, weights.name, f"{int(len(whole) * kept)} bytes")
    assert not (tmp_path / "out").exists()


def test_pickle_that_would_run_code_is_not_loaded(run: Run, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    made = state_spaces(tmp_path / "checkpoint")
    torch.save({"weights": Trap()}, made.path / "pytorch_model.bin")
    code, _, stderr = run("convert", made.path, "--output", tmp_path / "out")
    assert code == errors.CheckpointCorruptError.exit_code
    assert_one_clear_message(stderr, "pytorch_model.bin")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_wrong_dtype(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    name = "backbone.layers.1.mixer.in_proj.weight"
    _edit(checkpoint, tmp_path / "edited", lambda tensors: {name: tensors[name].to(dtype)})
    code, _, stderr = run("convert", tmp_path / "edited", "--output", tmp_path / "out")
    assert code == errors.CheckpointDtypeError.exit_code
    assert_one_clear_message(stderr, name, dtype)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_numbers(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    name = "backbone.layers.2.mixer.D"
    _edit(checkpoint, tmp_path / "edited", lambda tensors: {name: tensors[name] / 0})
    code, _, stderr = run("convert", tmp_path / "edited", "--output", tmp_path / "out")
    assert code == errors.CheckpointCorruptError.exit_code
    assert_one_clear_message(stderr, name, "NaN or infinity")


def test_transformer_checkpoint(run: Run, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
        )
    ).save_pretrained(tmp_path / "llama")
    code, _, stderr = run("convert", tmp_path / "llama", "--output", tmp_path / "out")
    assert code == errors.UnsupportedModelError.exit_code
    assert_one_clear_message(stderr, "llama", "LlamaForCausalLM")


def test_tensors_of_another_model_under_a_mamba_config(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    extra = "backbone.layers.0.mixer.dt_bias"
    _edit(checkpoint, tmp_path / "edited", lambda _: {extra: torch.zeros(3)})
    code, _, stderr = run("convert", tmp_path / "edited", "--output", tmp_path / "out")
    assert code == errors.UnsupportedModelError.exit_code
    assert_one_clear_message(stderr, extra)


def test_config_and_tensors_that_contradict_each_other(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    _edit(checkpoint, tmp_path / "edited", lambda _: {}, hidden_size=64)
    code, _, stderr = run("convert", tmp_path / "edited", "--output", tmp_path / "out")
    assert code == errors.CheckpointContradictionError.exit_code
    assert_one_clear_message(stderr, "hidden_size = 64", "tensors have 48")


def test_known_wrong_keys_of_published_configs_do_not_matter(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    _edit(checkpoint, tmp_path / "edited", lambda _: {}, d_inner=160, expand=16)
    code, _, _ = run("convert", tmp_path / "edited", "--output", tmp_path / "out")
    assert code == 0


def test_missing_shard(run: Run, tmp_path: Path) -> None:
    made = state_spaces(tmp_path / "checkpoint", "bin_sharded")
    (made.path / "pytorch_model-00002-of-00002.bin").unlink()
    code, _, stderr = run("convert", made.path, "--output", tmp_path / "out")
    assert code == errors.CheckpointNotFoundError.exit_code
    assert_one_clear_message(stderr, "pytorch_model-00002-of-00002.bin")


def test_empty_prompt(run: Run, engine: Path) -> None:
    code, stdout, stderr = run("generate", engine, "--token-ids", "")
    assert code == errors.EmptyPromptError.exit_code
    assert stdout == ""
    assert_one_clear_message(stderr)


@pytest.mark.parametrize("token_id", [-1, 101])
@pytest.mark.parametrize("verb", ["generate", "score"])
def test_token_id_out_of_range(run: Run, engine: Path, verb: str, token_id: int) -> None:
    code, _, stderr = run(verb, engine, f"--token-ids=5,{token_id}")
    assert code == errors.TokenRangeError.exit_code
    assert_one_clear_message(stderr, f"token id {token_id} at position 1", "0 to 100")


def test_bundle_where_an_engine_is_wanted(run: Run, bundle: Path) -> None:
    code, _, stderr = run("generate", bundle, "--token-ids", "1")
    assert code == errors.ArtifactNotFoundError.exit_code
    assert_one_clear_message(stderr, f"mamba-orin build {bundle}")


@pytest.mark.parametrize(
    "name", ["bundle/weights.safetensors", "engine/step.onnx", "engine/prefill.onnx"]
)
@pytest.mark.parametrize("damage", ["remove", "cut", "flip"])
def test_damaged_files_are_refused(
    run: Run, bundle: Path, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    engine = tmp_path / "engine"
    assert run("build", tmp_path / "bundle", "--output", engine)[0] == 0
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    code, _, stderr = run("score", engine, "--token-ids", "1,2")
    assert code == errors.ArtifactCorruptError.exit_code
    assert_one_clear_message(stderr, path)


def test_engine_without_its_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    engine = tmp_path / "engine"
    assert run("build", tmp_path / "bundle", "--output", engine)[0] == 0
    shutil.rmtree(tmp_path / "bundle")
    code, _, stderr = run("score", engine, "--token-ids", "1,2")
    assert code == errors.ArtifactNotFoundError.exit_code
    assert_one_clear_message(stderr, tmp_path / "bundle")


def test_engine_whose_bundle_was_converted_anew(
    run: Run, checkpoint: RandomCheckpoint, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    engine = tmp_path / "engine"
    assert run("build", tmp_path / "bundle", "--output", engine)[0] == 0
    words = ("convert", checkpoint.path, "--output", tmp_path / "bundle", "--precision", "fp16")
    assert run(*words)[0] == 0
    code, _, stderr = run("score", engine, "--token-ids", "1,2")
    assert code == errors.EngineMismatchError.exit_code
    assert_one_clear_message(stderr, engine, "mamba-orin build")


def test_engine_and_bundle_can_move_together(run: Run, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "here" / "bundle")
    words = ("build", tmp_path / "here" / "bundle", "--output", tmp_path / "here" / "engine")
    assert run(*words)[0] == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert run("score", tmp_path / "there" / "engine", "--token-ids", "1,2")[0] == 0


def test_output_that_is_somebody_elses_folder_is_left_alone(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    code, _, stderr = run("convert", checkpoint.path, "--output", tmp_path / "photos")
    assert code == errors.StorageError.exit_code
    assert_one_clear_message(stderr, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


# --- full disks and sudden ends ------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_full_disk(
    run: Run,
    checkpoint: RandomCheckpoint,
    small_disk: Path,
    foreseen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not foreseen:  # as when another program fills the disk meanwhile
        monkeypatch.setattr("pipeline.bundle.require_room", lambda *_: None)
        (small_disk / "other").write_bytes(b"x" * 200_000)
    code, _, stderr = run("convert", checkpoint.path, "--output", small_disk / "bundle")
    assert code == errors.DiskFullError.exit_code
    assert_one_clear_message(stderr, small_disk / "bundle")
    assert {path.name for path in small_disk.iterdir()} <= {"other"}


def _killed(program: str, *words: object) -> None:
    """Runs a program that ends itself by SIGKILL, as a power cut or the OOM killer would."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


KILLED_CONVERT = """
    import os, signal, sys
    from pathlib import Path
    from pipeline.bundle import convert
    calls = 0
    def progress(done, total):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""
KILLED_BUILD = """
    import importlib, os, signal, sys
    from pathlib import Path
    import pipeline.engine
    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    module, function = sys.argv[3].split(":")
    setattr(importlib.import_module(module), function, kill)
    pipeline.engine.build(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("tensor", [1, 2, 20, 33])
def test_killed_convert_leaves_nothing_that_is_accepted(
    run: Run, checkpoint: RandomCheckpoint, tmp_path: Path, tensor: int
) -> None:
    bundle = tmp_path / "bundle"
    _killed(KILLED_CONVERT, checkpoint.path, bundle, tensor)
    assert not bundle.exists()
    for leftover in [path for path in tmp_path.iterdir() if path.is_dir()]:
        code, _, stderr = run("build", leftover, "--output", tmp_path / "engine")
        assert code == errors.ArtifactNotFoundError.exit_code
        assert_one_clear_message(stderr)

    assert run("convert", checkpoint.path, "--output", bundle)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


@pytest.mark.parametrize(
    "moment",
    [
        "pipeline.onnxruntime_backend:export_graphs",
        "pipeline.engine:_ask",
        "pipeline.engine:write_manifest",
    ],
)
def test_killed_build_keeps_the_engine_that_was_there(
    run: Run, bundle: Path, tmp_path: Path, moment: str
) -> None:
    engine = tmp_path / "engine"
    assert run("build", bundle, "--output", engine)[0] == 0
    before = (engine / MANIFEST_FILE).read_bytes()
    _killed(KILLED_BUILD, bundle, engine, moment)
    assert (engine / MANIFEST_FILE).read_bytes() == before
    assert run("score", engine, "--token-ids", "1,2")[0] == 0

    assert run("build", bundle, "--output", engine)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"engine"}


def _edit(
    checkpoint: RandomCheckpoint,
    target: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    **config: int,
) -> None:
    """Copies a checkpoint with some tensors and config keys changed."""
    shutil.copytree(checkpoint.path, target)
    tensors = load_file(target / "model.safetensors")
    save_file({**tensors, **change(tensors)}, target / "model.safetensors")
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
