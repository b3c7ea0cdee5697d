"""A group of one member: where the log is one process's alone."""

from __future__ import annotations

import asyncio

from oncue.errors import LogError
from oncue.log.base import Assignment


class SingleOwner(Assignment):
    def __init__(self, partitions: frozenset[int]) -> None:
        self._partitions = partitions
        self._told = False
        self._closed = asyncio.Event()

    async def next(self) -> frozenset[int]:
        if not self._told and not self._closed.is_set():
            self._told = True
            return self._partitions
        await self._closed.wait()
        raise LogError("the share is closed")

    def sure(self) -> bool:
        return not self._closed.is_set()

    async def until_sure(self) -> bool:
        return self.sure()

    async def close(self) -> None:
        self._closed.set()
