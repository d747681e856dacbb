# SPDX-License-Identifier: MIT
"""What a token must cost at least: bytes and operations counted, over what a board can do.

Everything here is a prediction from data sheets. It is a floor, reached only if every unit of
the chip that is not the limiting one worked entirely in its shadow.

Counted are the bytes and operations no implementation can avoid; activations stay on the chip.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.architecture import PUBLISHED, MambaArchitecture, Weight
from pipeline.errors import UsageError
from pipeline.quantize import WORD_BITS, QuantisationChoice, choose_packings
from pipeline.records import Board

_FLOAT32_BYTES = 4
_SCALE_BYTES = 2  # scales of int8 and int4 are float16
_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
PRECISIONS = tuple(_BITS)

# Operations of the scan for one channel and one state, an exponential aside: delta * A, decay
# times h, delta u times B added to it, C times h added up; a fused multiply-add is two.
_SCAN_OPERATIONS = 6


@dataclass(frozen=True)
class PowerMode:
    """What one nvpmodel mode leaves of a module.

    Attributes:
        name: As nvpmodel calls it.
        multiprocessors: SMs that are powered: two for each bit that TPC_PG_MASK leaves clear.
        gpu_clock_mhz: Highest clock of the GPU.
        memory_clock_mhz: Highest clock of the memory; data moves on both edges.
    """

    name: str
    multiprocessors: int
    gpu_clock_mhz: float
    memory_clock_mhz: float


@dataclass(frozen=True)
class BoardLimits:
    """One module with one boot chain.

    Attributes:
        title: For people.
        memory_bits: Width of the memory bus.
        available_bytes: Memory left to programs after a boot without a desktop.
        modes: Its power modes; the last one is the fastest and the default here.
    """

    title: str
    memory_bits: int
    available_bytes: int
    modes: tuple[PowerMode, ...]


# Left after a headless boot: 6.4 GiB of 7.4 were seen on Jetson Linux 39.2.1; for 4 GB boards
# 2.3 to 2.6 GiB are reported, and the lower one is what can be relied on.
_AVAILABLE_8GB_BYTES = round(6.4 * 2**30)
_AVAILABLE_4GB_BYTES = round(2.3 * 2**30)

# Clocks and TPC masks: NVIDIA's nvpmodel_p3767_0003.conf and _0004.conf and their _super
# variants (Jetson Linux 36.4); where the file leaves the memory clock open on an original boot
# chain, the firmware holds it at 2133 MHz. A 7W mode that later releases add to the Super boards
# is left out, because its file has not been seen.
BOARDS: dict[str, BoardLimits] = {
    "orin-nano-8gb": BoardLimits(
        title="Jetson Orin Nano 8 GB, Super boot chain",
        memory_bits=128,
        available_bytes=_AVAILABLE_8GB_BYTES,
        modes=(
            PowerMode("15W", 8, 612.0, 2133.0),
            PowerMode("25W", 8, 918.0, 3199.0),
            PowerMode("MAXN_SUPER", 8, 1020.0, 3199.0),
        ),
    ),
    "orin-nano-8gb-original": BoardLimits(
        title="Jetson Orin Nano 8 GB, original boot chain",
        memory_bits=128,
        available_bytes=_AVAILABLE_8GB_BYTES,
        modes=(
            PowerMode("7W", 4, 408.0, 2133.0),
            PowerMode("15W", 8, 624.75, 2133.0),
        ),
    ),
    "orin-nano-4gb": BoardLimits(
        title="Jetson Orin Nano 4 GB, Super boot chain",
        memory_bits=64,
        available_bytes=_AVAILABLE_4GB_BYTES,
        modes=(
            PowerMode("10W", 4, 612.0, 2133.0),
            PowerMode("25W", 4, 1020.0, 3199.0),
            PowerMode("MAXN_SUPER", 4, 1020.0, 3199.0),
        ),
    ),
    "orin-nano-4gb-original": BoardLimits(
        title="Jetson Orin Nano 4 GB, original boot chain",
        memory_bits=64,
        available_bytes=_AVAILABLE_4GB_BYTES,
        modes=(
            PowerMode("7W_CPU", 4, 306.0, 2133.0),
            PowerMode("7W_AI", 4, 408.0, 2133.0),
            PowerMode("10W", 4, 624.75, 2133.0),
        ),
    ),
}
BOARD_SOURCE = "NVIDIA's nvpmodel files for p3767-0003 and -0004 and Orin Nano's data sheet"

# Results a clock and SM of Ampere's Orin variant (compute capability 8.7): 4 tensor cores of
# 256 half-precision multiply-adds, 128 single-precision ones, 16 exponentials.
_TENSOR_OPERATIONS = 4 * 256 * 2
_FLOAT_OPERATIONS = 128 * 2
_EXPONENTIALS = 16


class Limits(BaseModel):
    """What a board can do in a power mode; from data sheets, not measured.

    Attributes:
        board: Name in the table.
        title: The same for people.
        power_mode: As nvpmodel calls it.
        memory_gb_per_s: Data the memory moves.
        tensor_tflops: Half-precision operations of the tensor cores, dense.
        float_tflops: Single-precision operations of the CUDA cores.
        exponentials_g_per_s: Exponentials of the special function units, 10^9 a second.
        available_bytes: Memory left to programs after a boot without a desktop.
        source: Where the numbers are from.
    """

    model_config = ConfigDict(frozen=True)

    board: str
    title: str
    power_mode: str
    memory_gb_per_s: float
    tensor_tflops: float
    float_tflops: float
    exponentials_g_per_s: float
    available_bytes: int
    source: str = BOARD_SOURCE


class Work(BaseModel):
    """What must be done, whatever the machine.

    Attributes:
        bytes: Bytes that move between memory and chip.
        matrix_operations: Of the matrix products; a multiply-add is two.
        scan_operations: Single-precision ones of scan and convolution.
        exponentials: exp(delta A) of the scan, one a channel, state and token.
    """

    model_config = ConfigDict(frozen=True)

    bytes: int
    matrix_operations: int
    scan_operations: int
    exponentials: int


Unit = Literal["memory", "tensor cores", "CUDA cores", "exponential units"]


class Bound(BaseModel):
    """The floor of one kind of work on one board; a prediction.

    Attributes:
        work: What must be done.
        unit_ms: Time each unit would need alone.
        limiting_unit: The slowest of them.
        bound_ms: Its time: no implementation is faster.
    """

    model_config = ConfigDict(frozen=True)

    work: Work
    unit_ms: dict[Unit, float]
    limiting_unit: Unit
    bound_ms: float


class Prediction(BaseModel):
    """The roofline of a model on a board. Predicted throughout; nothing here was measured.

    Attributes:
        kind: Says so to whoever reads the JSON.
        model: Name of the model.
        precision: Of its matrices.
        limits: The board.
        weight_bytes: All weights.
        state_bytes: The state of one text.
        fits_in_memory: Whether weights and state are smaller than the memory left to
            programs; what the runtime needs comes on top.
        decode: One token.
        tokens_per_second_bound: The most tokens a second.
        sequence_length: Tokens of the prompt in `prefill`.
        prefill: A whole prompt.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["prediction"] = "prediction"
    model: str
    precision: str
    limits: Limits
    weight_bytes: int
    state_bytes: int
    fits_in_memory: bool
    decode: Bound
    tokens_per_second_bound: float
    sequence_length: int
    prefill: Bound


