"""Memory for request bodies and for pages, so much for each owner at a time.

A body or a page may have many megabytes, and a caller may have a thousand at once. One that does
not fit waits, unread or not yet made, until others of the same owner have been dealt with. Other
owners do not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from aiohttp import web

from oncue.dispatcher.http.content_coding import FREE_BYTES, RATIO

OWNER_BYTES = 256 << 20
OWNER_ANSWERS = 128 << 20
UNMADE_BYTES = 8 << 20  # of a page that is not made yet
SMALL_BYTES = 64 * 1024  # such a body is in a connection's buffer anyway


class OwnerMemory:
    """Memory in use, by owner."""

    def __init__(self, owner_bytes: int = OWNER_BYTES) -> None:
        self._most = owner_bytes
        self._used: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @contextlib.asynccontextmanager
    async def room(self, owner: str, size: int) -> AsyncIterator[None]:
        """Wait for room. A single body has room, whatever its size."""
        if size > SMALL_BYTES:
            await self.take(owner, size)
        try:
            yield
        finally:
            if size > SMALL_BYTES:
                self.give(owner, size)

    async def take(self, owner: str, size: int) -> None:
        """Wait for room. The caller gives it back."""
        if owner not in self._waiting and self._fits(owner, size):
            self._used[owner] = self._used.get(owner, 0) + size
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was given at this moment
                self.give(owner, size)
            raise

    def _fits(self, owner: str, size: int) -> bool:
        used = self._used.get(owner, 0)
        return not used or used + size <= self._most

    def give(self, owner: str, size: int) -> None:
        """Give room back."""
        self._used[owner] -= size
        if not self._used[owner]:
            del self._used[owner]
        waiting = self._waiting.get(owner)
        while waiting and (waiting[0][1].done() or self._fits(owner, waiting[0][0])):
            size, future = waiting.popleft()
            if not future.done():
                self._used[owner] = self._used.get(owner, 0) + size
                future.set_result(None)
        if not waiting:
            self._waiting.pop(owner, None)


def memory_of(request: web.Request, limit: int) -> int:
    """Return how much memory the body of a request may need."""
    if not request.can_read_body:
        return 0
    length = request.content_length
    if length is None:
        return limit
    if length > limit:
        return 0  # it is refused
    if "Content-Encoding" in request.headers:
        length += max(FREE_BYTES, RATIO * length)
    return min(length, limit)
