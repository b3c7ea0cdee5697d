"""Room of all nodes, the roomiest first. Pure.

A change of one node's room, and the choice of a node, cost the logarithm of the number of nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

MOST_NEEDS = 16  # of tasks that need a node for long: each has a heap of its own
SPARE = 64  # outdated entries that a heap may have


class _Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_Named)
_Heap = list[tuple[int, int, N]]  # (-room, tie-breaker, node)


class NodeRooms(Generic[N]):
    """Rooms by node. Heaps also have outdated entries, a bounded number of them."""

    def __init__(self) -> None:
        self.total = 0
        self._rooms: dict[str, int] = {}  # of nodes that have room
        self._nodes: dict[str, N] = {}
        self._heaps: dict[int, _Heap[N]] = {0: []}  # by need
        self._count = 0

    def set_room(self, node: N, room: int) -> None:
        """Note how many chunks a node accepts now."""
        name = node.name
        before = self._rooms.get(name, 0)
        if room == before:
            return
        self.total += room - before
        if not room:
            del self._rooms[name], self._nodes[name]
            return
        self._rooms[name], self._nodes[name] = room, node
        self._count += 1
        most = SPARE + 2 * len(self._rooms)
        for need, heap in self._heaps.items():
            if len(heap) < most:
                heapq.heappush(heap, (-room, self._count, node))
            else:
                self._heaps[need] = self._fresh()

    def of(self, node: N) -> int:
        """Return how many chunks a node accepts now."""
        return self._rooms.get(node.name, 0)

    def _fresh(self) -> _Heap[N]:
        heap = [(-room, at, self._nodes[name]) for at, (name, room) in enumerate(self._rooms.items())]
        heapq.heapify(heap)
        self._count = max(self._count, len(heap))
        return heap

    def roomiest(self, need: int = 0, fits: Callable[[N], bool] | None = None) -> N | None:
        """Return the node with most room that fits, if any.

        A node that does not fit a `need` is not asked again until `forget_needs`.
        """
        heap = self._heaps.get(need)
        if heap is None:
            if len(self._heaps) > MOST_NEEDS:
                self.forget_needs()
            heap = self._heaps[need] = self._fresh()
        rooms = self._rooms
        while heap:
            room, _, node = heap[0]
            if rooms.get(node.name) == -room and (fits is None or fits(node)):
                return node
            heapq.heappop(heap)
        return None

    @property
    def entries(self) -> int:
        """Number of entries of all heaps."""
        return sum(map(len, self._heaps.values()))

    def forget_needs(self) -> None:
        """Ask all nodes again whether they fit."""
        if len(self._heaps) > 1:
            self._heaps = {0: self._heaps[0]}
