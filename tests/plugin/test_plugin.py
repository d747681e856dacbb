# SPDX-License-Identifier: MIT
"""TensorRT's plugin: its contract has one home, and both shells keep to real headers.

Headers alone are enough: a program stands in for TensorRT, and launches are written down.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugin"
SOURCES = PLUGIN / "tensorrt"
EXERCISE = PLUGIN / "bench" / "exercise"
HEADERS_VARIABLE = "MAMBA_ORIN_TENSORRT_HEADERS"
# Those that know TensorRT or CUDA; all others are built by the host preset.
SHELLS = [SOURCES / f"shell_{name}.cpp" for name in ("entry", "log", "types", "v2", "v3")]
DEVICE_MEMORY = SOURCES / "device_memory.cpp"
COMPILE = [
    *("nvcc", "-std=c++17", "-O3", "-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror,-fPIC"),
    *(f"-I{PLUGIN / name}" for name in ("include", "tensorrt", "api", "kernels", "bench/exercise")),
]


def test_contract_tables_are_what_the_contract_says(tmp_path: Path) -> None:
    kept = SOURCES / "contract_tables.inc"
    written = tmp_path / kept.name
    script = SOURCES / "write_contract.py"
    subprocess.run([sys.executable, script, "--output", written], check=True)
    assert written.read_text() == kept.read_text(), f"run python {script.relative_to(ROOT)}"


def header_folders() -> list[Path]:
    """Folders with NvInfer.h that the environment names, one for each version."""
    named = os.environ.get(HEADERS_VARIABLE, "")
    return [Path(folder) for folder in named.split(os.pathsep) if folder]


def run(command: Sequence[str | Path], folder: Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(
    folder: Path, sources: Iterable[Path], options: Sequence[str | Path] = ()
) -> list[Path]:
    """Objects in a folder; each source compiles without a warning."""
    folder.mkdir()
    names = list(sources)
    run([*COMPILE, *options, "-c", *names], folder)
    return [folder / f"{name.stem}.o" for name in names]


@pytest.fixture(scope="module")
def without_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects of the adaptor, and of the S6 library without a GPU."""
    if not header_folders():
        pytest.skip(
            f"no TensorRT headers: set {HEADERS_VARIABLE} to folders with NvInfer.h, of the tags "
            "v8.6.1, v10.3.0, v10.16 and v11.1 of NVIDIA's repository"
        )
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed, and TensorRT's headers include CUDA's")
    sources = [
        *(path for path in SOURCES.glob("*.cpp") if path not in (*SHELLS, DEVICE_MEMORY)),
        *(PLUGIN / "api").glob("*.cpp"),
        Path(__file__).with_name("recorded_calls.cpp"),
    ]
    return compiled(tmp_path_factory.mktemp("plugin") / "common", sources)


@pytest.mark.parametrize("folder", header_folders() or [Path("none")], ids=str)
def test_operators_through_the_interface(
    folder: Path, without_tensorrt: list[Path], tmp_path: Path
) -> None:
    assert (folder / "NvInfer.h").is_file(), folder
    headers = ["-isystem", folder]
    shells = compiled(tmp_path / "shells", SHELLS, headers)
    registering = [*headers, "-DS6_REGISTER_ON_LOAD=1"]
    compiled(tmp_path / "registering", [*SHELLS, DEVICE_MEMORY], registering)
    if "class ILoggerFinder" not in (folder / "NvInferRuntime.h").read_text():
        return  # Before 8.6 a plugin is linked to libnvinfer, which is not here.
    library, program = tmp_path / "libs6_plugin.so", tmp_path / "exercise_plugin"
    exports = f"-Xlinker=--version-script={SOURCES / 'exports.map'},-z,defs"
    run(["nvcc", "-shared", *shells, *without_tensorrt, exports, "-o", library], tmp_path)
    objects = compiled(tmp_path / "exercise", EXERCISE.glob("*.cpp"), headers)
    run(["nvcc", *objects, *without_tensorrt, "-ldl", "-o", program], tmp_path)

    # Without a GPU, also where there is one: nothing of what is recorded is calculated.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" refusals: 0 failed")
    contract = json.loads((PLUGIN / "ops.json").read_text())
    for op in contract["ops"]:
        if "engine" in op["forms"]:
            assert f"\n{op['name']} " in done.stdout
    other = subprocess.run([program, tmp_path / "none.so"], check=False, capture_output=True)
    assert other.returncode == 2
    assert b"none.so" in other.stderr
