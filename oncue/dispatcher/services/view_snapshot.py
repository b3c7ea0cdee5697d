"""Copies the view for a server that joins."""

from __future__ import annotations

import asyncio
import secrets as random_secrets
from collections.abc import AsyncIterator
from pathlib import Path

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext

PART_BYTES = 1 << 20


class ViewSnapshotService:
    """Snapshots of this server's view. They hold all owners' data: for admins."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def create(self, caller: Caller) -> tuple[int, AsyncIterator[bytes]]:
        """Return (size in bytes, parts) of a new snapshot. Raises ViewError, NotReady."""
        self._context.check_accepting()
        path = self._context.settings.data_path / f"view.{random_secrets.token_hex(6)}.copy"
        await self._context.view.snapshot(path)
        size, parts = path.stat().st_size, _parts(path)
        await anext(parts)
        return size, parts


async def _parts(path: Path) -> AsyncIterator[bytes]:
    try:
        with path.open("rb") as file:
            path.unlink()  # the open file keeps the content until it is read
            yield b""  # for `create`: from here on nothing is left behind if nobody reads
            while part := await asyncio.to_thread(file.read, PART_BYTES):
                yield part
    finally:
        path.unlink(missing_ok=True)
