# SPDX-License-Identifier: MIT
"""One container engine, and each image built once, for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.boards.engine import Engine, NoEngineError, started_engine
from tests.containers.base_system import NATIVE
from tests.containers.images import NETWORK, build_image, work_directory
from tests.containers.served_fleet import NETWORK as BOARD_NETWORK


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A container engine of the tests' own; skips with the reason where there can be none."""
    context = started_engine(work_directory(), [NETWORK, BOARD_NETWORK])
    try:
        running = context.__enter__()
    except NoEngineError as error:
        pytest.skip(str(error))
    # What a run left that was killed.
    left = running.containers()
    if left:
        running.docker("rm", "--force", "--volumes", *left)
    yield running
    context.__exit__(None, None, None)


@pytest.fixture(scope="session", params=["amd64", "arm64"])
def architecture(request: pytest.FixtureRequest) -> str:
    """What the image is built for; the one that this machine is not is emulated."""
    return str(request.param)


@pytest.fixture(scope="session")
def image(engine: Engine, architecture: str) -> str:
    """The image mamba-orin:cpu of an architecture."""
    try:
        return build_image(engine, "cpu", architecture)
    except NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def native_image(engine: Engine) -> str:
    """The image mamba-orin:cpu of this machine's architecture."""
    try:
        return build_image(engine, "cpu", NATIVE)
    except NoEngineError as error:
        pytest.skip(str(error))
