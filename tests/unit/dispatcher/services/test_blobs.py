"""BlobService: uploads are checked against their hash; downloads come in parts."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oncue.dispatcher.services.blobs import PART_BYTES, BlobService
from oncue.errors import BlobMissing, DiskFull, Invalid
from tests.unit.dispatcher.services.service_site import ADA, BOB, Site, with_site

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA = hashlib.sha256(CONTENT).hexdigest()


class Parts:
    """An upload in parts, which counts those that were read."""

    def __init__(self, *parts: bytes) -> None:
        self.parts, self.read = parts, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            self.read += 1
            yield part


async def upload(site: Site, sha256: str, parts: Parts) -> None:
    await BlobService(site.context).put(ADA, sha256, len(CONTENT), aiter(parts))


def test_a_blob_comes_back_in_parts_to_anybody_who_knows_its_hash(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        await upload(site, SHA, Parts(CONTENT[:1000], CONTENT[1000:]))
        size, parts = await BlobService(site.context).get(BOB, SHA)
        received = [part async for part in parts]
        assert (size, b"".join(received)) == (len(CONTENT), CONTENT)
        assert [len(part) for part in received] == [PART_BYTES, len(CONTENT) - PART_BYTES]

    with_site(tmp_path, work)


def test_content_with_another_hash_leaves_nothing(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        with pytest.raises(Invalid):
            await upload(site, SHA, Parts(CONTENT[:-1], b"!"))
        assert not site.context.blobs.has(SHA)
        with pytest.raises(BlobMissing):
            await BlobService(site.context).get(ADA, SHA)
        assert [p for p in (site.folder / "blobs").rglob("*") if p.is_file() and p.stat().st_size > 1000] == []

    with_site(tmp_path, work)


def test_a_blob_that_is_stored_already_is_read_to_the_end(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        await upload(site, SHA, Parts(CONTENT))
        again = Parts(CONTENT[:10], CONTENT[10:])
        await upload(site, SHA, again)
        assert again.read == 2

    with_site(tmp_path, work)


def test_a_full_disk_takes_no_blob(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        site.context.disk_full = "the disk is full"
        with pytest.raises(DiskFull):
            await upload(site, SHA, Parts(CONTENT))
        assert not site.context.blobs.has(SHA)

    with_site(tmp_path, work)
