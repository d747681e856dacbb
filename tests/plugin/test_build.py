# SPDX-License-Identifier: MIT
"""Builds the plugin: the host preset and its tests, and the kernels for the board where nvcc is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PTXAS_REPORT = ROOT / "docs" / "measurements" / "ptxas.json"


def test_host_preset_builds_and_passes_its_tests(tmp_path: Path) -> None:
    """Oracle, argument checks and polynomials need cmake and a C++ compiler only."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is not installed")
    configure = ["cmake", "-S", ROOT / "plugin", "--preset", "host", "-B", tmp_path]
    subprocess.run(configure, check=True, capture_output=True, cwd=ROOT / "plugin")
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    done = subprocess.run(
        ["ctest", "--test-dir", tmp_path, "--output-on-failure"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout


def test_kernels_compile_for_the_board_without_spills(tmp_path: Path) -> None:
    """Warning-free for sm_87, one library, no spills, and the kept report is this compiler's."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    output = tmp_path / "ptxas.json"
    script = ROOT / "plugin" / "bench" / "ptxas_report.py"
    done = subprocess.run(
        [sys.executable, script, "--output", output], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found, kept = json.loads(output.read_text()), json.loads(PTXAS_REPORT.read_text())
    if found["versions"] == kept["versions"]:
        assert found["rows"] == kept["rows"], "docs/measurements/ptxas.json is out of date"


@pytest.mark.parametrize("preset", ["dev_gpu", "sanitize"])
def test_only_the_sanitize_preset_hands_over_by_mbarriers(preset: str, tmp_path: Path) -> None:
    """racecheck follows mbarriers, not the named barriers that ship: docs/lab_note_scan.md."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    plugin, output = ROOT / "plugin", tmp_path / "scan_relay.ptx"
    presets = json.loads((plugin / "CMakePresets.json").read_text())["configurePresets"]
    variables = next(p for p in presets if p["name"] == preset)["cacheVariables"]
    includes = [f"-I{plugin / folder}" for folder in ("include", "api", "kernels")]
    flags = ["-std=c++17", "-arch=sm_87", *variables.get("CMAKE_CUDA_FLAGS", "").split()]
    source = plugin / "kernels" / "scan_relay.cu"
    subprocess.run(["nvcc", "-ptx", *flags, *includes, "-o", output, source], check=True)
    code = output.read_text()
    assert ("mbarrier.arrive" in code) == (preset == "sanitize")
    assert ("bar.arrive" in code) == (preset != "sanitize")


@pytest.mark.parametrize(
    "name",
    ["scan", "scan_checks", "decode", "prefill", "prefill_w8a8", "selection", "tensorrt"],
)
def test_measurements_come_from_their_command(name: str) -> None:
    """Each kept file names the command that wrote it, and its rows say what they should."""
    document = json.loads((ROOT / "docs" / "measurements" / f"{name}.json").read_text())
    assert document["subject"] == name
    assert (ROOT / document["command"].split()[1]).is_file()
    if name == "scan":
        for row in document["rows"]:
            assert row["time_us"] > 0
            assert {"op", "dtype", "d", "l", "n", "sms", "bytes_bound_us", "peer"} <= set(row)
    elif name == "decode":
        for row in document["rows"]:
            assert row["read_gbps"] < row["stream_read_gbps"]
            assert {"model", "precision", "batch", "sms", "ms_per_token"} <= set(row)
    elif name.startswith("prefill"):
        shares = ("products_pct", "scan_pct", "convolution_pct", "rest_pct")
        for row in document["rows"]:
            assert row["prefill_ms"] > 0
            assert sum(row[share] for share in shares) == pytest.approx(100, abs=0.3)
    elif name == "selection":
        for row in document["rows"]:
            assert row["selection_us"] > 0
            assert row["products_us"] > 0
    elif name == "tensorrt":
        for row in document["rows"]:
            assert row["ms_per_token"] > 0
            assert row.get("tokens_agree", True)
            assert row.get("logprob_error", 0.0) < 2e-2
    else:
        assert not [row for row in document["rows"] if row["result"] == "failed"]
