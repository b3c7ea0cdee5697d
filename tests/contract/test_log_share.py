"""Dividing a topic's partitions, where there is one member; and whose records a reader brings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from log_backends import records

from oncue.errors import LogError
from oncue.log import Log, Topic

Open = Callable[[], Awaitable[Log]]


def test_one_member_has_all_partitions(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"control": Topic(partitions=8)})
        share = log.share("control", "owners")
        async with asyncio.timeout(30):
            assert await share.next() == frozenset(range(8))
            while not share.sure():  # from its next heartbeat on
                await log.end_offsets(["control"])
        waiting = asyncio.ensure_future(share.next())
        await asyncio.sleep(0.1)
        assert not waiting.done(), "nothing has changed"
        await share.close()
        with pytest.raises(LogError):
            await waiting
        assert not share.sure()
        await log.close()

    asyncio.run(main())


def test_closing_the_log_ends_its_shares(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"control": Topic(partitions=2)})
        share = log.share("control", "owners")
        async with asyncio.timeout(30):
            await share.next()
            waiting = asyncio.ensure_future(share.next())
            await asyncio.sleep(0)
            await log.close()
            with pytest.raises(LogError):
                await waiting

    asyncio.run(main())


def test_a_member_that_was_away_is_given_them_again(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"control": Topic(partitions=4)})
        for _ in range(2):
            share = log.share("control", "owners")
            async with asyncio.timeout(30):
                assert await share.next() == frozenset(range(4))
            await share.close()
        await log.close()

    asyncio.run(main())


def test_a_reader_tells_what_this_process_appended(open_it: Open) -> None:
    """Of topics that are watched."""

    async def main() -> None:
        log = await open_it()
        told: list[bytes] = []
        log.watch("tasks.", lambda _, found: told.extend(r.value for r in found))
        await log.append("tasks.a", records("1", "2"))
        (batch,) = await log.read(["tasks.a"]).next()
        assert [r.value for r in batch.records] == told == [b"1", b"2"]
        assert all(log.told(r) for r in batch.records)
        await log.close()
        log = await open_it()
        (batch,) = await log.read(["tasks.a"]).next()
        assert not log.shared or not any(log.told(r) for r in batch.records), "of the process before this one"
        await log.close()

    asyncio.run(main())
