# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np

from pipeline.prefix_cache import PrefixCache
from pipeline.session import State

STATE_BYTES = 80


def state() -> State:
    return State(np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 1, 4, 4), np.float32))


def test_keys_stand_at_whole_pieces_and_never_at_the_end() -> None:
    cache = PrefixCache(4, 1000)
    assert [len(cache.keys(range(length), b"")) for length in (1, 4, 5, 8, 9, 13)] == [
        *(0, 0, 1, 1, 2, 3)
    ]


def test_equal_beginnings_have_equal_keys() -> None:
    cache = PrefixCache(2, 1000)
    one = cache.keys([1, 2, 3, 4, 5], b"")
    assert cache.keys([1, 2, 3, 9, 5], b"")[0] == one[0]
    assert cache.keys([1, 2, 3, 9, 5], b"")[1] != one[1]
    assert cache.keys([1, 9, 3, 4, 5], b"")[1] != one[1]
    assert cache.keys([1, 2, 3, 4, 5], b"named state")[0] != one[0]


def test_the_longest_kept_beginning_is_found() -> None:
    cache = PrefixCache(2, 1000)
    keys = cache.keys(range(9), b"")
    states = [state(), state()]
    cache.put(keys[0], states[0])
    cache.put(keys[2], states[1])
    assert cache.find(keys) == (3, states[1])
    assert cache.find(keys[:2]) == (1, states[0])
    assert cache.find(cache.keys([7, 7, 7], b"")) == (0, None)


def test_the_last_boundary_and_the_branch_deserve_a_state() -> None:
    cache = PrefixCache(2, 1000)
    first = cache.keys([1, 1, 2, 2, 3, 3, 4], b"")
    assert cache.choose(first) == {first[2]}
    second = cache.keys([1, 1, 2, 2, 8, 8, 9, 9, 5], b"")
    assert cache.choose(second) == {second[1], second[3]}
    assert second[1] == first[1]


def test_the_least_recently_used_states_make_room() -> None:
    cache = PrefixCache(1, 3 * STATE_BYTES)
    keys = cache.keys(range(6), b"")
    for key in keys[:3]:
        cache.put(key, state())
    assert cache.find(keys[:1])[0] == 1  # the first is the freshest now
    cache.put(keys[3], state())
    assert [cache.find([key])[0] for key in keys[:4]] == [1, 0, 1, 1]
    assert cache.used_bytes == 3 * STATE_BYTES == len(cache) * STATE_BYTES


def test_a_budget_below_one_state_keeps_none() -> None:
    for budget in (0, STATE_BYTES - 1):
        cache = PrefixCache(1, budget)
        keys = cache.keys([1, 2], b"")
        cache.put(keys[0], state())
        assert len(cache) == cache.used_bytes == 0
