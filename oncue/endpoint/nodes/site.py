"""Site: the agent of the nodes, as the pool of one node needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from oncue.endpoint.agent.known_nodes import NodeKey
from oncue.endpoint.agent.unclaimed_tasks import ClaimedTasks
from oncue.endpoint.nodes.content import NodeContent
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.protocol.run_options import RunOptions


class Site(Protocol):
    """Agent of the nodes, as a NodePool needs it."""

    content: NodeContent
    sizer: ChunkSizer
    size_of: Callable[[str, RunOptions | None], tuple[int, int]]  # (whole nodes, workers' room) of a task

    def claim(self, held: Iterable[tuple[bytes, int]]) -> list[ClaimedTasks]:
        """Return those (id, attempt) that the agent gave to a node before its restart."""
        ...

    def told(self, key: NodeKey) -> None:
        """Note that a node has named all that it holds."""
        ...
