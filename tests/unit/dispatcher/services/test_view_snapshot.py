"""ViewSnapshotService: a copy of the view from which another server can start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from oncue.dispatcher.services import view_snapshot
from oncue.dispatcher.services.view_snapshot import COPIES, ViewSnapshotService
from oncue.errors import DiskFull, NotReady, RateLimited
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


def test_callers_at_the_same_time_share_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(site: Site) -> None:
        made: list[Path] = []
        real = site.view.snapshot

        async def counted(path: Path) -> None:
            made.append(path)
            await real(path)

        monkeypatch.setattr(site.view, "snapshot", counted)
        service = ViewSnapshotService(site.context)
        gone = asyncio.create_task(service.create(ADMIN))
        await asyncio.sleep(0)
        gone.cancel()
        answers = await asyncio.gather(*(service.create(ADMIN) for _ in range(5)))
        contents = [b"".join([part async for part in parts]) for _, parts in answers]
        assert len(made) == 1
        assert {len(content) for content in contents} == {answers[0][0]}
        assert len(set(contents)) == 1

    with_site(tmp_path, work)


def test_copies_that_are_not_read_are_few_and_leave_their_place(tmp_path: Path) -> None:
    async def work(site: Site) -> None:
        service = ViewSnapshotService(site.context)
        unread = [(await service.create(ADMIN))[1] for _ in range(COPIES)]
        with pytest.raises(RateLimited, match="copies of the view are being read"):
            await service.create(ADMIN)
        await anext(unread[0])
        del unread[1]  # never begun
        size, parts = await service.create(ADMIN)
        assert size == sum([len(part) async for part in parts])

    with_site(tmp_path, work)


def test_no_copy_is_made_where_it_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(site: Site) -> None:
        service = ViewSnapshotService(site.context)
        with monkeypatch.context() as full:
            full.setattr(view_snapshot, "free_bytes", lambda _: 1 << 20)
            for _ in range(COPIES + 1):
                with pytest.raises(DiskFull, match="a copy of the view needs"):
                    await service.create(ADMIN)
        size, _ = await service.create(ADMIN)
        assert size

    with_site(tmp_path, work)
