# SPDX-License-Identifier: MIT
"""The engine is started once for all tests that need boards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.boards.engine import Engine, NoEngineError, started_engine
from tests.boards.fleet import NETWORK
from tests.boards.image import work_directory


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A container engine of the tests' own; skips with the reason where there can be none."""
    context = started_engine(work_directory(), [NETWORK])
    try:
        running = context.__enter__()
    except NoEngineError as error:
        pytest.skip(str(error))
    yield running
    context.__exit__(None, None, None)
