"""Turns of requests: while many come, owners take turns.

The first AT_ONCE requests of some milliseconds begin at once. Further ones wait: in each round of
the event loop AT_ONCE of them begin, one of each owner in turn. So a caller waits for a round, not
for all requests of somebody who has many. Nothing is slower for an owner who is alone: rounds
follow each other at once.
"""

from __future__ import annotations

import asyncio
import time

from oncue.processes.round_robin import RoundRobin

AT_ONCE = 4
WINDOW_S = 0.002


class FairQueue:
    """Requests that wait for their turn, by owner."""

    def __init__(self) -> None:
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()
        self._since = 0.0
        self._begun = 0

    def is_free(self) -> bool:
        """Count a request that begins now. False: it has to wait for its `turn`."""
        if self._waiting:
            return False
        now = time.monotonic()
        if now - self._since > WINDOW_S:
            self._since, self._begun = now, 0
        self._begun += 1
        return self._begun <= AT_ONCE

    async def turn(self, owner: str) -> None:
        """Wait until a request of this owner may begin."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._round)
        future = loop.create_future()
        self._waiting.add(owner, future)
        await future

    def _round(self) -> None:
        begun = 0
        while self._waiting and begun < AT_ONCE:
            future = self._waiting.pop()
            if not future.done():  # its caller has gone
                future.set_result(None)
                begun += 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._round)
