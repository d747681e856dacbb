# SPDX-License-Identifier: MIT
"""Work that comes again: the second time it is also recorded, from the third on it is one call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from pipeline.cuda_driver import Graph, Stream

# Kinds of work that came last; the graph of one holds some kilobytes a kernel.
_KEPT_GRAPHS = 8


class Repeats:
    """Runs work on one stream, by a graph where it has come before.

    What comes once is not worth a graph. Recording follows a run instead of preceding it, because
    some libraries decide at the first run of a shape what they will do.

    Args:
        stream: Where the work is enqueued.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()

    def run(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Enqueues work.

        Args:
            key: What makes it the same work, addresses included.
            enqueue: Enqueues it, kernel by kernel.
        """
        is_known = key in self._graphs
        graph = self._graphs.pop(key, None)
        if graph is None:
            enqueue()
            if is_known:
                graph = self._stream.capture(enqueue)
        else:
            self._stream.launch(graph)
        self._graphs[key] = graph
        while len(self._graphs) > _KEPT_GRAPHS:
            self._graphs.popitem(last=False)

    def forget(self) -> None:
        """Drops all graphs: addresses they know have changed."""
        self._graphs.clear()
