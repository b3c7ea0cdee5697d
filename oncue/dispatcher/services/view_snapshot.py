"""Copies the view for a server that joins.

A copy costs as much time and space as the view has. So one is made at a time, whoever asks
meanwhile gets the same, and at most COPIES are on the disk.
"""

from __future__ import annotations

import asyncio
import os
import secrets as random_secrets
import weakref
from collections.abc import AsyncIterator

from oncue.disk.space import free_bytes
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext
from oncue.errors import DiskFull, RateLimited

PART_BYTES = 1 << 20
COPIES = 2  # that are made or read
SPARE_BYTES = 64 << 20  # left free on the disk


class _Copy:
    """An open file without a name: it is gone when nobody refers to it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.size = os.fstat(handle).st_size


class ViewSnapshotService:
    """Snapshots of this server's view. They hold all owners' data: for admins."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._making: asyncio.Task[_Copy] | None = None
        self._copies = 0

    async def create(self, caller: Caller) -> tuple[int, AsyncIterator[bytes]]:
        """Return (size in bytes, parts) of a snapshot that is at most some seconds old.

        Raises ViewError, NotReady, RateLimited, DiskFull.
        """
        self._context.check_accepting()
        if self._making is None:
            if self._copies >= COPIES:
                raise RateLimited(
                    f"{self._copies} copies of the view are being read",
                    remedy="wait until one of them is complete",
                    retry_after_s=10,
                )
            self._copies += 1
            self._making = asyncio.create_task(self._make(), name="copy the view")
        # A caller who goes does not end it for the others.
        copy = await asyncio.shield(self._making)
        return copy.size, _parts(copy)

    async def _make(self) -> _Copy:
        context = self._context
        path = context.settings.data_path / f"view.{random_secrets.token_hex(6)}.copy"
        try:
            needed = context.view.path.stat().st_size + SPARE_BYTES
            if free_bytes(path.parent) < needed:
                raise DiskFull(
                    f"a copy of the view needs {needed >> 20} MB", remedy="free space on the disk of the data folder"
                )
            await context.view.snapshot(path)
            copy = _Copy(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            self._copies -= 1
            raise
        finally:
            path.unlink(missing_ok=True)
            self._making = None
        weakref.finalize(copy, self._close, copy.handle)
        return copy

    def _close(self, handle: int) -> None:
        os.close(handle)
        self._copies -= 1


async def _parts(copy: _Copy) -> AsyncIterator[bytes]:
    at = 0
    while part := await asyncio.to_thread(os.pread, copy.handle, PART_BYTES, at):
        at += len(part)
        yield part
