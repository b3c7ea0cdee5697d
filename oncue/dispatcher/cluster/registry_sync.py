"""Before a server refuses what it does not know: another may have written it a moment ago.

A token made on one server, or a webhook deployed through it, is good on all of them when the answer is out; the others read of
it some milliseconds later. So a request that names something unknown waits until the registry has been read to its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 5.0
REST_S = 0.1  # between two looks at the log's end, for whoever tries names or tokens at random


class RegistrySync:
    """`look`: until all that the registry had when it was called is in force. One look serves all who ask before it begins."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._next: asyncio.Task[None] | None = None  # has not looked yet, so that whoever comes may wait for it
        self._running: set[asyncio.Task[None]] = set()
        self._looked = 0.0

    async def __call__(self) -> bool:
        """What was in the registry when this was called is in force now. False: the log did not answer in time."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(), name="catch up with the registry")
            self._running.add(self._next)
            self._next.add_done_callback(self._running.discard)
        done, _ = await asyncio.wait({self._next}, timeout=PATIENCE_S)
        return bool(done) and not any(task.cancelled() or task.exception() for task in done)

    async def _run(self) -> None:
        await asyncio.sleep(max(0.0, self._looked + REST_S - time.monotonic()))
        self._next, self._looked = None, time.monotonic()
        await self._look()

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
