# SPDX-License-Identifier: MIT
"""A long conversion that is killed goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipeline import stored_tensors
from pipeline.bundle import convert
from pipeline.errors import CheckpointCorruptError, StorageError
from pipeline.manifest import Precision, read_bundle
from pipeline.quantize import QuantisationChoice
from pipeline.resumption import KeptParts
from pipeline.weights import WEIGHT_FILE
from tests.checkpoints import RandomCheckpoint
from tests.pipeline.conftest import DEMO

# Ends itself as the OOM killer would: before part number N is written, while it is (its file is
# there under its temporary name), or after it.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    import pipeline.resumption as resumption
    from pipeline.bundle import convert
    from pipeline.quantize import QuantisationChoice
    source, output, number, moment, text = sys.argv[1:]
    calls = 0
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    keep = resumption.KeptParts.keep
    def counted(self, part, tensors):
        global calls
        calls += 1
        if calls == int(number):
            if moment == "before":
                die()
            if moment == "while":
                resumption.sync = lambda path: die()
        keep(self, part, tensors)
        if calls == int(number):
            die()
    resumption.KeptParts.keep = counted
    choice = QuantisationChoice(
        calibration_text=Path(text) if text else None, calibration_tokens=1024
    )
    convert(source, Path(output), "int4", choice=choice)
"""


def killed(source: Path, output: Path, number: int, moment: str, text: Path | None = None) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(KILLED)),
            *map(str, (source, output, number, moment, text or "")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def packed_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that are packed from now on, as they are packed."""
    parts: list[str] = []
    pack = stored_tensors._packed_part

    def noted(part: str, *rest: Any) -> Any:
        parts.append(part)
        return pack(part, *rest)

    monkeypatch.setattr(stored_tensors, "_packed_part", noted)
    return parts


PARTS = ["embedding", "layers.0", "layers.1", "layers.2", "norm"]


def weights_of(bundle: Path) -> str:
    return read_bundle(bundle).files[WEIGHT_FILE].sha256


@pytest.mark.parametrize(
    ("number", "moment", "finished"),
    [(1, "before", 0), (1, "after", 1), (3, "while", 2), (4, "after", 4), (5, "after", 5)],
)
def test_a_killed_conversion_goes_on_after_its_last_finished_part(
    checkpoint: RandomCheckpoint,
    tmp_path: Path,
    packed_parts: list[str],
    number: int,
    moment: str,
    finished: int,
) -> None:
    convert(checkpoint.path, tmp_path / "whole", "int4")
    assert packed_parts == PARTS
    packed_parts.clear()

    killed(checkpoint.path, tmp_path / "bundle", number, moment)
    assert not (tmp_path / "bundle").exists()
    convert(checkpoint.path, tmp_path / "bundle", "int4")
    assert packed_parts == PARTS[finished:]
    assert weights_of(tmp_path / "bundle") == weights_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "whole"}


def test_a_killed_calibration_ends_in_the_same_weights(
    tmp_path: Path, packed_parts: list[str]
) -> None:
    """The blocks that are there must lead the text to the next one as they did before."""
    text = DEMO / "calibration.txt"
    choice = QuantisationChoice(calibration_text=text, calibration_tokens=1024)
    convert(DEMO, tmp_path / "whole", "int4", choice=choice)
    packed_parts.clear()
    killed(DEMO, tmp_path / "bundle", 5, "while", text)
    convert(DEMO, tmp_path / "bundle", "int4", choice=choice)
    assert packed_parts == ["layers.3", "layers.4", "layers.5", "layers.6", "layers.7", "norm"]
    assert weights_of(tmp_path / "bundle") == weights_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("precision", "choice"),
    [
        ("int8", QuantisationChoice()),
        ("int4", QuantisationChoice(embedding_precision="fp16")),
    ],
)
def test_another_command_begins_anew(
    checkpoint: RandomCheckpoint,
    tmp_path: Path,
    packed_parts: list[str],
    precision: Precision,
    choice: QuantisationChoice,
) -> None:
    killed(checkpoint.path, tmp_path / "bundle", 3, "after")
    convert(checkpoint.path, tmp_path / "bundle", precision, choice=choice)
    assert packed_parts == PARTS
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_changed_checkpoint_begins_anew(
    checkpoint: RandomCheckpoint, tmp_path: Path, packed_parts: list[str]
) -> None:
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for path in checkpoint.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    killed(copy, tmp_path / "bundle", 3, "after")
    (copy / "model.safetensors").write_bytes((checkpoint.path / "model.safetensors").read_bytes())
    convert(copy, tmp_path / "bundle", "int4")
    assert packed_parts == PARTS


def test_parts_of_a_checkpoint_that_is_refused_are_not_kept(
    checkpoint: RandomCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = stored_tensors._packed_part

    def refuse(part: str, *rest: Any) -> Any:
        if part == "layers.1":
            raise CheckpointCorruptError("tensor x holds infinity")
        return pack(part, *rest)

    monkeypatch.setattr(stored_tensors, "_packed_part", refuse)
    with pytest.raises(CheckpointCorruptError):
        convert(checkpoint.path, tmp_path / "bundle", "int4")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "bundle.unfinished" / "letter.txt"
    theirs.parent.mkdir()
    theirs.write_text("dear")
    with pytest.raises(StorageError, match="not written by mamba-orin"):
        KeptParts(tmp_path / "bundle", {})
    assert theirs.read_text() == "dear"


def test_a_kill_at_the_very_first_file_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "bundle.unfinished"
    folder.mkdir()
    (folder / ".conversion.json.partial").write_bytes(b'{"gen')
    assert KeptParts(tmp_path / "bundle", {}).load("embedding") is None
