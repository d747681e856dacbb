# SPDX-License-Identifier: MIT
"""TensorRT's plugin: its contract has one home, and both shells compile against real headers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugin" / "tensorrt"
HEADERS_VARIABLE = "MAMBA_ORIN_TENSORRT_HEADERS"
# Those that know TensorRT; all others are built by the host preset.
SHELLS = ("device_memory", "shell_entry", "shell_log", "shell_types", "shell_v2", "shell_v3")


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


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_compile_without_a_warning(shell: str, tmp_path: Path) -> None:
    folders = header_folders()
    if not folders:
        pytest.skip(
            f"no TensorRT headers: set {HEADERS_VARIABLE} to folders with NvInfer.h, of the tags "
            "v8.6.1, v10.3.0, v10.16 and v11.1 of NVIDIA's repository"
        )
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed, and TensorRT's headers include CUDA's")
    for folder in folders:
        assert (folder / "NvInfer.h").is_file(), folder
        done = subprocess.run(
            ["nvcc", "-std=c++17", "-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror,-fPIC",
             f"-I{SOURCES}", f"-I{ROOT / 'plugin' / 'include'}", "-isystem", folder,
             "-c", SOURCES / f"{shell}.cpp", "-o", tmp_path / "shell.o"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{folder}: {done.stderr}"
