# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from pipeline import errors
from pipeline.bundle import convert
from pipeline.gguf_checkpoint import open_gguf
from pipeline.manifest import read_bundle
from pipeline.quantize import QuantisationChoice, packings, read_dequantised
from pipeline.scoring import score
from pipeline.torch_session import open_torch_session
from pipeline.weights import WEIGHT_FILE, read_places, read_weights
from tests.checkpoints import RandomCheckpoint, hugging_face
from tests.gguf_files import Change, Tensors, tensors_of, write_gguf

TEXT = [int(i) for i in np.random.default_rng(3).integers(0, 101, 40)]
# Rows of 256 and 512, so that every kind has whole blocks; the step size has rows of 16.
WIDE: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 2, "time_step_rank": 16}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> RandomCheckpoint:
    return hugging_face(tmp_path_factory.mktemp("wide") / "hf", tied=False, **WIDE)


def weights(path: Path) -> dict[str, Any]:
    """What convert makes of a file in fp32."""
    return {name: tensor.numpy() for name, tensor in open_gguf(path).tensors()}


@pytest.mark.parametrize(
    "options",
    # llama.cpp has one epsilon for all norms, transformers another one for Falcon-Mamba's own.
    [{}, {"tied": False}, {"falcon": True, "tied": False, "layer_norm_epsilon": 1e-6}],
    ids=str,
)
def test_a_file_in_f32_scores_as_transformers_does(tmp_path: Path, options: Any) -> None:
    checkpoint = hugging_face(tmp_path / "hf", **options)
    write_gguf(checkpoint.path, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "bundle")
    manifest = read_bundle(tmp_path / "bundle")
    assert manifest.source["format"] == "gguf-mixed"
    assert manifest.architecture.tied_head == (not options)
    assert (manifest.architecture.mixer_norm_eps is not None) == bool(options.get("falcon"))
    session = open_torch_session(tmp_path / "bundle", manifest.architecture)
    found = score(session, TEXT).logprobs[1:]
    assert found == pytest.approx(checkpoint.logprobs(TEXT).numpy(), abs=1e-4)


def test_a_file_and_the_checkpoint_it_was_made_from_give_the_same_bundle(
    checkpoint: RandomCheckpoint, bundle: Path, tmp_path: Path
) -> None:
    write_gguf(checkpoint.path, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "bundle")
    expected: dict[str, Any] = dict(read_weights(bundle / WEIGHT_FILE))
    found: dict[str, Any] = dict(read_weights(tmp_path / "bundle" / WEIGHT_FILE))
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


# --- what the bytes of each kind mean, written out number by number --------------------------


def q8_0(block: bytes) -> list[float]:
    (scale,) = np.frombuffer(block[:2], np.float16)
    return [np.float32(scale) * np.float32(code) for code in np.frombuffer(block[2:], np.int8)]


def q4_0(block: bytes) -> list[float]:
    (scale,) = np.frombuffer(block[:2], np.float16)
    codes = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
    return [np.float32(scale) * np.float32(code - 8) for code in codes]


def q5_0(block: bytes) -> list[float]:
    (scale,) = np.frombuffer(block[:2], np.float16)
    high = int.from_bytes(block[2:6], "little")
    low = [byte & 15 for byte in block[6:]] + [byte >> 4 for byte in block[6:]]
    codes = [code | ((high >> place & 1) << 4) for place, code in enumerate(low)]
    return [np.float32(scale) * np.float32(code - 16) for code in codes]


def scale_and_minimum(packed: bytes, number: int) -> tuple[int, int]:
    """Six bits each for eight sub-blocks in twelve bytes."""
    if number < 4:
        return packed[number] & 63, packed[number + 4] & 63
    low, high = packed[number + 4], number - 4
    return (
        (low & 15) | (packed[high] >> 6) << 4,
        (low >> 4) | (packed[high + 4] >> 6) << 4,
    )


