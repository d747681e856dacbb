# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.checkpoints import FORMATS, RandomCheckpoint

# No test may reach for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples on every run, and no failure because a machine is busy.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", params=FORMATS)
def any_checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RandomCheckpoint:
    """A random checkpoint of each format in turn."""
    return FORMATS[str(request.param)](tmp_path_factory.mktemp("checkpoint") / request.param)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> RandomCheckpoint:
    """A random `-hf` checkpoint."""
    return FORMATS["hf"](tmp_path_factory.mktemp("checkpoint") / "hf")


@pytest.fixture(scope="session")
def bundle(checkpoint: RandomCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 bundle of `checkpoint`; read it, never write into it."""
    from pipeline.bundle import convert

    output = tmp_path_factory.mktemp("bundle") / "model"
    convert(checkpoint.path, output)
    return output


@pytest.fixture(scope="session")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of `bundle`; read it, never write into it."""
    from pipeline.engine import build

    output = tmp_path_factory.mktemp("engine") / "model"
    build(bundle, output)
    return output