def weight_bytes(architecture: MambaArchitecture, precision: str) -> int:
    """Bytes of all weights, as `convert` stores them by default.

    That is matrices in `precision` with their scales, vectors in float32; embedding and head of
    an int4 model in int8.

    Raises:
        UsageError: Unknown precision.
    """
    return sum(_stored_bytes(architecture, precision).values())


def state_bytes(architecture: MambaArchitecture, batch: int = 1) -> int:
    """Bytes of the float32 state of `batch` texts."""
    conv, ssm = architecture.conv_state_shape(batch), architecture.ssm_state_shape(batch)
    return (Weight(conv, "vector").elements + Weight(ssm, "vector").elements) * _FLOAT32_BYTES


def decode_work(architecture: MambaArchitecture, precision: str, batch: int = 1) -> Work:
    """What one more token of each text needs.

    Every weight once, the state read and written. The embedding is a matrix to read when it is
    the head, too; else it gives one row a text.

    Args:
        architecture: Sizes.
        precision: "fp32", "fp16", "int8" or "int4".
        batch: Texts at once.

    Raises:
        UsageError: Unknown precision.
    """
    return prefill_work(architecture, precision, sequence_length=1, batch=batch)


def prefill_work(
    architecture: MambaArchitecture, precision: str, sequence_length: int, batch: int = 1
) -> Work:
    """What reading a prompt needs, up to the logits after its last token.

    Weights move once for the whole prompt, the state is read and written once, and the head
    is applied to the last token only.

    Args:
        architecture: Sizes.
        precision: As for `decode_work`.
        sequence_length: Tokens of the prompt.
        batch: Texts at once.

    Raises:
        UsageError: Unknown precision, or no token.
    """
    if sequence_length < 1:
        raise UsageError(
            f"a prompt of {sequence_length} tokens has no cost", fix="give at least one token"
        )
    a, tokens = architecture, batch * sequence_length
    moved = weight_bytes(a, precision) + 2 * state_bytes(a, batch)
    if not a.tied_head:
        row_bytes = _stored_bytes(a, precision)["embedding.weight"] // a.vocab_rows
        moved -= row_bytes * (a.vocab_rows - min(tokens, a.vocab_rows))
    in_blocks = a.n_layer * sum(
        weight.elements for weight in a.layer_weights().values() if weight.kind == "matrix"
    )
    head = a.vocab_rows * a.d_model
    channels = a.n_layer * a.d_inner
    return Work(
        bytes=moved,
        matrix_operations=2 * (tokens * in_blocks + batch * head),
        scan_operations=tokens * channels * (_SCAN_OPERATIONS * a.d_state + 2 * a.d_conv),
        exponentials=tokens * channels * a.d_state,
    )


