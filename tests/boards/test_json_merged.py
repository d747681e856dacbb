# SPDX-License-Identifier: MIT
"""How keys are merged into daemon.json, which others write as well."""

from __future__ import annotations

import pytest

pytest.importorskip("ansible", reason="the extra 'provision' is not installed")

from tests.boards.modules import load

OTHERS = {"runtimes": {"crun": {"path": "crun"}}, "features": {"cdi": True}, "data-root": "/old"}


def test_keys_of_others_stay() -> None:
    new = load("json_merged").merge(
        OTHERS, {"data-root": "/mnt/nvme/docker", "runtimes": {"nvidia": {"path": "n"}}}
    )
    assert new == {
        "runtimes": {"crun": {"path": "crun"}, "nvidia": {"path": "n"}},
        "features": {"cdi": True},
        "data-root": "/mnt/nvme/docker",
    }


def test_merging_twice_changes_nothing() -> None:
    merge = load("json_merged").merge
    values = {"runtimes": {"nvidia": {"path": "n", "runtimeArgs": []}}}
    once = merge(OTHERS, values)
    assert merge(once, values) == once


@pytest.mark.parametrize(
    ("route", "left"),
    [
        ("data-root", {"runtimes", "features"}),
        ("runtimes/crun", {"features", "data-root"}),
        ("not-there", {"runtimes", "features", "data-root"}),
    ],
)
def test_a_key_goes_and_takes_an_empty_dictionary_along(route: str, left: set[str]) -> None:
    assert set(load("json_merged").without(OTHERS, route)) == left