def q4_k(block: bytes) -> list[float]:
    scale, minimum = np.frombuffer(block[:4], np.float16).astype(np.float32)
    values = []
    for number in range(8):
        of_scale, of_minimum = scale_and_minimum(block[4:16], number)
        some = block[16 + 32 * (number // 2) :][:32]
        codes = [byte >> 4 if number % 2 else byte & 15 for byte in some]
        step, shift = scale * np.float32(of_scale), minimum * np.float32(of_minimum)
        values += [step * np.float32(code) - shift for code in codes]
    return values


def q5_k(block: bytes) -> list[float]:
    scale, minimum = np.frombuffer(block[:4], np.float16).astype(np.float32)
    values = []
    for number in range(8):
        of_scale, of_minimum = scale_and_minimum(block[4:16], number)
        some = block[48 + 32 * (number // 2) :][:32]
        low = [byte >> 4 if number % 2 else byte & 15 for byte in some]
        codes = [code + (block[16 + j] >> number & 1) * 16 for j, code in enumerate(low)]
        step, shift = scale * np.float32(of_scale), minimum * np.float32(of_minimum)
        values += [step * np.float32(code) - shift for code in codes]
    return values


def q6_k(block: bytes) -> list[float]:
    low, high = block[:128], block[128:192]
    scales = np.frombuffer(block[192:208], np.int8)
    (scale,) = np.frombuffer(block[208:], np.float16).astype(np.float32)
    values = []
    for place in range(256):
        half, rest = divmod(place, 128)
        quarter, lane = divmod(rest, 32)
        nibble = low[64 * half + 32 * (quarter % 2) + lane] >> (4 if quarter >= 2 else 0) & 15
        code = nibble | (high[32 * half + lane] >> 2 * quarter & 3) << 4
        values.append(scale * np.float32(scales[place // 16]) * np.float32(code - 32))
    return values


KINDS: dict[Kind, Callable[[bytes], list[float]]] = {
    Kind.Q8_0: q8_0,
    Kind.Q4_0: q4_0,
    Kind.Q5_0: q5_0,
    Kind.Q4_K: q4_k,
    Kind.Q5_K: q5_k,
    Kind.Q6_K: q6_k,
}
# Where the float16 numbers of a block stand: random bits would be infinities now and then.
FLOATS = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}


def random_blocks(kind: Kind, rows: int, columns: int, seed: int) -> Any:
    """Any bytes are blocks, but for their float16 numbers."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for place in FLOATS.get(kind, (0,)):
        data[:, place : place + 2] = (
            generator.normal(0, 0.01, (len(data), 1)).astype(np.float16).view(np.uint8)
        )
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_weights_of_every_kind_are_unpacked_exactly(
    wide: RandomCheckpoint, tmp_path: Path, kind: Kind
) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw: dict[str, Any] = {}

    def all_kinds(writer: gguf.GGUFWriter, tensors: Tensors) -> None:
        for name in list(tensors):
            if name.endswith(("ssm_in.weight", "ssm_out.weight", "token_embd.weight")):
                rows, columns = tensors.pop(name).shape
                raw[name] = random_blocks(kind, rows, columns, seed=len(name))
                writer.add_tensor(name, raw[name], raw_dtype=kind)

    write_gguf(wide.path, tmp_path / "model.gguf", change=all_kinds)
    found = weights(tmp_path / "model.gguf")
    for ours, theirs in (
        ("embedding.weight", "token_embd.weight"),
        ("layers.1.in_proj.weight", "blk.1.ssm_in.weight"),
        ("layers.0.out_proj.weight", "blk.0.ssm_out.weight"),
    ):
        blocks = raw[theirs].reshape(-1, size)
        some = np.linspace(0, len(blocks) - 1, 40, dtype=int)
        expected = np.array([KINDS[kind](blocks[number].tobytes()) for number in some])
        np.testing.assert_array_equal(found[ours].reshape(-1, block)[some], expected)


def test_f16_and_bf16_are_read(wide: RandomCheckpoint, tmp_path: Path) -> None:
    exact = tensors_of(wide.path / "model.safetensors")["blk.0.ssm_x.weight"]
    for kind, share in ((Kind.F16, 2**-11), (Kind.BF16, 2**-8)):
        write_gguf(wide.path, tmp_path / f"{kind.name}.gguf", kind)
        found = weights(tmp_path / f"{kind.name}.gguf")["layers.0.x_proj.weight"]
        np.testing.assert_allclose(found, exact, rtol=share, atol=1e-7)


@pytest.mark.parametrize(("kind", "precision"), [(Kind.Q4_0, "int4"), (Kind.Q8_0, "int8")])
def test_the_same_groups_keep_ready_weights_as_they_are(
    wide: RandomCheckpoint, tmp_path: Path, kind: Kind, precision: Any
) -> None:
    """Nobody loses anything who brings Q4_0 or Q8_0: the packed numbers are the same ones."""
    write_gguf(wide.path, tmp_path / "model.gguf", kind)
    exact = weights(tmp_path / "model.gguf")
    choice = QuantisationChoice("fp16", "fp16", group_size=32)
    convert(tmp_path / "model.gguf", tmp_path / "bundle", precision, choice=choice)
    architecture = read_bundle(tmp_path / "bundle").architecture
    packed = packings(architecture, read_places(tmp_path / "bundle" / WEIGHT_FILE))
    found = dict(read_dequantised(tmp_path / "bundle" / WEIGHT_FILE, architecture))
    compared = [name for name in packed if packed[name].group_size == 32]
    assert len(compared) == 2 * 3  # the step size has rows of 16 and is in F16 in the file
    for name in compared:
        np.testing.assert_array_equal(found[name], exact[name], err_msg=name)


# --- what is refused -------------------------------------------------------------------------


def rename_architecture(writer: gguf.GGUFWriter, _: Tensors) -> None:
    writer.kv_data[0]["general.architecture"].value = "mamba2"


def add_part_count(writer: gguf.GGUFWriter, _: Tensors) -> None:
    writer.add_uint16("split.count", 3)


def add_attention(_: gguf.GGUFWriter, tensors: Tensors) -> None:
    tensors["blk.1.attn_q.weight"] = np.zeros((48, 48), np.float32)


def drop_tensor(_: gguf.GGUFWriter, tensors: Tensors) -> None:
    del tensors["blk.1.ssm_x.weight"]


def narrow_tensor(_: gguf.GGUFWriter, tensors: Tensors) -> None:
    tensors["blk.1.ssm_x.weight"] = tensors["blk.1.ssm_x.weight"][:-1]


def wrong_metadata(writer: gguf.GGUFWriter, _: Tensors) -> None:
    writer.kv_data[0]["mamba.ssm.state_size"].value = 32


@pytest.mark.parametrize(
    ("change", "error", "found"),
    [
        (rename_architecture, errors.UnsupportedModelError, "mamba2"),
        (add_part_count, errors.UnsupportedModelError, "3 parts"),
        (add_attention, errors.UnsupportedModelError, r"blk\.1\.attn_q"),
        (drop_tensor, errors.CheckpointNotFoundError, r"layers\.1\.x_proj"),
        (narrow_tensor, errors.CheckpointContradictionError, r"blk\.1\.ssm_x"),
        (wrong_metadata, errors.CheckpointContradictionError, "state_size = 32"),
    ],
)
def test_other_models_and_damaged_ones_are_refused_with_the_reason(
    checkpoint: RandomCheckpoint,
    tmp_path: Path,
    change: Change,
    error: type[errors.PipelineError],
    found: str,
) -> None:
    write_gguf(checkpoint.path, tmp_path / "model.gguf", change=change)
    with pytest.raises(error, match=found) as caught:
        convert(tmp_path / "model.gguf", tmp_path / "bundle")
    assert caught.value.fix
    assert not (tmp_path / "bundle").exists()


def test_infinity_is_refused_by_the_name_of_its_tensor(
    checkpoint: RandomCheckpoint, tmp_path: Path
) -> None:
    def spoil(_: gguf.GGUFWriter, tensors: Tensors) -> None:
        tensors["blk.1.ssm_out.weight"][3, 3] = np.inf

    write_gguf(checkpoint.path, tmp_path / "model.gguf", change=spoil)
    with pytest.raises(errors.CheckpointCorruptError, match=r"blk\.1\.ssm_out\.weight"):
        convert(tmp_path / "model.gguf", tmp_path / "bundle", "int4")


@pytest.mark.parametrize("kept", [0, 3, 20, 2000, -1])
def test_truncated_files_are_refused(
    checkpoint: RandomCheckpoint, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(checkpoint.path, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(errors.CheckpointCorruptError, match="truncated or not a GGUF"):
        open_gguf(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("not a model at all, but long enough to look at")
    with pytest.raises(errors.CheckpointCorruptError):
        open_gguf(tmp_path / "model.gguf")
    with pytest.raises(errors.CheckpointNotFoundError):
        open_gguf(tmp_path / "none.gguf")
