# SPDX-License-Identifier: MIT
"""The ctypes wrapper without a GPU: imports, structure layout, refusals."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import int8_activations, s6_library, s6_prefill, s6_selection
from pipeline.architecture import PUBLISHED
from pipeline.errors import PluginError

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"


def test_import_loads_no_heavy_module():
    """`import pipeline.s6_library` must stay cheap on a board."""
    code = (
        "import sys, pipeline.s6_library; "
        "sys.exit(bool({'torch', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("header", "name", "structure"),
    [
        ("selective_scan.h", "S6SelectiveScan", s6_library.SelectiveScanProblem),
        ("causal_conv1d.h", "S6CausalConv1d", s6_library.CausalConv1dProblem),
        ("prefill.h", "S6EmbeddingRows", s6_prefill.EmbeddingRowsProblem),
        ("prefill.h", "S6AddRmsNorm", s6_prefill.AddRmsNormProblem),
        ("prefill.h", "S6SliceNorms", s6_prefill.SliceNormsProblem),
        ("prefill.h", "S6Dequantise", s6_prefill.DequantiseProblem),
        ("prefill.h", "S6Convert", s6_prefill.ConvertProblem),
        ("quant_linear.h", "S6QuantLinear", s6_prefill.QuantLinearProblem),
        ("int8_linear.h", "S6QuantiseRows", s6_prefill.QuantiseRowsProblem),
        ("int8_linear.h", "S6Int8Linear", s6_prefill.Int8LinearProblem),
        ("selection.h", "S6Selection", s6_selection.SelectionProblem),
        ("sample.h", "S6Sample", s6_prefill.SampleProblem),
    ],
)
def test_structures_match_the_headers(tmp_path, header, name, structure):
    """Size and every field offset, as the C compiler sees them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    fields = [field for field, _ in structure._fields_]
    lines = "".join(f'printf("%zu ", offsetof({name}, {field}));' for field in fields)
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stdio.h>\n#include "s6/{header}"\n'
        f'int main(void) {{ printf("%zu ", sizeof({name})); {lines} return 0; }}\n'
    )
    program = tmp_path / "layout"
    subprocess.run([compiler, f"-I{PLUGIN / 'include'}", source, "-o", program], check=True)
    found = [int(word) for word in subprocess.check_output([program]).split()]
    wanted = [ctypes.sizeof(structure), *(getattr(structure, field).offset for field in fields)]
    assert found == wanted


def test_enums_match_the_headers():
    """Types and variants have the numbers the headers give them."""
    scan = (PLUGIN / "include/s6/selective_scan.h").read_text()
    types = (PLUGIN / "include/s6/types.h").read_text()
    variants = {
        name.lower(): int(value) for name, value in re.findall(r"S6_SCAN_([A-Z0-9]+) = (\d+)", scan)
    }
    assert variants == s6_library.VARIANTS
    dtypes = {
        name.lower(): int(value) for name, value in re.findall(r"S6_(B?FLOAT\d+) = (\d+)", types)
    }
    assert dtypes == s6_library.DTYPES


def test_the_sizes_of_a_small_product_are_those_of_the_header():
    header = (PLUGIN / "include/s6/quant_linear.h").read_text()
    assert f"S6_QUANT_LINEAR_MAX_TOKENS {s6_prefill.FEW_TOKENS}\n" in header
    assert f"a multiple of {s6_prefill.VECTOR_COLUMNS}." in header


def test_the_group_of_int8_activations_is_that_of_the_header():
    header = (PLUGIN / "include/s6/int8_linear.h").read_text()
    assert f"S6_INT8_GROUP {int8_activations.GROUP}\n" in header


def test_missing_library_says_how_to_build_it(monkeypatch, tmp_path):
    """No library: the message names the place and the remedy."""
    monkeypatch.setenv(s6_library.LIBRARY_VARIABLE, str(tmp_path / "nowhere.so"))
    with pytest.raises(PluginError, match=r"nowhere\.so, which is not a file"):
        s6_library.find_library()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.zeros((2, 3), np.float16)}, "u has shape"),
        ({"delta": np.zeros((1, 3, 7), np.float16)}, "delta has shape"),
        ({"B": np.zeros((1, 3, 16), np.float32)}, "B is float32; float16 is needed"),
        ({"u": np.zeros((1, 3, 8), np.int8)}, "u is int8"),
        ({"A": np.zeros((8, 16), np.float32).T}, "A is not contiguous"),
        ({"y": np.zeros((1, 3, 16), np.float16)[..., ::2]}, "y is not contiguous in its last axis"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_wrong_tensors_before_any_call(change, message):
    """Shapes, types and layouts are refused in Python, with the tensor's name."""
    tensors = {
        "u": np.zeros((1, 3, 8), np.float16),
        "delta": np.zeros((1, 3, 8), np.float16),
        "A": np.zeros((16, 8), np.float32),
        "B": np.zeros((1, 3, 16), np.float16),
        "C": np.zeros((1, 3, 16), np.float16),
        "y": np.zeros((1, 3, 8), np.float16),
        **change,
    }
    with pytest.raises(PluginError, match=re.escape(message)):
        s6_library.selective_scan(*(tensors[k] for k in ("u", "delta", "A", "B", "C", "y")))


def test_drop_in_refuses_what_it_cannot_do():
    """The mamba-ssm drop-in says what it does not take."""
    array = np.zeros((1, 8, 3), np.float16)
    with pytest.raises(PluginError, match="not on a GPU"):
        s6_library.selective_scan_fn(array, array, array[0], array, array)


def test_selection_takes_what_the_header_says():
    """The limits of the kernel, and which published models it is for."""
    header = (PLUGIN / "include/s6/selection.h").read_text()
    limits = {name: int(value) for name, value in re.findall(r"S6_SELECTION_(\w+) (\d+)", header)}
    assert limits == {
        "STATE": s6_selection.STATE,
        "RANK_MULTIPLE": s6_selection.RANK_MULTIPLE,
        "MAX_RANK": s6_selection.MAX_RANK,
        "CHANNELS": s6_selection.CHANNELS,
    }
    published = PUBLISHED["mamba-130m"], PUBLISHED["mamba-370m"], PUBLISHED["falcon-mamba-7b"]
    assert [s6_selection.takes_selection(a) for a in published] == [True, False, False]
    assert [s6_selection.prefers_selection(published[0], count) for count in (8, 132)] == [
        True,
        False,
    ]
