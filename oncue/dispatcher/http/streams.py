"""Streaming responses and held requests.

    service ──async iterator──► serve_stream ──(≤ one message + 64 KiB buffered)──► client
    every 2 s: sweep ──► client gone, or token revoked? ──► cancel
    shutdown ──► cancel ──► end of the response (an empty chunk)

By the empty chunk the client knows that the response is complete. Each response is written by the
task of its request, so a slow client delays no other. A client that does not read is cut off by its
connection (connection.py). A client that has gone is noticed even if there is nothing to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TypeVar

from aiohttp import web

from oncue.dispatcher.http.connection import connection_of
from oncue.errors import NotReady, RateLimited

SWEEP_S = 2.0
PER_TOKEN = 64  # streams open at once
PER_OWNER = 256  # the same, with all tokens of an owner
WAITS = 1_024  # waiting requests of an owner
T = TypeVar("T")
log = logging.getLogger("oncue.api")


class Streams:
    """The open streams and held requests of a server, and their limits."""

    def __init__(self, sweep_s: float = SWEEP_S, per_token: int = PER_TOKEN) -> None:
        self.closing = False
        # False: the request's token was revoked, or has expired.
        self.is_valid: Callable[[web.Request], bool] = lambda _: True
        self._sweep_s = sweep_s
        self._limits = {
            "token": (per_token, "streams are open with this token"),
            "owner": (PER_OWNER, "streams are open with your tokens"),
            "waits": (WAITS, "of your requests wait"),
        }
        self._open: set[OpenRequest] = set()
        self._count: Counter[tuple[str, str]] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, held: OpenRequest) -> None:
        """Add a request.

        Raises NotReady if the server stops, RateLimited if the token has too many.
        """
        if self.closing:
            raise _stopping()
        for kind, name in held.counted:
            most, what = self._limits[kind]
            if self._count[kind, name] >= most:
                raise RateLimited(
                    f"{most:,} {what}", remedy="close some: one outcome stream a client is enough", retry_after_s=1
                )
        self._open.add(held)
        self._count.update(held.counted)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def remove(self, held: OpenRequest) -> None:
        """Remove a request that has ended."""
        self._open.discard(held)
        for key in held.counted:
            self._count[key] -= 1
            if not self._count[key]:
                del self._count[key]
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        for held in list(self._open):
            transport = held.request.transport
            if transport is None or transport.is_closing() or (held.key and not self.is_valid(held.request)):
                held.end()

    def close(self) -> None:
        """End all requests, and accept no more: the server stops."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for held in list(self._open):
            held.end()


class OpenRequest:
    """Context manager of a request that its task holds open.

    If the server ends the request, the block is cancelled, the CancelledError stops here, and
    `ended` is true. `key`: the token, for a stream; "" for a request that waits.
    """

    __slots__ = ("_streams", "_task", "ended", "key", "owner", "request")

    def __init__(self, streams: Streams, request: web.Request, key: str, owner: str = "") -> None:
        self._streams, self.request, self.key, self.owner = streams, request, key, owner
        self._task: asyncio.Task[object] | None = None
        self.ended = False

    @property
    def counted(self) -> tuple[tuple[str, str], ...]:
        """The limits that it counts for, each with a name: its token, its owner."""
        if self.key:
            return ("token", self.key), ("owner", self.owner)
        return (("waits", self.owner),) if self.owner else ()

    def __enter__(self) -> OpenRequest:
        self._streams.add(self)
        self._task = asyncio.current_task()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        self._streams.remove(self)
        if kind is not None and issubclass(kind, asyncio.CancelledError) and self.ended and self._task is not None:
            return self._task.uncancel() == 0  # another cancel of this task goes on
        return False

    def end(self) -> None:
        """Cancel the block."""
        if not self.ended and self._task is not None:
            self.ended = True
            self._task.cancel()


async def serve_stream(
    held: OpenRequest,
    response: web.StreamResponse,
    source: AsyncIterator[T],
    frame: Callable[[T], bytes],
    *,
    grace_s: float = 0.01,
    head: bytes = b"",
    length: int | None = None,
    on_error: Callable[[Exception], bytes] | None = None,
) -> web.StreamResponse:
    """Write `head`, then `frame(item)` for each item of `source`.

    An item framed as b"" is not written.

    Before the headers are sent, the first item is awaited for up to `grace_s`. So an error that the
    source raises at once becomes a problem response, and the source is subscribed when the client
    sees the headers. A later error ends the stream with `on_error(error)`. Without `on_error` it
    cuts the connection, so that the client does not take a part for the whole; so does a source
    that ends before `length` bytes.

    Raises NotReady if the server stops before the headers were sent, and any error of the source
    until then.
    """
    request = held.request
    first = asyncio.ensure_future(_next(source))
    try:
        with held:
            await asyncio.wait({first}, timeout=grace_s)
            if first.done() and (error := first.exception()) is not None:
                raise error
            await response.prepare(request)
            sent = await _copy(held, response, source, first, frame, head, on_error)
            if length is not None and sent != length:
                _cut(request, f"{sent:,} of {length:,} bytes were there")
    finally:
        await _finish(first, source)
    if not response.prepared:
        raise _stopping()
    if request.transport is not None and not request.transport.is_closing():
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
    return response


async def _next(source: AsyncIterator[T]) -> tuple[T, ...]:
    """Return the next item in a tuple, or () at the end.

    A task cannot raise StopAsyncIteration.
    """
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return ()


async def _copy(
    held: OpenRequest,
    response: web.StreamResponse,
    source: AsyncIterator[T],
    first: asyncio.Future[tuple[T, ...]],
    frame: Callable[[T], bytes],
    head: bytes,
    on_error: Callable[[Exception], bytes] | None,
) -> int:
    """Write all items. Return the number of bytes written."""
    sent = 0
    try:
        await _write(response, head)
        for item in await first:
            sent += await _write(response, frame(item))
        if first.result():
            async for item in source:
                sent += await _write(response, frame(item))
    except ConnectionError:  # the client has gone
        pass
    except Exception as e:
        if on_error is not None:
            with contextlib.suppress(ConnectionError):
                await _write(response, on_error(e))
        else:
            _cut(held.request, "its source failed", e)
    return sent


def _cut(request: web.Request, why: str, error: Exception | None = None) -> None:
    if request.transport is not None and not request.transport.is_closing():
        log.error("the stream %s to %s was cut: %s", request.path, connection_of(request).client, why, exc_info=error)
        request.transport.abort()


async def _write(response: web.StreamResponse, data: bytes) -> int:
    if data:
        await response.write(data)
    return len(data)


async def _finish(first: asyncio.Future[tuple[T, ...]], source: AsyncIterator[T]) -> None:
    """Close the source now.

    So its `finally` does not wait for garbage collection.
    """
    if not first.done():
        first.cancel()
        await asyncio.wait({first})
    if not first.cancelled():
        first.exception()  # seen
    close = getattr(source, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def _stopping() -> NotReady:
    return NotReady("the server is stopping", remedy="try again in a few seconds")


async def hold(streams: Streams, request: web.Request, work: Callable[[], Awaitable[T]], owner: str) -> T:
    """Return `await work()`.

    Raises NotReady if the server stops meanwhile, RateLimited if the owner has too many.
    """
    with OpenRequest(streams, request, "", owner):
        return await work()
    raise _stopping()
