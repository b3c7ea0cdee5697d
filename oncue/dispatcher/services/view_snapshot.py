"""A copy of the view, for a server that joins."""

from __future__ import annotations

import asyncio
import secrets as random_secrets
from collections.abc import AsyncIterator
from pathlib import Path

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext

PART_BYTES = 1 << 20


class ViewDesk(ServerContext):
    async def view_snapshot(self, who: Caller) -> tuple[int, AsyncIterator[bytes]]:
        """(size, parts). Everybody's data is in it: it is for admins. Raises ViewError, NotReady."""
        self.accepting()
        path = self.settings.data_path / f"view.{random_secrets.token_hex(6)}.copy"
        await self.view.snapshot(path)
        size = path.stat().st_size
        return size, _parts(path)


async def _parts(path: Path) -> AsyncIterator[bytes]:
    try:
        with path.open("rb") as file:
            path.unlink()  # it lives as long as it is read
            while part := await asyncio.to_thread(file.read, PART_BYTES):
                yield part
    finally:
        path.unlink(missing_ok=True)
