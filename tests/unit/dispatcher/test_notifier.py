"""Notifier: outcomes reach waiters and the stream of their call; slow readers delay nobody."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from oncue.dispatcher import notifier as notifier_module
from oncue.dispatcher import outcome_streams
from oncue.dispatcher.notifier import FEED_ITEMS, FEW_FEEDS, Notifier
from oncue.protocol.api import Outcome
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import ERROR, OK, VERSION, Call, Ended

CALL = Call(VERSION, "f" * 64, "ep", "ada", "f", stream="s")
ENDED = Ended(b"1" * 16, 1, OK, 2, 3)
FAILED = Ended(b"2" * 16, 1, ERROR, 2, 3)


def run(work: Callable[[Notifier], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await work(Notifier())

    asyncio.run(main())


def test_all_waiters_of_a_task_get_its_end() -> None:
    async def work(notifier: Notifier) -> None:
        first, second, other = notifier.wait(ENDED.id), notifier.wait(ENDED.id), notifier.wait(b"9" * 16)
        notifier.publish(CALL, [ENDED])
        notifier.publish(CALL, [ENDED])
        assert (await first, await second, other.done()) == (ENDED, ENDED, False)
        notifier.forget(b"9" * 16, other)
        assert other.cancelled()

    run(work)


def test_a_stream_gets_the_outcomes_of_its_calls() -> None:
    async def work(notifier: Notifier) -> None:
        stream = notifier.stream("s", "ada")
        assert await anext(stream) == b""
        notifier.publish(CALL, [ENDED, FAILED])
        notifier.publish(Call(VERSION, "f" * 64, "ep", "ada", stream="another"), [ENDED])
        found = decode(list[Outcome], await anext(stream))
        assert [(o.id, o.state) for o in found] == [(ENDED.id, "succeeded"), (FAILED.id, "failed")]
        notifier.close()
        assert [message async for message in stream] == []

    run(work)


def test_a_stream_brings_its_owners_outcomes_only() -> None:
    """The name of a stream is the client's choice: two owners may have chosen the same."""

    async def work(notifier: Notifier) -> None:
        bobs, adas = notifier.stream("s", "bob"), notifier.stream("s", "ada")
        await anext(bobs)
        await anext(adas)
        following = asyncio.ensure_future(anext(bobs))
        notifier.publish(CALL, [ENDED])
        assert decode(list[Outcome], await anext(adas))[0].id == ENDED.id
        await asyncio.sleep(0)
        assert not following.done()
        following.cancel()
        await adas.aclose()

    run(work)


def test_the_newest_reader_of_an_owner_takes_over_its_stream() -> None:
    async def work(notifier: Notifier) -> None:
        old, new = notifier.stream("s", "ada"), notifier.stream("s", "ada")
        await anext(old)
        await anext(new)
        notifier.publish(CALL, [ENDED])
        assert [message async for message in old] == []
        assert decode(list[Outcome], await anext(new))[0].id == ENDED.id
        await new.aclose()

    run(work)


def test_a_stream_with_too_much_unread_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(notifier: Notifier) -> None:
        stream = notifier.stream("s", "ada")
        await anext(stream)
        for _ in range(20):
            notifier.publish(CALL, [ENDED])
        assert [message async for message in stream] == []

    monkeypatch.setattr(outcome_streams, "OWNER_BYTES", 100)
    run(work)


def test_what_all_streams_of_an_owner_have_unread_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(notifier: Notifier) -> None:
        calls = [msgspec.structs.replace(CALL, stream=name) for name in ("slow", "fast", "idle")]
        slow, fast, idle = (notifier.stream(call.stream, call.owner) for call in calls)
        for stream in (slow, fast, idle):
            await anext(stream)
        for call in (*calls, calls[0], calls[0]):
            notifier.publish(call, [ENDED])
        assert await anext(slow)  # it is being sent, and counts
        for _ in range(9):
            assert await anext(fast)
            notifier.publish(calls[1], [ENDED])
        notifier.publish(calls[0], [ENDED])
        assert [message async for message in slow] == []
        assert await anext(fast)
        assert await anext(idle)
        await fast.aclose()
        await idle.aclose()

    size = len(encode([Outcome(ENDED.id, "succeeded", ENDED)]))
    monkeypatch.setattr(outcome_streams, "OWNER_BYTES", 6 * size)
    run(work)


