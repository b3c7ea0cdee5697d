"""Assignment in a log that belongs to one process: it has all partitions."""

from __future__ import annotations

import asyncio

from oncue.errors import LogError
from oncue.log.base import Assignment


class SingleOwner(Assignment):
    """Assignment that never changes."""

    def __init__(self, partitions: frozenset[int]) -> None:
        self._partitions = partitions
        self._returned = False
        self._closed = asyncio.Event()

    async def next(self) -> frozenset[int]:
        if not self._returned and not self._closed.is_set():
            self._returned = True
            return self._partitions
        await self._closed.wait()
        raise LogError("this member has left its group")

    def is_exclusive(self) -> bool:
        return not self._closed.is_set()

    async def wait_until_exclusive(self) -> bool:
        return self.is_exclusive()

    async def close(self) -> None:
        self._closed.set()