def board_limits(board_name: str, power_mode: str | None = None) -> Limits:
    """Looks a board up.

    Args:
        board_name: A key of `BOARDS`.
        power_mode: One of its modes, in any case; None for the fastest.

    Raises:
        UsageError: No such board or mode; names the choices.
    """
    board = BOARDS.get(board_name)
    if board is None:
        raise UsageError(f"unknown board {board_name!r}", fix=f"choose one of: {', '.join(BOARDS)}")
    wanted = power_mode.upper() if power_mode else board.modes[-1].name
    mode = next((mode for mode in board.modes if mode.name == wanted), None)
    if mode is None:
        raise UsageError(
            f"{board_name} has no power mode {power_mode!r}",
            fix=f"choose one of: {', '.join(mode.name for mode in board.modes)}"
            + _other_boot_chain(board_name, wanted),
        )
    clocks_a_second = mode.multiprocessors * mode.gpu_clock_mhz * 1e6
    return Limits(
        board=board_name,
        title=board.title,
        power_mode=mode.name,
        memory_gb_per_s=2 * mode.memory_clock_mhz * 1e6 * board.memory_bits / 8 / 1e9,
        tensor_tflops=clocks_a_second * _TENSOR_OPERATIONS / 1e12,
        float_tflops=clocks_a_second * _FLOAT_OPERATIONS / 1e12,
        exponentials_g_per_s=clocks_a_second * _EXPONENTIALS / 1e9,
        available_bytes=board.available_bytes,
    )


def limits_of(board: Board) -> Limits | str:
    """The limits of the machine that `read_board` described, or why they are not known."""
    jetson = board.jetson
    if jetson is None:
        return "this machine is not in the board table"
    if jetson.module is None or jetson.is_super is None or jetson.power_mode is None:
        return "the module, its boot chain or its power mode could not be read"
    name = jetson.module if jetson.is_super else f"{jetson.module}-original"
    known = BOARDS.get(name)
    if known is None or jetson.power_mode not in {mode.name for mode in known.modes}:
        return f"{name} in mode {jetson.power_mode} is not in the board table"
    return board_limits(name, jetson.power_mode)


def find_model(name: str) -> MambaArchitecture:
    """Sizes of a published model.

    Args:
        name: Like "mamba-370m"; an owner before a slash and "-hf" behind are ignored.

    Raises:
        UsageError: Unknown; names the choices.
    """
    plain = name.rpartition("/")[2].removesuffix("-hf").lower()
    if plain not in PUBLISHED:
        raise UsageError(f"unknown model {name!r}", fix=f"choose one of: {', '.join(PUBLISHED)}")
    return PUBLISHED[plain]


def predict(
    architecture: MambaArchitecture,
    precision: str,
    board_name: str = "orin-nano-8gb",
    power_mode: str | None = None,
    *,
    model: str = "model",
    sequence_length: int = 1024,
) -> Prediction:
    """The roofline of one text.

    Args:
        architecture: Sizes.
        precision: "fp32", "fp16", "int8" or "int4".
        board_name: A key of `BOARDS`.
        power_mode: One of its modes; None for the fastest.
        model: Name, for display.
        sequence_length: Tokens of the prompt.

    Raises:
        UsageError: Unknown precision, board or mode; names the choices.
    """
    limits = board_limits(board_name, power_mode)
    weights, state = weight_bytes(architecture, precision), state_bytes(architecture)
    decode = bound(decode_work(architecture, precision), limits, precision)
    return Prediction(
        model=model,
        precision=precision,
        limits=limits,
        weight_bytes=weights,
        state_bytes=state,
        fits_in_memory=weights + state < limits.available_bytes,
        decode=decode,
        tokens_per_second_bound=1e3 / decode.bound_ms,
        sequence_length=sequence_length,
        prefill=bound(prefill_work(architecture, precision, sequence_length), limits, precision),
    )