def test_a_live_feed_has_items_of_its_kinds_and_counts_skipped_ones() -> None:
    async def work(notifier: Notifier) -> None:
        assert not notifier.watched
        feed = notifier.live(frozenset({"task"}))
        assert await anext(feed) == ("", None)
        assert notifier.watched
        for number in range(FEED_ITEMS + 3):
            notifier.publish_item("event", number)
            notifier.publish_item("task", number)
        assert await anext(feed) == ("skipped", {"count": 3})
        assert await anext(feed) == ("task", 0)
        await feed.aclose()
        assert not notifier.watched

    run(work)


def test_many_live_feeds_do_not_hold_the_loop() -> None:
    async def work(notifier: Notifier) -> None:
        feeds = [notifier.live(frozenset()) for _ in range(400)]
        for feed in feeds:
            await anext(feed)
        longest, began = 0.0, time.thread_time()
        for number in range(2 * FEED_ITEMS):
            notifier.publish_item("event", number)
        for _ in range(20):
            longest = max(longest, time.thread_time() - began)
            began = time.thread_time()
            await asyncio.sleep(0.001)
        assert longest < 0.15  # of CPU time; to give each item to each feed takes longer
        for feed in feeds[:2]:
            found = [await anext(feed), await anext(feed)]
            assert ("event", 0) in found
            assert any(kind == "skipped" for kind, _ in found)
            await feed.aclose()

    run(work)


def test_readers_of_live_feeds_do_not_all_write_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(notifier: Notifier) -> None:
        turn, got = 0, Counter[int]()

        async def read(feed: AsyncIterator[tuple[str, Any]]) -> None:
            async for kind, _ in feed:
                if kind:
                    got[turn] += 1
                    return

        feeds = [notifier.live(frozenset()) for _ in range(50)]
        for feed in feeds:
            await anext(feed)
        readers = [asyncio.create_task(read(feed)) for feed in feeds]
        await asyncio.sleep(0)
        notifier.publish_item("event", 1)
        while not all(reader.done() for reader in readers):
            turn += 1
            await asyncio.sleep(0)
        assert got.total() == len(feeds)
        assert max(got.values()) < len(feeds) / 2
        for feed in feeds:
            await feed.aclose()

    monkeypatch.setattr(notifier_module, "PAUSE_PER_FEED_S", 0.02)
    run(work)


@pytest.mark.parametrize("readers", [2, FEW_FEEDS + 2])
def test_a_reader_is_told_of_skipped_items_only_that_it_may_see(readers: int) -> None:
    async def work(notifier: Notifier) -> None:
        kinds = frozenset({"task", "event"})
        open_feeds = [notifier.live(kinds, lambda _, item, n=n: item["owner"] == n) for n in range(readers)]  # type: ignore[misc]
        for feed in open_feeds:
            assert await anext(feed) == ("", None)
        for number in range(3 * FEED_ITEMS):
            notifier.publish_item("task", {"owner": 1, "number": number})
            notifier.publish_item("outcome", {"owner": 0, "number": number})
        notifier.publish_item("event", {"owner": 0})

        for _ in range(1_000):
            if notifier._spreading:
                await asyncio.sleep(0.01)

        counts = sorted(feed.skipped + feed.items.qsize() for feed in notifier._feeds)
        assert counts == [0] * (readers - 2) + [1, 3 * FEED_ITEMS]

    run(work)


def test_a_server_that_stops_ends_streams_feeds_and_waits() -> None:
    async def work(notifier: Notifier) -> None:
        stream, feed, waiter = notifier.stream("s", "ada"), notifier.live(frozenset()), notifier.wait(ENDED.id)
        await anext(stream)
        await anext(feed)
        notifier.close()
        assert [item async for item in stream] == [item async for item in feed] == []
        assert waiter.cancelled()

    run(work)
