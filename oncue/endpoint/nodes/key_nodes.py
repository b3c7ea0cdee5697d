"""Memory of the nodes that had an affinity key. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

KEYS = 100_000  # remembered
NODES = 4  # of one key, the last ones
NodeKey = tuple[str, bytes]  # (block, boot)


class KeyNodes:
    """Nodes by affinity key. The keys that were used least lately are forgotten first."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, list[NodeKey]] = OrderedDict()

    def add(self, key: str, node: NodeKey) -> None:
        """Note that a node gets tasks with this key."""
        nodes = self._nodes.setdefault(key, [])
        self._nodes.move_to_end(key)
        if node in nodes:
            nodes.remove(node)
        nodes.append(node)
        del nodes[:-NODES]
        if len(self._nodes) > KEYS:
            self._nodes.popitem(last=False)

    def of(self, key: str) -> Iterator[NodeKey]:
        """Return the nodes that had this key, the last one first. Some may have left."""
        return reversed(self._nodes.get(key, ()))
