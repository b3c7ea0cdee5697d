"""One HTTP connection, and how long its peer may take.

A peer has `patience` seconds. Waiting for it uses them up, and bytes give them back: a head must be
complete within HEAD_S, and a body or an answer must go on at RATE bytes a second or more, with
pauses of at most `timeout_s` (the setting http_timeout_s). A connection that the server itself does
not read, because it is busy, is not waited for. Connections (connections.py) asks each of them once
a second.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from oncue.dispatcher.http.dense_input import DenseInput

if TYPE_CHECKING:
    from aiohttp.web_server import Server

HEAD_S = 10.0  # for the first request, and for a head that has begun
RATE = 1_000.0  # bytes per second
IDLE_S = 75.0  # between requests without a token; longer than proxies keep theirs
KNOWN_IDLE_S = 3_600.0
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BodyTimeout(web.RequestPayloadError):
    """The rest of a body did not arrive in time."""


class Gate(Protocol):
    """The limits that a connection asks when it opens."""

    def admit(self, connection: Connection) -> bool:
        """Count a new connection. False: it is to be refused."""
        ...

    def recognized(self, connection: Connection, token_id: str) -> None:
        """Count a connection as its caller's, no longer as its address's."""
        ...

    def forwarded(self, connection: Connection, request: web.BaseRequest) -> None:
        """Count a trusted proxy's connection for the request's client. Raises RateLimited."""
        ...

    def finished(self, connection: Connection) -> None:
        """Count a trusted proxy's connection for the proxy again."""
        ...

    def answered(self, connection: Connection) -> None:
        """Note the first answer on a connection without a token."""
        ...

    def remove(self, connection: Connection) -> None:
        """Forget a connection that was lost."""
        ...


