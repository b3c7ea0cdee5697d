"""Owners take turns while many requests come."""

from __future__ import annotations

import asyncio

from oncue.dispatcher.http.fair_queue import AT_ONCE, FairQueue


def test_an_owner_with_many_requests_does_not_keep_another_waiting() -> None:
    async def main() -> list[str]:
        queue = FairQueue()
        begun: list[str] = []

        async def request(owner: str) -> None:
            await queue.turn(owner)
            begun.append(owner)

        many = [asyncio.create_task(request("ada")) for _ in range(1_000)]
        await asyncio.sleep(0)
        one = asyncio.create_task(request("bob"))
        await one
        so_far = list(begun)
        await asyncio.gather(*many)
        return so_far

    so_far = asyncio.run(main())

    assert so_far.index("bob") <= 2 * AT_ONCE
    assert len(so_far) < 100


def test_few_requests_begin_at_once_and_the_others_wait() -> None:
    async def main() -> None:
        queue = FairQueue()
        assert [queue.is_free() for _ in range(AT_ONCE)] == [True] * AT_ONCE
        waiting = asyncio.create_task(queue.turn("ada"))
        await asyncio.sleep(0)
        assert not queue.is_free(), "nobody overtakes one that waits"
        await waiting

    asyncio.run(main())


def test_a_caller_that_has_gone_takes_no_turn() -> None:
    async def main() -> None:
        queue = FairQueue()
        gone = [asyncio.create_task(queue.turn("ada")) for _ in range(100)]
        last = asyncio.create_task(queue.turn("ada"))
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.wait_for(last, 10)
        await asyncio.gather(*gone, return_exceptions=True)

    asyncio.run(main())
