"""Workers of an agent on its own machine, as one block of a provider."""

from __future__ import annotations

import logging
import os
from typing import Any

from oncue.endpoint.agent.node_shares import NodeShares
from oncue.endpoint.loop import AgentLoop
from oncue.endpoint.pool.capacity import capacity_here
from oncue.endpoint.providers.base import BlockRequest, Provider

log = logging.getLogger("oncue.agent")
NEVER_US = (1 << 63) - 1


class LocalWorkers:
    """One block, which ends with the agent. Raises OSError if it cannot be started."""

    journalled = staticmethod(lambda: None)

    def __init__(self, provider: Provider, request: BlockRequest, shares: NodeShares) -> None:
        """`shares`: it is told what part of this machine a task takes."""
        shares.share_of = capacity_here(request.workers, os.environ).share
        self._provider = provider
        self._block = provider.submit(request)
        self.pool = self._block.pool
        self.trouble = ""

    def check(self, at: int) -> None: ...

    def due_us(self) -> int:
        return NEVER_US

    def report(self) -> None:
        """Log a change of the block's trouble."""
        block = self._provider.status([self._block.id]).get(self._block.id)
        if block is not None and block.reason != self.trouble:
            self.trouble = block.reason
            log.log(logging.ERROR if self.trouble else logging.INFO, "%s", self.trouble or "workers start again")

    def usage(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}

    def finish(self, loop: AgentLoop, grace_s: float) -> None:
        """End the workers, after `grace_s` for running tasks."""
        self._provider.cancel([self._block.id], grace_s)

    def close(self) -> None: ...
