# SPDX-License-Identifier: MIT
"""How a session on a GPU deals its texts; needs none."""

from __future__ import annotations

import pytest

from pipeline.gpu_session import like_parts


@pytest.mark.parametrize("most", [2, 3, 7, 8])
@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 12, 15, 16, 17])
def test_parts_hold_every_text_once_and_no_more_than_fit(batch: int, most: int) -> None:
    parts = like_parts(batch, most)
    assert [text for part in parts for text in range(part.start, part.stop)] == list(range(batch))
    assert max(part.stop - part.start for part in parts) <= most


@pytest.mark.parametrize("most", [3, 4, 5, 7, 8])
@pytest.mark.parametrize("batch", range(2, 25))
def test_no_text_is_left_alone(batch: int, most: int) -> None:
    assert min(part.stop - part.start for part in like_parts(batch, most)) > 1
