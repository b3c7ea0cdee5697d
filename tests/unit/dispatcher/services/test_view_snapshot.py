"""ViewSnapshotService: a copy of the view from which another server can start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from oncue.dispatcher.services.view_snapshot import ViewSnapshotService
from oncue.errors import NotReady
from oncue.view import View
from tests.unit.dispatcher.services.service_site import ADMIN, Site, with_site


def test_a_view_restored_from_the_snapshot_has_the_same_tasks(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        task = await site.add_task(await site.add_endpoint())
        size, parts = await ViewSnapshotService(site.context).create(ADMIN)
        copy = tmp_path / "received"
        content = b"".join([part async for part in parts])
        await asyncio.to_thread(copy.write_bytes, content)
        restored = View.restore(tmp_path / "other.db", copy)
        try:
            assert len(content) == size
            assert await restored.task(task) == await site.view.task(task)
            assert restored.positions() == site.view.positions()
        finally:
            await restored.close()

    with_site(tmp_path, work)


@pytest.mark.parametrize("reads", [0, 1])
def test_a_snapshot_leaves_no_file_even_if_its_reader_gives_up(tmp_path: Path, reads: int) -> None:
    async def work(site: Site) -> None:
        _, parts = await ViewSnapshotService(site.context).create(ADMIN)
        for _ in range(reads):
            await anext(parts)
        await parts.aclose()
        assert list(tmp_path.glob("view.*.copy")) == []

    with_site(tmp_path, work)


def test_a_server_that_is_stopping_makes_no_snapshot(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        site.context.ready = False
        with pytest.raises(NotReady):
            await ViewSnapshotService(site.context).create(ADMIN)

    with_site(tmp_path, work)
