"""Nodes that may run the agent's tasks, as its journal knows them. Pure.

    join ──► journal ──► known ──leave: the journal has the ends of its tasks──► forgotten
                          └── after a restart of the agent: awaited ──► told, or missed

A node is in the journal before it gets a task. After a restart of the agent each known node tells
what it holds. When all have, a started task that none has named did not reach its node.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Protocol

NodeKey = tuple[str, bytes]  # block, boot


class NodeStore(Protocol):
    """Store of the records: the agent's journal."""

    def node(self, key: NodeKey, *, known: bool) -> None: ...

    def nodes_complete(self, complete: bool) -> None: ...


class KnownNodes:
    """Known nodes; those of them that an earlier process knew are awaited.

    `complete`: each node that may have a task of the earlier process is among `before`.
    """

    def __init__(self, store: NodeStore, before: Iterable[NodeKey], *, complete: bool, adopts: bool) -> None:
        self._store = store
        self._known = set(before) if adopts else set[NodeKey]()
        self.complete = complete and adopts
        self.awaited = set(self._known)
        self._here: set[NodeKey] = set()  # joined since the start
        self._missed: list[NodeKey] = []  # left, and did not tell what they held
        self._left: list[NodeKey] = []  # since the start, before all was settled
        self._settled = not adopts
        if complete and not adopts:  # tasks go to workers that no node tells of
            store.nodes_complete(False)

    @property
    def missed(self) -> bool:
        """True if a node has left without having told what it held."""
        return bool(self._missed)

    def known(self) -> Set[NodeKey]:
        return self._known

    def join(self, key: NodeKey) -> None:
        """Note a node that may get tasks from now on."""
        self._here.add(key)
        if key not in self._known:
            self._known.add(key)
            self._store.node(key, known=True)

    def told(self, key: NodeKey) -> None:
        """Note that a node has told all that it holds."""
        self.awaited.discard(key)

    def leave(self, key: NodeKey) -> None:
        """Forget a node. The ends of its tasks are in the journal."""
        self._here.discard(key)
        if key not in self._known:
            return
        if not self._settled:  # a restart now must find it among those that may have had tasks
            if key in self.awaited:
                self._missed.append(key)
                self.awaited.discard(key)
            self._left.append(key)
            return
        self._known.discard(key)
        self._store.node(key, known=False)

    def end_block(self, block: str) -> None:
        """Expect no more of a block's nodes that have not come back."""
        for key in [k for k in self.awaited if k[0] == block]:
            self.leave(key)

    def keep_only(self, blocks: Set[str]) -> None:
        """Expect only nodes of these blocks."""
        for block in {block for block, _ in self.awaited} - blocks:
            self.end_block(block)

    def settle(self) -> None:
        """Note that no task is left of which it is unclear where it is.

        Nodes that have not come back by now are forgotten: a later start does not wait for them.
        """
        if self._settled:
            return
        self._settled = True
        gone, self._left = {*self._left, *self.awaited} - self._here, []
        self.awaited.clear()
        for key in gone:
            self.leave(key)
        self._missed = []
        if not self.complete:
            self.complete = True
            self._store.nodes_complete(True)
