"""Reads the registry to its end before an unknown name or token is refused.

A token made through one server is valid on all servers as soon as the request is answered. The
others read its record some milliseconds later, so a request with something unknown waits until they
have.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 5.0
#: Pause between two reads of the log's end. It limits the load from callers who guess names or
#: tokens.
PAUSE_S = 0.1


class RegistrySync:
    """Single-flight refresh of the registry.

    All callers that come before a refresh starts share it.
    """

    def __init__(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Initialize without a refresh.

        `refresh`: returns when all that the registry has at its call is in force here.
        """
        self._refresh = refresh
        # Has not started to read, so new callers may wait for it.
        self._next: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._started = 0.0

    async def __call__(self) -> bool:
        """Wait until all that is in the registry now is in force here.

        Return False if the log did not answer in time.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._run(), name="catch up with the registry")
            self._running.add(self._next)
            self._next.add_done_callback(self._running.discard)
        done, _ = await asyncio.wait({self._next}, timeout=PATIENCE_S)
        return bool(done) and not any(task.cancelled() or task.exception() for task in done)

    async def _run(self) -> None:
        await asyncio.sleep(max(0.0, self._started + PAUSE_S - time.monotonic()))
        self._next, self._started = None, time.monotonic()
        await self._refresh()

    async def close(self) -> None:
        """Cancel refreshes in progress."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
