# SPDX-License-Identifier: MIT
"""What the environment says, and that the command line wins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.command_line import command_line


def test_every_argument_of_serve_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "ENGINE": "/models/engine",
        "MAX_QUEUE": "7",
        "MAX_QUEUE_SECONDS": "1.5",
        "API_KEY_FILE": "/run/secrets/key",
        "HOST": "0.0.0.0",
        "LOG_PROMPTS": "1",
    }.items():
        monkeypatch.setenv(f"MAMBA_ORIN_SERVE_{name}", value)
    args = command_line().parse_args(["serve", "--host", "127.0.0.1"])
    assert args.engine == Path("/models/engine")
    assert (args.max_queue, args.max_queue_seconds) == (7, 1.5)
    assert args.api_key_file == Path("/run/secrets/key")
    assert args.host == "127.0.0.1"
    assert args.log_prompts is True
    assert command_line().parse_args(["serve", "other"]).engine == Path("other")


def test_without_the_variable_an_engine_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line().parse_args(["serve"])
    assert "ENGINE" in capsys.readouterr().err


def test_a_value_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAMBA_ORIN_SERVE_LOG_PROMPTS", "false")
    assert main(["serve", "engine"]) == 2
    assert "MAMBA_ORIN_SERVE_LOG_PROMPTS is 'false'" in capsys.readouterr().err
    monkeypatch.setenv("MAMBA_ORIN_SERVE_LOG_PROMPTS", "0")
    monkeypatch.setenv("MAMBA_ORIN_SERVE_MAX_QUEUE", "many")
    with pytest.raises(SystemExit):
        main(["serve", "engine"])
    assert "--max-queue: invalid int value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_nobody_is_told_what_this_machine_runs_unless_its_owner_wants_it(
    given: str | None, expected: str
) -> None:
    environment = {"PATH": "/usr/bin", "HOME": "/nonexistent"}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, pipeline.onnxruntime_session; print(os.environ['ORT_DISABLE_TELEMETRY'])",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    assert told.stdout.strip() == expected
    if expected == "1":
        assert "telemetry" not in told.stderr
