"""Before a server refuses what it does not know: another may have written it a moment ago.

A token made on one server, or a webhook deployed through it, is good on all of them when the answer is out; the others read of
it some milliseconds later. So a request that names something unknown waits until the registry has been read to its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from oncue.errors import OncueError
from oncue.log import Log
from oncue.messages import REGISTRY
from oncue.view import View

PATIENCE_S = 5.0
REST_S = 0.1  # between two looks at the log's end, for whoever tries names or tokens at random


class CatchUp:
    """`take`: put what the view has of the registry in force."""

    def __init__(self, durable: Log, view: View, take: Callable[[], Awaitable[None]]) -> None:
        self._log, self._view, self._take = durable, view, take
        self._next: asyncio.Task[None] | None = None  # has not looked yet, so that whoever comes may wait for it
        self._running: set[asyncio.Task[None]] = set()
        self._looked = 0.0

    async def __call__(self) -> bool:
        """What was in the registry when this was called is in force now. False: nobody else writes there, or the log did not
        answer in time."""
        if not self._log.shared:
            return False
        if self._next is None:
            self._next = asyncio.create_task(self._look(), name="catch up with the registry")
            self._running.add(self._next)
            self._next.add_done_callback(self._running.discard)
        done, _ = await asyncio.wait({self._next}, timeout=PATIENCE_S)
        return bool(done) and not any(task.cancelled() or task.exception() for task in done)

    async def _look(self) -> None:
        await asyncio.sleep(max(0.0, self._looked + REST_S - time.monotonic()))
        self._next, self._looked = None, time.monotonic()
        if not await self._view.wait_for(await self._log.end_offsets((REGISTRY,)), PATIENCE_S):
            raise OncueError("the view is behind the registry")
        await self._take()

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
