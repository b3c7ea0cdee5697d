"""ManyWaits: one request waits for thousands of tasks."""

from __future__ import annotations

import asyncio
import os

import pytest

from oncue.dispatcher.many_waits import ManyWaits, WaitingIds
from oncue.dispatcher.notifier import Notifier
from oncue.errors import RateLimited
from oncue.protocol.records import OK, VERSION, Call, Ended

CALL = Call(VERSION, "f", "e", "me", "f")
IDS = [os.urandom(16) for _ in range(5_000)]


def end(notifier: Notifier, *ids: bytes) -> None:
    notifier.publish(CALL, [Ended(i, 1, OK, 1, 2) for i in ids])


def test_it_waits_until_all_are_closed() -> None:
    async def work() -> None:
        notifier = Notifier()
        waits = ManyWaits(notifier)
        await waits.add([*IDS, *IDS[:10]])
        waiting = asyncio.create_task(waits.until_closed(IDS[:100], 30))
        end(notifier, *IDS[50:4_999])
        await asyncio.sleep(0)
        assert not waiting.done()
        end(notifier, IDS[4_999])
        await asyncio.wait_for(waiting, 5)
        await waits.close()
        assert not notifier._waiters

    asyncio.run(work())


def test_it_waits_no_longer_than_it_may_and_leaves_nothing_behind() -> None:
    async def work() -> None:
        notifier = Notifier()
        several = [ManyWaits(notifier) for _ in range(3)]
        for waits in several:
            await waits.add(IDS[:100])
        await several[0].until_closed([], 0.01)
        await several[0].close()
        end(notifier, *IDS[:100])
        assert [waits.done() for waits in several[1:]] == [True, True]
        for waits in several[1:]:
            await waits.close()
        assert not notifier._waiters

    asyncio.run(work())


def test_a_server_that_stops_ends_the_wait() -> None:
    async def work() -> None:
        notifier = Notifier()
        waits = ManyWaits(notifier)
        await waits.add(IDS[:10])
        waiting = asyncio.create_task(waits.until_closed([], 30))
        await asyncio.sleep(0)
        notifier.close()
        await asyncio.wait_for(waiting, 5)

    asyncio.run(work())


def test_ids_of_one_owner_are_bounded() -> None:
    waiting = WaitingIds(10)
    waiting.add("ada", 8)
    with pytest.raises(RateLimited, match="wait for 8 tasks"):
        waiting.add("ada", 3)
    waiting.add("bob", 11)  # a single request has room
    waiting.remove("ada", 8)
    waiting.add("ada", 10)
