"""Uploads and downloads blobs: large payloads, named by their SHA-256."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext

PART_BYTES = 1 << 20


class BlobService:
    """Blobs in the server's store. Disk work runs in threads."""

    def __init__(self, context: ServerContext) -> None:
        self._context, self._blobs = context, context.blobs

    async def put(self, caller: Caller, sha256: str, size: int, parts: AsyncIterator[bytes]) -> None:
        """Store a blob; durable on return.

        Raises Invalid if the content has another hash, NotReady, DiskFull.
        """
        self._context.check_accepting()
        if await asyncio.to_thread(self._blobs.has, sha256):
            async for _ in parts:
                pass
            return
        upload = self._blobs.upload(sha256, size)
        try:
            at = 0
            async for part in parts:
                at = await asyncio.to_thread(upload.write, at, part)
            await asyncio.to_thread(upload.finish)
        except BaseException:
            upload.abort()
            raise

    async def get(self, caller: Caller, sha256: str) -> tuple[int, AsyncIterator[bytes]]:
        """Return (size in bytes, parts) of a blob. Raises BlobMissing.

        Knowing the hash is the permission: only those know it who have the content, or were given
        the hash.
        """
        size = await asyncio.to_thread(self._blobs.size, sha256)
        return size, self._parts(sha256, size)

    async def _parts(self, sha256: str, size: int) -> AsyncIterator[bytes]:
        at = 0
        while at < size:
            part = await asyncio.to_thread(self._blobs.part, sha256, at, PART_BYTES)
            at += len(part)
            yield part