class Connection(web.RequestHandler):
    """aiohttp's protocol of one connection, which counts bytes and knows its caller."""

    __slots__ = (
        "_dense",
        "_gate",
        "_sent",
        "address",
        "begun",
        "client",
        "is_proxy",
        "on_answered",
        "owner",
        "patience",
        "peer",
        "reader",
        "received",
        "request",
        "requests",
        "since",
        "timeout_s",
    )

    def __init__(
        self,
        server: Server,
        gate: Gate,
        dense: DenseInput,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._gate, self._dense = gate, dense
        self.peer = ""  # the address at the other end
        self.client = ""  # the address of the request's client: the peer, or who is behind a trusted proxy
        self.address = ""  # for which the limits count
        self.reader = ("address", "")  # the token or address whose answers it carries
        self.is_proxy = False  # a trusted one
        self.owner = ""  # the token of its last authenticated request
        self.request: web.BaseRequest | None = None  # being handled
        self.requests = 0
        self.received = 0  # bytes since the last look
        self.begun = False  # some bytes of a head are there
        self.since = 0.0  # when it began to wait for a request, or for the rest of its head
        self.timeout_s = self.patience = timeout_s
        self.on_answered: Callable[[], None] | None = None  # the peer has taken the answer, or has gone
        self._sent = 0

    # ------------------------------------------------------------ events of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register, or refuse the connection. See asyncio.Protocol."""
        peer = transport.get_extra_info("peername")
        self.peer = self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        self.since = self._loop.time()
        self.transport = opened = cast(asyncio.Transport, transport)
        if self._gate.admit(self):
            super().connection_made(transport)
        else:
            opened.abort()

    def data_received(self, data: bytes) -> None:
        """Count and parse bytes. See asyncio.Protocol."""
        self.received += len(data)
        if data and self._is_refused:
            return
        if data and self._dense.must_wait(self, data):
            self._dense.add(self, data)
            self._pause_transport_reading()
        else:
            super().data_received(data)

    @property
    def _is_refused(self) -> bool:
        """True if the last head cannot be parsed: aiohttp answers 400, and closes.

        Its parser would make one more error of each later piece.
        """
        return bool(self._messages) and isinstance(self._messages[-1][0], _ErrInfo)

    @property
    def is_paused(self) -> bool:
        """True while a buffer is full. See aiohttp.base_protocol."""
        return self._reading_paused or self._buffer_paused

    def parse(self, data: bytes, last: bool) -> None:
        """Parse bytes that waited for their turn."""
        super().data_received(data)
        if self._is_refused:
            self._dense.remove(self)
        elif last and not self.is_paused:
            self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        """Read on, unless bytes wait already. See aiohttp.base_protocol."""
        if not self._dense.holds(self):
            super()._resume_transport_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Unregister. See asyncio.Protocol."""
        self._gate.remove(self)
        self._dense.remove(self)
        self._end_answer()
        super().connection_lost(exc)

    def _end_answer(self) -> None:
        """Note that the answer is no longer in memory."""
        if self.on_answered is not None:
            done, self.on_answered = self.on_answered, None
            done()

    def started(self, request: web.BaseRequest) -> None:
        """Note that a request is being handled. Raises RateLimited."""
        self.request = request
        self.requests += 1
        if self.is_proxy:
            self.patience = self.timeout_s
            self._gate.forwarded(self, request)

    def authenticated(self, token_id: str) -> None:
        """Note whose request this is."""
        if token_id != self.owner:
            self._gate.recognized(self, token_id)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the answer. See aiohttp.web.RequestHandler."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.request = None
            self._end_answer()
            if self.is_proxy:
                self._gate.finished(self)
            elif not self.owner and self.requests == 1 and resp.status < 400:
                self._gate.answered(self)
            self.since, self.begun, self.received = self._loop.time(), False, 0

    # ------------------------------------------------------------ once a second

    @property
    def waits(self) -> bool:
        """True while the connection waits for its peer: for a request, or the rest of one."""
        return self.request is None or not self.request.content.is_eof()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the peer has not taken yet."""
        transport = self.transport
        return 0 if transport is None or transport.is_closing() else transport.get_write_buffer_size()

    def overdue(self, now: float, passed: float) -> str:
        """Return why the connection is to end, "" if it may go on.

        `passed`: seconds since the last call.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return ""
        received, self.received = self.received, 0
        if transport.get_write_buffer_size():
            return self._wait(passed, self._flushed(transport), "answer")
        request = self.request
        if request is None:
            return self._wait_for_head(now, received)
        if not request.content.is_eof() and transport.is_reading():
            return self._wait(passed, received, "body")
        self.patience = min(self.timeout_s, self.patience + passed)
        return ""

    def _wait_for_head(self, now: float, received: int) -> str:
        if received and not self.begun:
            self.begun, self.since = True, now
        if self.begun or not (self.requests or self.is_proxy):
            return "head" if now - self.since > HEAD_S else ""
        is_known = self.owner or self.is_proxy
        return "idle" if now - self.since > (KNOWN_IDLE_S if is_known else IDLE_S) else ""

    def _wait(self, passed: float, progress: int, what: str) -> str:
        self.patience = min(self.timeout_s, self.patience - passed + progress / RATE)
        return what if self.patience < 0 else ""

    def _flushed(self, transport: asyncio.Transport) -> int:
        """Return how many bytes the peer has taken since the last call."""
        request = self.request
        written = request.writer.output_size if request is not None else 0
        sent = written - transport.get_write_buffer_size() - _unacknowledged(transport)
        progress, self._sent = max(0, sent - self._sent), sent
        return progress

    def end(self, why: str) -> None:
        """Close the connection.

        A body gets an answer from its handler, which reads the error; a head gets one here.
        """
        transport = self.transport
        if transport is None:
            return
        if why == "body" and self.request is not None and self.request.content.exception() is None:
            self.patience = self.timeout_s / 4  # for the answer
            self.request.content.set_exception(BodyTimeout("the rest of the body has not come in time"))
            self.close()
        elif why in ("head", "idle"):
            if self.begun:
                transport.write(_TIMED_OUT)
            self.force_close()
        else:
            transport.abort()


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return the bytes in the kernel's send buffer; 0 where it cannot be asked."""
    sock = transport.get_extra_info("socket")
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError, AttributeError):
        return 0


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection of a request."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection
