"""Uploads and downloads blobs: large payloads, named by their SHA-256."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from oncue.blobs import Upload
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.context import ServerContext

PART_BYTES = 1 << 20


class BlobService:
    """Blobs in the server's store. Disk work runs in threads."""

    def __init__(self, context: ServerContext) -> None:
        self._context, self._blobs = context, context.blobs

    async def put(self, caller: Caller, sha256: str, size: int, parts: AsyncIterator[bytes]) -> None:
        """Store a blob; durable on return.

        Raises Invalid if the content has another hash, Conflict beyond the owner's share of the
        disk, NotReady, DiskFull.
        """
        self._context.check_accepting()
        if await asyncio.to_thread(self._blobs.renew, sha256):
            async for _ in parts:
                pass
            return
        upload = self._context.blob_quota.upload(caller.quota_owner, sha256, size)
        try:
            await _write_all(upload, parts)
            await asyncio.to_thread(upload.finish)
        except BaseException:
            upload.abort()
            raise

    async def missing(self, wanted: Sequence[str]) -> list[str]:
        """Return which blobs are not in the store; the others count as written now."""

        def absent() -> list[str]:
            return [sha256 for sha256 in wanted if not self._blobs.renew(sha256)]

        return await asyncio.to_thread(absent)

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


async def _write_all(upload: Upload, parts: AsyncIterator[bytes]) -> None:
    """Write the parts; while a thread writes, the next ones arrive."""
    at, gathered, size = 0, list[bytes](), 0
    writing: asyncio.Future[int] | None = None
    try:
        async for part in parts:
            gathered.append(part)
            size += len(part)
            if size < PART_BYTES:
                continue
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(asyncio.to_thread(upload.write, at, b"".join(gathered)))
            at, gathered, size = at + size, [], 0
    finally:
        if writing is not None:  # the thread still uses the upload
            await asyncio.gather(writing, return_exceptions=True)
    if writing is not None:
        await writing
    await asyncio.to_thread(upload.write, at, b"".join(gathered))
