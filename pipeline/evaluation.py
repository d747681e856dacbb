# SPDX-License-Identifier: MIT
"""What quantisation costs: several versions of one model on one text, token by token.

A bundle is run by ONNX Runtime with its weights as they are stored and float32 activations, so
that the numbers speak of the weights alone; an engine is run as it was built. One model is in
memory at a time: what the reference expects of each token waits in a temporary file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pipeline import __version__
from pipeline.board import read_board
from pipeline.engine import find_bundle, load_engine
from pipeline.errors import ArtifactNotFoundError, UsageError
from pipeline.generation import check_token_ids
from pipeline.manifest import (
    MANIFEST_FILE,
    BundleManifest,
    Calibration,
    Precision,
    now,
    read_bundle,
    read_engine,
)
from pipeline.onnx_export import export_graphs
from pipeline.onnxruntime_session import VERSION as ONNXRUNTIME_VERSION
from pipeline.onnxruntime_session import OnnxRuntimeSession
from pipeline.resampling import BLOCK_TOKENS, LEVEL_PERCENT, REPLICATES, Draws, Interval, interval
from pipeline.session import Session, State, TokenIds
from pipeline.settings import Progress, default_threads, no_progress
from pipeline.storage import require_room, storage_errors, write_atomically
from pipeline.tokenizer import Tokenizer
from pipeline.weights import WEIGHT_FILE, read_places

Series = npt.NDArray[np.float64]

# Tokens of one prefill call.
_PIECE_TOKENS = 128
# ONNX Runtime's MatMulNBits at this level multiplies float32 activations.
_EXACT_ACTIVATIONS = 0


class Measured(BaseModel):
    """A value and the interval around it; None when the text is too short for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None
    high: float | None


class Row(BaseModel):
    """One version of the model.

    Attributes:
        name: Name of its folder.
        kind: "bundle" is run with float32 activations, "engine" as it was built.
        precision: Of its matrices.
        method: How they were packed; None when they are not.
        embedding_precision: Of the embedding, None as above.
        head_precision: Of the head, likewise.
        group_sizes: Inputs that share a scale, by matrix, likewise.
        calibration: The text they were chosen by.
        weight_bytes: Size of the weight file.
        perplexity: exp(mean negative log-likelihood of a token).
        bits_per_byte: The same for a byte of the text, as binary logarithm.
        perplexity_change_percent: Against the reference; None for itself or without one.
        kl_nats: Mean divergence from the reference's expectations, likewise.
        top1_percent: How often both expect the same token most, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    precision: Precision
    method: str | None
    embedding_precision: str | None
    head_precision: str | None
    group_sizes: dict[str, int] | None
    calibration: Calibration | None
    weight_bytes: int
    perplexity: Measured
    bits_per_byte: Measured
    perplexity_change_percent: Measured | None
    kl_nats: Measured | None
    top1_percent: Measured | None


class Text(BaseModel):
    """The text that was read.

    Attributes:
        name: Of the file.
        sha256: Of its content.
        bytes: That were read, encoded as UTF-8.
        tokens: That were read; the first has no likelihood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    bytes: int
    tokens: int


class Evaluation(BaseModel):
    """Several versions of one model on one text.

    Attributes:
        subject: Always "quality".
        date: Of the measurement.
        machine: For people.
        gpu: None: this runs on the CPU.
        versions: Of what computed it.
        command: What was typed.
        model: Name of the checkpoint.
        parameters: Of the model.
        text: What was read.
        interval: What the intervals are.
        reference: Name of the row that the others are compared with.
        rows: The versions, in the order given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str = "quality"
    date: str
    machine: str
    gpu: None = None
    versions: dict[str, str]
    command: str
    model: str
    parameters: int
    text: Text
    interval: str
    reference: str | None
    rows: list[Row]

    def to_json(self) -> str:
        """The file that `evaluate --output` writes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class _Subject:
    folder: Path
    kind: str
    bundle: Path
    manifest: BundleManifest


@dataclass(frozen=True)
class Tokenwise:
    """Values of each token but the first, (l-1,).

    Attributes:
        losses: Negative natural logarithms of the probabilities of what came.
        divergences: KL from the reference, nats; None where nothing was compared.
        agreements: 1 where the reference's most likely token is the same, else 0; None likewise.
    """

    losses: Series
    divergences: Series | None
    agreements: Series | None


