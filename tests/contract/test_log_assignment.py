"""Contract of Log.join_group with one member, and of Log.is_own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from log_backends import records

from oncue.errors import LogError
from oncue.log import Log, Topic

Open = Callable[[], Awaitable[Log]]


def test_a_single_member_gets_all_partitions(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"control": Topic(partitions=8)})
        assignment = log.join_group("control", "owners")
        async with asyncio.timeout(30):
            assert await assignment.next() == frozenset(range(8))
            while not assignment.is_exclusive():  # from its next heartbeat on
                await log.end_offsets(["control"])
        waiting = asyncio.ensure_future(assignment.next())
        await asyncio.sleep(0.1)
        assert not waiting.done(), "nothing has changed"
        await assignment.close()
        with pytest.raises(LogError):
            await waiting
        assert not assignment.is_exclusive()
        await log.close()

    asyncio.run(main())


def test_closing_the_log_closes_its_assignments(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"control": Topic(partitions=2)})
        assignment = log.join_group("control", "owners")
        async with asyncio.timeout(30):
            await assignment.next()
            waiting = asyncio.ensure_future(assignment.next())
            await asyncio.sleep(0)
            await log.close()
            with pytest.raises(LogError):
                await waiting

    asyncio.run(main())


def test_a_member_that_rejoins_gets_its_partitions_again(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"control": Topic(partitions=4)})
        for _ in range(2):
            assignment = log.join_group("control", "owners")
            async with asyncio.timeout(30):
                assert await assignment.next() == frozenset(range(4))
            await assignment.close()
        await log.close()

    asyncio.run(main())


def test_is_own_recognizes_records_of_this_process(open_it: Open) -> None:
    """Applies to topics that are watched."""

    async def main() -> None:
        log = await open_it()
        watched: list[bytes] = []
        log.watch("tasks.", lambda _, found: watched.extend(r.value for r in found))
        await log.append("tasks.a", records("1", "2"))
        (batch,) = await log.read(["tasks.a"]).next()
        assert [r.value for r in batch.records] == watched == [b"1", b"2"]
        assert all(log.is_own(r) for r in batch.records)
        await log.close()
        log = await open_it()
        (batch,) = await log.read(["tasks.a"]).next()
        assert not log.shared or not any(log.is_own(r) for r in batch.records), "appended by an earlier process"
        await log.close()

    asyncio.run(main())
