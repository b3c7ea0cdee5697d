"""Provider of workers on the agent's own machine, as child processes."""

from __future__ import annotations

from collections.abc import Sequence

from oncue.endpoint.pool.pool import Pool
from oncue.endpoint.providers.base import Block, BlockRequest, BlockState, BlockStatus, ProviderContext


class LocalProvider:
    """Starts the workers at once.

    They end with the agent, so no block outlives it.
    """

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        self._pools: dict[str, Pool] = {}
        self._ended: set[str] = set()

    def submit(self, request: BlockRequest) -> Block:
        """Start the workers. Raises OSError if their working directory cannot be made."""
        at = self._context
        pool = Pool(
            request.workers,
            at.folder,
            blobs=at.blobs,
            server_blobs=at.server_blobs,
            container=at.container,
            pass_env=at.pass_env,
            environment=at.environment,
            limits=at.limits,
            orphans=at.orphans,
            pinning=at.pinning,
        )
        self._pools[request.id] = pool
        return Block(request.id, pool)

    def status(self, ids: Sequence[str]) -> dict[str, BlockStatus]:
        return {i: self._status(i) for i in ids if i in self._pools or i in self._ended}

    def _status(self, block_id: str) -> BlockStatus:
        if block_id in self._ended:
            return BlockStatus(BlockState.ENDED)
        pool = self._pools[block_id]
        return BlockStatus(BlockState.RUNNING if pool.ready else BlockState.PENDING, pool.trouble)

    def cancel(self, ids: Sequence[str], grace_s: float) -> None:
        for block_id in ids:
            pool = self._pools.pop(block_id, None)
            if pool is not None:
                self._ended.add(block_id)
                pool.close(grace_s)