def evaluate(
    folders: Sequence[Path],
    text_file: Path,
    reference: Path | None = None,
    max_tokens: int | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    command: str = "",
) -> Evaluation:
    """Reads a text with each version of a model.

    Args:
        folders: Bundles or engines of one model.
        text_file: UTF-8 text that neither training nor calibration has seen.
        reference: The one to compare with; None takes the first that is in fp16, else fp32.
        max_tokens: Tokens of the text to read at most; None reads all.
        threads: CPU threads.
        progress: Called with tokens read and tokens to read, over all versions.
        command: What was typed, for the record.

    Raises:
        UsageError: The text cannot be read, or the folders hold different models.
        ArtifactError: A folder cannot be used.
        StorageError: There is no room for the expectations of the reference.
    """
    subjects = [_subject(folder) for folder in folders]
    compared_with = _reference(subjects, reference)
    text, ids = _read(text_file, subjects, max_tokens)
    architecture = subjects[0].manifest.architecture
    draws = Draws(text.tokens - 1)
    first = [compared_with] if compared_with else []
    order = first + [subject for subject in subjects if subject is not compared_with]
    found: dict[Path, Tokenwise] = {}
    with _expectations(text.tokens - 1, architecture.vocab_size) as expected:
        for number, subject in enumerate(order):

            def show(done: int, number: int = number) -> None:
                progress(number * text.tokens + done, len(order) * text.tokens)

            found[subject.folder] = _read_with(subject, ids, expected, threads, show, compared_with)
    baseline = found[compared_with.folder] if compared_with else None
    return Evaluation(
        date=now()[:10],
        machine=_machine(threads),
        versions={"mamba-orin": __version__, "onnxruntime": ONNXRUNTIME_VERSION},
        command=command,
        model=subjects[0].manifest.source["name"],
        parameters=architecture.parameters,
        text=text,
        interval=f"{LEVEL_PERCENT} %, circular block bootstrap, {REPLICATES} draws of stretches of "
        f"{BLOCK_TOKENS} tokens, the same for all versions",
        reference=compared_with.folder.name if compared_with else None,
        rows=[_row(subject, found[subject.folder], baseline, text, draws) for subject in subjects],
    )


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Writes the record.

    Raises:
        StorageError: The file cannot be written.
    """
    write_atomically(path, evaluation.to_json().encode())


# --- what is compared ------------------------------------------------------------------------


def _subject(folder: Path) -> _Subject:
    try:
        kind = json.loads((folder / MANIFEST_FILE).read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind == "engine":
        bundle = find_bundle(folder, read_engine(folder))
        return _Subject(folder, "engine", bundle, read_bundle(bundle))
    try:
        return _Subject(folder, "bundle", folder, read_bundle(folder))
    except ArtifactNotFoundError as error:
        raise ArtifactNotFoundError(
            f"neither a bundle nor an engine: {error}", fix=error.fix
        ) from error


def _reference(subjects: Sequence[_Subject], wanted: Path | None) -> _Subject | None:
    if wanted is not None:
        for subject in subjects:
            if subject.folder.resolve() == wanted.resolve():
                return subject
        raise UsageError(
            f"--reference {wanted} is none of the folders to evaluate",
            fix="name it among them as well",
        )
    for precision in ("fp16", "fp32"):
        for subject in subjects:
            if subject.manifest.precision == precision:
                return subject
    return None


def _read(
    path: Path, subjects: Sequence[_Subject], max_tokens: int | None
) -> tuple[Text, TokenIds]:
    try:
        content = path.read_bytes()
        words = content.decode()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", fix="give a text file that exists"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}",
            fix="convert the file to UTF-8 first",
        ) from error
    first, *others = subjects
    tokenizer = _tokenizer(first)
    token_ids = tokenizer.encode(words)
    for other in others:
        same_size = other.manifest.architecture.vocab_size == first.manifest.architecture.vocab_size
        if not same_size or _tokenizer(other).encode(words) != token_ids:
            raise UsageError(
                f"{first.folder} and {other.folder} cut the text into different tokens",
                fix="evaluate versions of one model; score compares different ones by their "
                "perplexity",
            )
    used = token_ids[:max_tokens]
    if len(used) < 2:
        raise UsageError(
            f"{path} has {len(token_ids)} tokens; nothing can be expected of fewer than 2",
            fix="give a longer text, some thousand words or more",
        )
    is_whole = len(used) == len(token_ids)
    text = Text(
        name=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content) if is_whole else len(tokenizer.decode(used).encode()),
        tokens=len(used),
    )
    return text, check_token_ids(used, first.manifest.architecture.vocab_size)


def _tokenizer(subject: _Subject) -> Tokenizer:
    if not (subject.bundle / "tokenizer.json").is_file():
        raise UsageError(
            f"{subject.bundle} has no tokenizer, so the text cannot be read",
            fix="convert again with --tokenizer FOLDER",
        )
    return Tokenizer(subject.bundle)


# --- reading ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _expectations(rows: int, columns: int) -> Iterator[npt.NDArray[np.float32]]:
    """A table in a temporary file for the reference's log-probabilities of every next token."""
    with tempfile.TemporaryDirectory(prefix="mamba-orin-") as folder:
        path = Path(folder) / "expectations"
        require_room(path, rows * columns * 4)
        with storage_errors(path):
            yield np.memmap(path, dtype=np.float32, mode="w+", shape=(rows, columns))


