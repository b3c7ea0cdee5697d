"""Publishes durable outcomes to waiting requests, streams and live feeds.

    channel's StoreResults ──durable──► publish(call, closing) ──► waiters by task id
    view's ClosedTask ────────────────►                       ├─► the call's stream (one a client)
                                                              └─► live feeds

A slow reader delays no other one. A stream with too much unread is closed (outcome_streams.py). A
full live feed skips items.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

from oncue.dispatcher.live_feed import about
from oncue.dispatcher.outcome_streams import KEEP_ALIVE_S, OutcomeStreams
from oncue.errors import Undecodable
from oncue.protocol.api import Outcome
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import OK, Call, Ended, Failure
from oncue.task_lifecycle import STATE_WORDS

FEED_ITEMS = 1_000  # unread, of one live feed
#: Items a second of all live feeds together. Each sends a batch, and pauses if there are others.
ITEMS_PER_S = 20_000
PAUSE_S, PAUSE_PER_FEED_S = 0.01, 0.001
SMALLEST_BATCH = 10
WHY_CHARS = 300  # of a failure's message in a live feed
#: More feeds than a few get items in turns of the event loop, with pauses.
FEW_FEEDS = 8
SPREAD_S, SPREAD_PAUSE_S = 0.005, 0.01
Sees = Callable[[str, Any], bool]


class Waiter(Protocol):
    """Gets the ends that close tasks. A future is one, for a single task."""

    def done(self) -> bool: ...

    def set_result(self, ended: Ended, /) -> None: ...

    def cancel(self) -> object: ...


class LiveFeed:
    """A bounded queue of items for one page. Items that did not fit are counted."""

    def __init__(self, kinds: frozenset[str], sees: Sees) -> None:
        self.kinds, self.sees = kinds, sees
        self.items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(FEED_ITEMS)
        self.skipped = 0

    def wants(self, kind: str, item: Any) -> bool:
        return (not self.kinds or kind in self.kinds) and self.sees(kind, item)

    def enqueue(self, kind: str, item: Any) -> None:
        """Add an item, or count it as skipped."""
        try:
            self.items.put_nowait((kind, item))
        except asyncio.QueueFull:
            self.skipped += 1

    def drain(self, items: list[tuple[str, Any]], most: int, left: int) -> None:
        """Move waiting items to `items`, up to so many.

        Count all but `left` of the others as skipped.
        """
        while len(items) < most and not self.items.empty():
            items.append(self.items.get_nowait())
        while self.items.qsize() > left:
            self.items.get_nowait()
            self.skipped += 1


class Notifier:
    """Waiters, outcome streams and live feeds of one server."""

    def __init__(self) -> None:
        self._waiters: dict[bytes, list[Waiter]] = {}
        self._streams = OutcomeStreams()
        self._feeds: set[LiveFeed] = set()
        self._unspread: deque[tuple[str, Any]] = deque()  # items that the feeds are still to get
        self._left_out: dict[tuple[str, str], tuple[Any, int]] = {}  # kind, readers -> one of the others, count
        self._spreading = False
        self._closing = asyncio.Event()

    # ------------------------------------------------------------ publish

    def publish(self, call: Call, closing: Sequence[Ended]) -> None:
        """Publish ends that are durable and close their tasks. Idempotent."""
        if self._waiters:
            for e in closing:
                for waiter in self._waiters.pop(e.id, ()):
                    if not waiter.done():
                        waiter.set_result(e)
        stream = self._streams.get(call.stream, call.owner) if call.stream else None
        if stream is not None and closing:
            stream.enqueue(encode([Outcome(e.id, STATE_WORDS[e.status], e) for e in closing]))
        if self._feeds:
            for e in closing[:FEED_ITEMS]:
                self.publish_item("outcome", _summary(call, e))

    def publish_item(self, kind: str, item: Any) -> None:
        """Add an item to the live feeds of its kind, in a moment if there are many feeds."""
        if len(self._feeds) <= FEW_FEEDS and not self._spreading:
            self._add_to_feeds(kind, item)
        else:
            if len(self._unspread) < FEED_ITEMS:
                self._unspread.append((kind, item))
            else:
                group = (kind, _readers(item))
                _, count = self._left_out.get(group, (None, 0))
                self._left_out[group] = (item, count + 1)
            if not self._spreading:
                self._spreading = True
                asyncio.get_running_loop().call_soon(self._spread)

    def _add_to_feeds(self, kind: str, item: Any) -> None:
        for feed in self._feeds:
            if feed.wants(kind, item):
                feed.enqueue(kind, item)

    def _count_in_feeds(self, kind: str, item: Any, count: int) -> None:
        for feed in self._feeds:
            if feed.wants(kind, item):
                feed.skipped += count

    def _spread(self) -> None:
        """Add items to the feeds for a turn of the event loop."""
        until = perf_counter() + SPREAD_S
        while self._unspread and perf_counter() < until:
            self._add_to_feeds(*self._unspread[0])
            self._unspread.popleft()
        while self._left_out and perf_counter() < until:
            (kind, _), (item, count) = self._left_out.popitem()
            self._count_in_feeds(kind, item, count)
        self._spreading = bool(self._unspread or self._left_out)
        if self._spreading:
            asyncio.get_running_loop().call_later(SPREAD_PAUSE_S, self._spread)

    @property
    def watched(self) -> bool:
        """True if a live feed is open."""
        return bool(self._feeds)

    # ------------------------------------------------------------ wait

    def wait(self, task_id: bytes) -> asyncio.Future[Ended]:
        """Return a future of the end that closes the task. Release it with `forget`."""
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.add(task_id, future)
        return future

    def add(self, task_id: bytes, waiter: Waiter) -> None:
        """Give the waiter the end that closes the task. Release it with `forget`."""
        self._waiters.setdefault(task_id, []).append(waiter)

    def forget(self, task_id: bytes, waiter: Waiter) -> None:
        """Cancel and remove a waiter of a task."""
        waiters = self._waiters.get(task_id)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[task_id]
        waiter.cancel()

    def stream(self, name: str, owner: str) -> AsyncIterator[bytes]:
        """Yield the messages of a client's stream; b"" as a keep-alive.

        It brings outcomes of the owner's tasks only; another owner's stream may have the same name.
        A second reader takes over the stream.
        """
        return self._streams.read(name, owner)

    async def live(self, kinds: frozenset[str], sees: Sees = lambda kind, item: True) -> AsyncIterator[tuple[str, Any]]:
        """Yield (kind, item) as they happen; ("", None) as a keep-alive.

        `sees`: tells the items that the reader may see.
        """
        feed = LiveFeed(kinds, sees)
        self._feeds.add(feed)
        try:
            yield "", None
            while not self._closing.is_set():
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        items = [await feed.items.get()]
                except TimeoutError:
                    items = [("", None)]
                feeds = len(self._feeds)
                pause = PAUSE_S + PAUSE_PER_FEED_S * feeds
                if feeds > FEW_FEEDS and items[0][0] != "closing":
                    await asyncio.sleep(random.random() * pause)  # an item wakes all feeds in one turn
                most = max(SMALLEST_BATCH, int(ITEMS_PER_S * pause / feeds))
                feed.drain(items, most, FEED_ITEMS // feeds)
                if feed.skipped:
                    yield "skipped", {"count": feed.skipped}
                    feed.skipped = 0
                for kind, item in items:
                    if kind == "closing":
                        return
                    yield kind, item
                if feeds > 1:
                    await asyncio.sleep(pause)
        finally:
            self._feeds.discard(feed)

    def close(self) -> None:
        """End all streams, feeds and waits: the server stops."""
        self._closing.set()
        self._streams.close()
        for feed in self._feeds:
            feed.enqueue("closing", None)
        _cancel_all(w for waiters in self._waiters.values() for w in waiters)
        self._waiters.clear()


def _cancel_all(waiters: Iterable[Waiter]) -> None:
    for waiter in list(waiters):
        waiter.cancel()


def _readers(item: Any) -> str:
    """Return a text that is equal for items of a kind that the same readers may see."""
    if not isinstance(item, Mapping):
        return ""
    return str(item.get("owner", item.get("label", item.get("name", ""))))


def _summary(call: Call, e: Ended) -> dict[str, Any]:
    return {
        "id": e.id.hex(),
        "state": STATE_WORDS[e.status],
        **about(call),
        "event": list(e.event) if e.event else None,
        "attempt": e.attempt,
        "started_us": e.started_us,
        "ended_us": e.ended_us,
        "mark_us": e.mark_us,
        "why": _why(e),
    }


def _why(e: Ended) -> str:
    """Return type and message of a failure."""
    if e.status == OK:
        return ""
    try:
        failure = decode(Failure, e.value)
    except Undecodable:
        return ""
    return f"{failure.type}: {failure.message[:WHY_CHARS]}"