def bound(work: Work, limits: Limits, precision: str) -> Bound:
    """The floor of some work: the time of the unit that needs longest.

    Args:
        work: What must be done.
        limits: What the board can do.
        precision: Of the matrices; single precision cannot use the tensor cores.
    """
    floats = work.scan_operations
    matrix_ms = work.matrix_operations / limits.tensor_tflops / 1e9
    if precision == "fp32":
        floats, matrix_ms = floats + work.matrix_operations, 0.0
    unit_ms: dict[Unit, float] = {
        "memory": work.bytes / limits.memory_gb_per_s / 1e6,
        "tensor cores": matrix_ms,
        "CUDA cores": floats / limits.float_tflops / 1e9,
        "exponential units": work.exponentials / limits.exponentials_g_per_s / 1e6,
    }
    limiting = max(unit_ms, key=lambda unit: unit_ms[unit])
    return Bound(work=work, unit_ms=unit_ms, limiting_unit=limiting, bound_ms=unit_ms[limiting])


def render(prediction: Prediction, width: int = 78) -> str:
    """A prediction as text for a terminal.

    Args:
        prediction: What to show.
        width: Columns.
    """
    p, limits = prediction, prediction.limits
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("one token", justify="right")
    table.add_column(f"prompt of {p.sequence_length}", justify="right")
    bounds = (p.decode, p.prefill)
    table.add_row("bytes moved", *(f"{b.work.bytes / 1e6:,.1f} MB" for b in bounds))
    table.add_row("matrix operations", *(_count(b.work.matrix_operations) for b in bounds))
    table.add_row("scan operations", *(_count(b.work.scan_operations) for b in bounds))
    table.add_row("exponentials", *(_count(b.work.exponentials) for b in bounds))
    table.add_section()
    for unit in p.decode.unit_ms:
        table.add_row(f"{unit} alone", *(_milliseconds(b.unit_ms[unit]) for b in bounds))
    table.add_section()
    table.add_row("floor", *(_milliseconds(b.bound_ms) for b in bounds), style="bold")
    table.add_row("limited by", *(b.limiting_unit for b in bounds))
    table.add_row(
        "tokens/s at most",
        f"{p.tokens_per_second_bound:,.1f}",
        f"{1e3 * p.sequence_length / p.prefill.bound_ms:,.0f}",
    )
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(f"{p.model} {p.precision} on {limits.title}, {limits.power_mode}")
    console.print("Predicted from data sheets, not measured.", table, _memory_line(p))
    console.print(
        f"Floors from {limits.memory_gb_per_s:.1f} GB/s, {limits.tensor_tflops:.1f} TFLOPS fp16 "
        f"(tensor cores), {limits.float_tflops:.2f} TFLOPS fp32 (CUDA cores) and "
        f"{limits.exponentials_g_per_s:.0f} G exponentials/s. Source: {limits.source}."
    )
    lines = (line.rstrip() for line in console.export_text().splitlines())
    return "\n".join(lines) + "\n"


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms" if value < 1 else f"{value:,.2f} ms"


def _count(value: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    return f"{value:.3g} T"


def _memory_line(p: Prediction) -> str:
    needed = f"Weights {p.weight_bytes / 1e9:.2f} GB, state {p.state_bytes / 1e6:.1f} MB"
    room = f"the {p.limits.available_bytes / 1e9:.2f} GB that a boot without desktop leaves"
    if p.fits_in_memory:
        return f"{needed}: fit in {room}."
    return f"{needed}: do NOT fit in {room}; the floors are hypothetical."


def _other_boot_chain(board_name: str, wanted: str) -> str:
    base = board_name.removesuffix("-original")
    other = base if board_name != base else f"{base}-original"
    if any(mode.name == wanted for mode in BOARDS[other].modes):
        return f"; {wanted} is a mode of {other}"
    return ""


def _stored_bytes(a: MambaArchitecture, precision: str) -> dict[str, int]:
    """Bytes of each weight as `convert` stores it by default, scales included."""
    if precision not in _BITS:
        raise UsageError(
            f"unknown precision {precision!r}", fix=f"choose one of: {', '.join(_BITS)}"
        )
    packed = choose_packings(a, precision, QuantisationChoice())
    # A matrix that cannot be packed stays in float16.
    matrix_bytes = _BITS["fp32" if precision == "fp32" else "fp16"] // 8
    stored = {}
    for name, weight in a.weights().items():
        if name in packed:
            words, scales = packed[name].shapes(*weight.shape)
            stored[name] = math.prod(words) * WORD_BITS // 8 + math.prod(scales) * _SCALE_BYTES
        else:
            each = matrix_bytes if weight.kind == "matrix" else _FLOAT32_BYTES
            stored[name] = weight.elements * each
    return stored