@contextlib.contextmanager
def _session(subject: _Subject, threads: int | None) -> Iterator[Session]:
    if subject.kind == "engine":
        yield load_engine(subject.folder, threads).session
        return
    architecture = subject.manifest.architecture
    with tempfile.TemporaryDirectory(prefix="mamba-orin-") as folder:
        graphs = Path(folder)
        with storage_errors(graphs):
            export_graphs(
                graphs,
                architecture,
                read_places(subject.bundle / WEIGHT_FILE),
                activation="float32",
                accuracy_level=_EXACT_ACTIVATIONS,
            )
        yield OnnxRuntimeSession(
            graphs,
            subject.bundle,
            architecture,
            1,
            _PIECE_TOKENS,
            threads or default_threads(),
            pack_for_prefill=subject.manifest.quantisation is not None,
        )


def _read_with(
    subject: _Subject,
    ids: TokenIds,
    expected: npt.NDArray[np.float32],
    threads: int | None,
    show: Callable[[int], None],
    reference: _Subject | None,
) -> Tokenwise:
    with _session(subject, threads) as session:
        return read_tokenwise(
            session,
            ids,
            None if reference is None else expected,
            is_reference=subject is reference,
            show=show,
        )


def read_tokenwise(
    session: Session,
    ids: TokenIds,
    expected: npt.NDArray[np.float32] | None,
    *,
    is_reference: bool,
    show: Callable[[int], None] = lambda _: None,
) -> Tokenwise:
    """Reads a text; the reference fills `expected`, the others are compared with it.

    Args:
        session: What reads.
        ids: (1, l) token ids.
        expected: (l-1, vocab) log-probabilities of every next token; None compares nothing.
        is_reference: Whether to fill it.
        show: Told how many tokens were read.
    """
    count = ids.shape[1] - 1
    losses, divergences, agreements = (np.empty(count) for _ in range(3))
    state: State | None = None
    show(0)
    for start in range(0, count, _PIECE_TOKENS):
        end = min(start + _PIECE_TOKENS, count)
        logits, state = session.prefill(ids[:, start:end], state, all_logits=True)
        logprobs = _log_softmax(logits[0])
        losses[start:end] = -logprobs[np.arange(end - start), ids[0, start + 1 : end + 1]]
        if is_reference and expected is not None:
            expected[start:end] = logprobs
        elif expected is not None:
            wanted = expected[start:end].astype(np.float64)
            divergences[start:end] = (np.exp(wanted) * (wanted - logprobs)).sum(axis=1)
            agreements[start:end] = wanted.argmax(axis=1) == logprobs.argmax(axis=1)
        show(end + 1)
    if expected is None or is_reference:
        return Tokenwise(losses, None, None)
    return Tokenwise(losses, divergences, agreements)


def _log_softmax(logits: npt.NDArray[np.float32]) -> Series:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logprobs: Series = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logprobs


# --- what comes of it ------------------------------------------------------------------------


def _row(
    subject: _Subject, values: Tokenwise, baseline: Tokenwise | None, text: Text, draws: Draws
) -> Row:
    quantisation = subject.manifest.quantisation
    bits_per_byte = len(values.losses) / text.bytes / math.log(2)
    is_compared = baseline is not None and values is not baseline
    change = values.losses - baseline.losses if baseline is not None and is_compared else None
    return Row(
        name=subject.folder.name,
        kind=subject.kind,
        precision=subject.manifest.precision,
        method=quantisation.method if quantisation else None,
        embedding_precision=quantisation.embedding_precision if quantisation else None,
        head_precision=quantisation.head_precision if quantisation else None,
        group_sizes=quantisation.group_sizes if quantisation else None,
        calibration=quantisation.calibration if quantisation else None,
        weight_bytes=subject.manifest.files[WEIGHT_FILE].bytes,
        perplexity=measured(values.losses, draws, np.exp),
        bits_per_byte=measured(values.losses, draws, lambda mean: mean * bits_per_byte),
        perplexity_change_percent=(
            None if change is None else measured(change, draws, lambda mean: 100 * np.expm1(mean))
        ),
        kl_nats=_optional(values.divergences, draws, lambda mean: mean),
        top1_percent=_optional(values.agreements, draws, lambda mean: 100 * mean),
    )


def _optional(series: Series | None, draws: Draws, scale: Any) -> Measured | None:
    return None if series is None else measured(series, draws, scale)


def measured(series: Series, draws: Draws, scale: Any) -> Measured:
    """The mean of a series and its interval, brought to another scale, which must keep the order.

    Args:
        series: A value of each token.
        draws: Resamplings of as many tokens.
        scale: Brings a mean, or an array of them, to the other scale.
    """
    around: Interval | tuple[None, None] = (None, None)
    if draws.are_enough:
        around = interval(scale(draws.means(series)))
    return Measured(value=float(scale(series.mean())), low=around[0], high=around[1])


def _machine(threads: int | None) -> str:
    board = read_board()
    return f"{threads or default_threads()} threads of an {board.cpu or board.name}"
