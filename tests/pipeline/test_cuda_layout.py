# SPDX-License-Identifier: MIT
"""What the cuda backend decides before it touches a GPU: places, sizes, arguments, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import cuda_backend
from pipeline.architecture import PUBLISHED, MambaArchitecture
from pipeline.bundle import convert
from pipeline.cli import main
from pipeline.cublas import Product, gemm_arguments
from pipeline.cuda_prefill import activation_layout, narrow_row
from pipeline.cuda_stretch_state import state_sizes
from pipeline.cuda_weights import plan_image
from pipeline.engine import choose_backend
from pipeline.errors import ArtifactError, BackendError, EngineMismatchError, PluginError
from pipeline.int8_activations import GROUP
from pipeline.manifest import EngineManifest, read_bundle, read_engine, write_manifest
from pipeline.quantize import QuantisationChoice, choose_packings
from pipeline.stored_tensors import plan_tensors
from pipeline.weights import TensorPlace, plan_places
from tests.checkpoints import RandomCheckpoint

ALIGNMENT = 128


def places_of(name: str, precision: str) -> tuple[MambaArchitecture, dict[str, TensorPlace]]:
    """The weight file that `convert` would write for a published model."""
    architecture = PUBLISHED[name]
    packed = choose_packings(architecture, precision, QuantisationChoice())
    return architecture, plan_places(plan_tensors(architecture, precision, packed))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_tensor_of_every_block_is_one_step_from_the_one_before(
    name: str, precision: str
) -> None:
    architecture, places = places_of(name, precision)
    plan = plan_image(places, architecture)
    for tensor in (word for word in places if word.startswith("layers.0.")):
        for layer in range(architecture.n_layer):
            found = plan.offsets[tensor.replace("layers.0", f"layers.{layer}")]
            assert found == plan.offsets[tensor] + layer * plan.layer_bytes
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    assert plan.layer_bytes % ALIGNMENT == 0


def test_tensors_do_not_overlap_and_fill_the_image() -> None:
    architecture, places = places_of("mamba-130m", "int4")
    plan = plan_image(places, architecture)
    ends = [
        (plan.offsets[name], plan.offsets[name] + place.length) for name, place in places.items()
    ]
    for (_, end), (begin, _) in itertools.pairwise(ends):
        assert end <= begin < end + ALIGNMENT
    assert ends[-1][1] <= plan.size < ends[-1][1] + ALIGNMENT


def test_blocks_that_differ_are_refused_by_name() -> None:
    architecture, places = places_of("mamba-130m", "int4")
    place = places["layers.7.x_proj.weight"]
    places["layers.7.x_proj.weight"] = dataclasses.replace(place, length=2 * place.length)
    with pytest.raises(BackendError, match="block 7"):
        plan_image(places, architecture)


@pytest.mark.parametrize("name", PUBLISHED)
def test_activations_do_not_overlap(name: str) -> None:
    a, tokens = PUBLISHED[name], 37
    offsets, size = activation_layout(a, tokens)
    rows = {
        "token_ids": 4,
        "x": 4 * a.d_model,
        "xz": 4 * a.d_inner,
        "u": 2 * a.d_inner,
        "narrow": 2 * narrow_row(a),
        "delta": 2 * max(a.d_inner, a.d_model),
    }
    spans = {key: (offsets[key], offsets[key] + row * tokens) for key, row in rows.items()}
    assert max(end for _, end in spans.values()) <= size
    for one in spans:
        for other in spans:
            if one < other:
                assert spans[one][1] <= spans[other][0] or spans[other][1] <= spans[one][0]
    assert narrow_row(a) >= a.dt_rank + 2 * a.d_state


@pytest.mark.parametrize("name", PUBLISHED)
def test_codes_and_scales_fit_where_float16_was(name: str) -> None:
    """Those of the norm's output in the place of the step sizes, those of the scan's in u's."""
    a, tokens = PUBLISHED[name], 37
    offsets, size = activation_layout(a, tokens)
    for place, columns in (("delta", a.d_model), ("u", a.d_inner)):
        later = [offset for offset in offsets.values() if offset > offsets[place]]
        room = min([*later, size]) - offsets[place]
        assert columns % GROUP == 0
        assert tokens * (columns + 4 * columns // GROUP) <= room


def test_states_have_the_bytes_of_their_shapes() -> None:
    a = PUBLISHED["mamba-370m"]
    sizes = state_sizes(a, 3)
    assert sizes.conv == 4 * np.prod(a.conv_state_shape(3))
    assert sizes.ssm == 4 * np.prod(a.ssm_state_shape(3))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_arguments_of_a_product_compute_it(tokens: int, add: bool) -> None:
    """Read the way the BLAS standard says: by columns, with leading dimensions."""
    generator = np.random.default_rng(0)
    rows, columns, x_row, y_row = 3, 4, 6, 7
    weight = generator.normal(size=(rows, columns))
    x = generator.normal(size=(tokens, x_row))
    y = generator.normal(size=(tokens, y_row))
    p = Product(1, rows, columns, 2, x_row, tokens, 3, y_row, wide=True, add=add)
    memory = {1: weight.ravel(), 2: x.ravel(), 3: y.ravel()}
    words = gemm_arguments(p)
    transposed_a, transposed_b, m, n, k = words[:5]
    (_, a, _, lda, b, _, ldb, _, c, _, ldc) = words[5:16]
    assert (transposed_a, transposed_b) == (1, 0)

    def element(matrix: int | None, row: int, column: int, leading: int | None) -> float:
        assert matrix is not None
        assert leading is not None
        return float(memory[matrix][column * leading + row])

    assert (m, n, k) == (rows, tokens, columns)
    wanted = x[:, :columns] @ weight.T
    for i in range(rows):
        for j in range(tokens):
            found = sum(element(a, q, i, lda) * element(b, q, j, ldb) for q in range(columns))
            assert found == pytest.approx(wanted[j, i])
            assert element(c, i, j, ldc) == y[j, i]


def test_float32_bundles_and_odd_widths_are_not_for_the_gpu(bundle: Path) -> None:
    manifest = read_bundle(bundle)
    reason = cuda_backend.why_not(manifest)
    assert reason is not None
    assert "float32" in reason
    odd = {**manifest.model, "d_model": 44}
    reason = cuda_backend.why_not(manifest.model_copy(update={"precision": "fp16", "model": odd}))
    assert reason is not None
    assert "d_model is 44" in reason


def test_auto_says_what_it_takes_and_why(bundle: Path) -> None:
    backend, reason = choose_backend("auto", read_bundle(bundle))
    assert backend == "onnxruntime"
    assert "not cuda: the bundle holds float32" in reason


@pytest.fixture(scope="module")
def half_bundle(checkpoint: RandomCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("half") / "bundle"
    convert(checkpoint.path, output, "fp16")
    return output


def test_without_a_gpu_the_backend_is_refused_and_auto_takes_the_cpu(
    half_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = cuda_backend.why_not(read_bundle(half_bundle))
    if reason is None:
        pytest.skip("this machine has a GPU")
    words = ["build", str(half_bundle), "--output", str(tmp_path / "engine")]
    assert main([*words, "--backend", "cuda"]) in {
        BackendError.exit_code,
        PluginError.exit_code,
        71,  # a package is missing
    }
    assert "fix:" in capsys.readouterr().err
    assert not (tmp_path / "engine").exists()
    assert main(words) == 0
    assert "engine for onnxruntime (not cuda: " in capsys.readouterr().err


def test_an_engine_of_another_gpu_is_refused_with_the_command_that_mends_it(
    half_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "engine"
    words = ["build", str(half_bundle), "--output", str(engine), "--backend", "onnxruntime"]
    assert main(words) == 0
    manifest = read_engine(engine)
    changed: EngineManifest = manifest.model_copy(update={"backend": "cuda"})
    shutil.copy(engine / "manifest.json", tmp_path / "kept.json")
    write_manifest(engine, changed)
    capsys.readouterr()
    if cuda_backend.why_not(read_bundle(half_bundle)) is not None:
        assert main(["score", str(engine), "--token-ids", "1,2"]) != 0
        assert "fix:" in capsys.readouterr().err
        return
    assert main(["score", str(engine), "--token-ids", "1,2"]) == EngineMismatchError.exit_code
    stderr = capsys.readouterr().err
    assert "was built for" in stderr
    assert f"--output {engine} --backend cuda" in stderr
    assert issubclass(EngineMismatchError, ArtifactError)
