# SPDX-License-Identifier: MIT
"""States after the beginnings of prompts, so that a beginning seen before is not read again.

A prompt is read in pieces of a fixed length. The state after each whole piece has a key: the
hash of all tokens up to there. Because pieces always begin at multiples of that length, a
prompt that continues from a kept state does the very arithmetic of one read from its start, and
its answer is the same to the bit.

A state costs as many bytes after ten tokens as after ten thousand, so not every boundary is
worth one. Kept are the last boundary of a prompt, where the next turn of a conversation goes on,
and the point where a prompt leaves a path that an earlier one took, the end of what they share
(admission as in Marconi, arXiv:2411.19379). The least recently used states make room.

Not thread-safe: it belongs to the scheduler's worker.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from pipeline.session import State

# Boundaries that are remembered without a state, to find branches; 32 bytes each.
_REMEMBERED_BOUNDARIES = 1 << 16


class PrefixCache:
    """Keeps states up to a number of bytes.

    Args:
        piece_tokens: Tokens between two boundaries.
        budget_bytes: The most bytes of states; 0 keeps none.
    """

    def __init__(self, piece_tokens: int, budget_bytes: int) -> None:
        self.piece_tokens = piece_tokens
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._states: OrderedDict[bytes, State] = OrderedDict()
        self._passed: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def keys(self, token_ids: Sequence[int], root: bytes) -> list[bytes]:
        """Keys of the boundaries inside a prompt, the first after `piece_tokens` tokens.

        The end of the prompt is none of them: a last piece must be read for its logits.

        Args:
            token_ids: The prompt.
            root: What was read before it; empty for nothing, else a hash of the named state.
        """
        ids = np.asarray(token_ids, dtype=np.int64)
        keys = []
        key = root
        for end in range(self.piece_tokens, len(ids), self.piece_tokens):
            key = hashlib.sha256(key + ids[end - self.piece_tokens : end].tobytes()).digest()
            keys.append(key)
        return keys

    def find(self, keys: Sequence[bytes]) -> tuple[int, State | None]:
        """The longest beginning whose state is kept.

        Returns:
            The number of boundaries it spans and the state; (0, None) when there is none. The
            state stays the cache's: read from it, never write into it.
        """
        for count in range(len(keys), 0, -1):
            state = self._states.get(keys[count - 1])
            if state is not None:
                self._states.move_to_end(keys[count - 1])
                return count, state
        return 0, None

    def choose(self, keys: Sequence[bytes]) -> frozenset[bytes]:
        """Decides which boundaries of a prompt deserve a state, and remembers its path."""
        branch = next((key for key in reversed(keys) if key in self._passed), None)
        for key in keys:
            self._passed[key] = None
            self._passed.move_to_end(key)
        while len(self._passed) > _REMEMBERED_BOUNDARIES:
            self._passed.popitem(last=False)
        return frozenset(key for key in (branch, *keys[-1:]) if key is not None)

    def put(self, key: bytes, state: State) -> None:
        """Keeps a state, which nobody may write into any more."""
        size = state.nbytes
        if key in self._states or size > self.budget_bytes:
            return
        self._states[key] = state
        self.used_bytes += size
        while self.used_bytes > self.budget_bytes:
            _, dropped = self._states.popitem(last=False)
            self.used_bytes -= dropped.nbytes
