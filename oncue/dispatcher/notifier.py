"""Who waits for outcomes: requests, clients' streams, live pages. Told only what is durable.

    lane's Store ──durable──► tell(call, closing) ──► waiters by task id
    view's ClosedTask ──────►                    ├─► the call's stream (one a client)
                                                 └─► live feeds (the page, `oncue tasks watch`)

A listener that does not read fast enough loses its place, not anybody else's: a stream is closed (its client connects
again and asks for what it missed), a live feed skips.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from oncue.dispatcher.live_feed import about
from oncue.errors import Conflict
from oncue.lifecycle import CLOSED_AS
from oncue.protocol.api import Outcome
from oncue.protocol.codec import encode
from oncue.protocol.records import Call, Ended

STREAM_BYTES = 256 << 20  # unread of one stream
FEED_ITEMS = 1_000  # unread of one live feed
ALIVE_S = 10.0

STATE_WORDS = {status: state.name.lower() for status, state in CLOSED_AS.items()}


class Stream:
    """Outcomes for one client, in messages."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.ready = asyncio.Event()
        self.closed = False

    def put(self, message: bytes) -> None:
        self.pending.append(message)
        self.pending_bytes += len(message)
        if self.pending_bytes > STREAM_BYTES:
            self.closed = True
            self.pending.clear()
        self.ready.set()


class Feed:
    """What happens, for people: bounded, and what did not fit is counted."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(FEED_ITEMS)
        self.skipped = 0

    def put(self, kind: str, item: Any) -> None:
        try:
            self.items.put_nowait((kind, item))
        except asyncio.QueueFull:
            self.skipped += 1


class Notifier:
    def __init__(self) -> None:
        self._waiters: dict[bytes, list[asyncio.Future[Ended]]] = {}
        self._streams: dict[str, Stream] = {}
        self._feeds: set[Feed] = set()
        self._closing = asyncio.Event()

    # ------------------------------------------------------------ telling

    def tell(self, call: Call, closing: Sequence[Ended]) -> None:
        """These ends are durable and close their tasks. Telling twice is harmless."""
        if self._waiters:
            for e in closing:
                for waiter in self._waiters.pop(e.id, ()):
                    if not waiter.done():
                        waiter.set_result(e)
        stream = self._streams.get(call.stream) if call.stream else None
        if stream is not None and closing:
            stream.put(encode([Outcome(e.id, STATE_WORDS[e.status], e) for e in closing]))
        if self._feeds:
            for e in closing[:FEED_ITEMS]:
                self.show("outcome", _summary(call, e))

    def show(self, kind: str, item: Any) -> None:
        """Something for live feeds."""
        for feed in self._feeds:
            if not feed.kinds or kind in feed.kinds:
                feed.put(kind, item)

    @property
    def watched(self) -> bool:
        """Whether anybody looks at a live feed."""
        return bool(self._feeds)

    # ------------------------------------------------------------ waiting

    def wait(self, task_id: bytes) -> asyncio.Future[Ended]:
        """A future of the task's closing end. Forget it with `forget`."""
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(task_id, []).append(future)
        return future

    def forget(self, task_id: bytes, future: asyncio.Future[Ended]) -> None:
        waiters = self._waiters.get(task_id)
        if waiters and future in waiters:
            waiters.remove(future)
            if not waiters:
                del self._waiters[task_id]
        future.cancel()

    async def stream(self, name: str, owner: str) -> AsyncIterator[bytes]:
        """Messages for the client that named its stream so; b"" as a sign of life. A name that is in use by its owner
        moves to the newest caller. Raises Conflict when it is another's."""
        old = self._streams.get(name)
        if old is not None:
            if old.owner != owner:
                raise Conflict("this outcome stream belongs to someone else", remedy="use another stream name")
            old.closed = True
            old.ready.set()
        mine = self._streams[name] = Stream(owner)
        try:
            yield b""  # the caller knows that from here on it will hear
            while not mine.closed and not self._closing.is_set():
                try:
                    async with asyncio.timeout(ALIVE_S):
                        await mine.ready.wait()
                except TimeoutError:
                    yield b""
                    continue
                mine.ready.clear()
                messages, mine.pending, mine.pending_bytes = mine.pending, [], 0
                for message in messages:
                    yield message
        finally:
            if self._streams.get(name) is mine:
                del self._streams[name]

    async def live(self, kinds: frozenset[str]) -> AsyncIterator[tuple[str, Any]]:
        """(kind, item) as it happens; ("", None) as a sign of life."""
        feed = Feed(kinds)
        self._feeds.add(feed)
        try:
            yield "", None
            while not self._closing.is_set():
                try:
                    async with asyncio.timeout(ALIVE_S):
                        kind, item = await feed.items.get()
                except TimeoutError:
                    kind, item = "", None
                if feed.skipped:
                    yield "skipped", {"count": feed.skipped}
                    feed.skipped = 0
                if kind == "closing":
                    return
                yield kind, item
        finally:
            self._feeds.discard(feed)

    def close(self) -> None:
        """End all streams and feeds: the server stops."""
        self._closing.set()
        for stream in self._streams.values():
            stream.closed = True
            stream.ready.set()
        for feed in self._feeds:
            feed.put("closing", None)
        _cancel_all(w for waiters in self._waiters.values() for w in waiters)
        self._waiters.clear()


def _cancel_all(futures: Iterable[asyncio.Future[Ended]]) -> None:
    for future in list(futures):
        future.cancel()


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
    }
