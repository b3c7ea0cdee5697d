"""Limits of the HTTP connections of a server: per address, per token, in total.

A new connection counts for its address until a request on it is authenticated, then for its token.
If an address or the server has too many that are not authenticated, the oldest of those that wait
for their peer makes room, one that was never answered before one that was. So a caller with a token
gets in, whoever holds connections open.

A trusted proxy's connection counts for each request's client while the request is handled, and
between requests for the proxy, of which an address may have any number.

    accept ──► admit: room? else end the one that has waited longest ──► authenticated
    every second: end those whose peer sends or takes nothing, or too little
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

from aiohttp import web

from oncue.dispatcher.http.client_address import TrustedProxies, block
from oncue.dispatcher.http.connection import KNOWN_IDLE_S, Connection
from oncue.dispatcher.http.dense_input import DenseInput
from oncue.errors import RateLimited

log = logging.getLogger("oncue.api")
SWEEP_S = 1.0
LEAST = 32
UNSENT = 128 * 1024 * 1024  # bytes of answers that peers of one token or address have not taken
UNKNOWN_SHARE = 2  # one in so many of all connections may be without a token


def most_connections(descriptors: int) -> int:
    """Return how many connections leave enough descriptors for files and agents."""
    return max(LEAST, descriptors - max(96, descriptors // 4))


class _Unknown:
    """Connections of one address without a token, oldest first."""

    __slots__ = ("answered", "fresh")

    def __init__(self) -> None:
        self.fresh: dict[Connection, None] = {}  # no request was answered, or all were refused
        self.answered: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self.fresh) + len(self.answered)


class Connections:
    """All open connections. `make` is a protocol factory for `loop.create_server`."""

    def __init__(
        self,
        server: web.Server,
        per_address: int,
        per_token: int,
        most: int,
        ended: Callable[[str], None],
        proxies: TrustedProxies,
        timeout_s: float,
        **options: Any,
    ) -> None:
        self._server, self._options = server, options
        self._per_address, self._per_token, self._most = per_address, per_token, most
        self._proxies, self._timeout_s = proxies, timeout_s
        self._ended = ended  # counts why connections were ended
        self._unknown: dict[str, _Unknown] = {}  # by address
        self._unknown_count = 0
        self._owned: Counter[str] = Counter()
        self._open: dict[Connection, None] = {}
        self._loop = asyncio.get_running_loop()
        self._dense = DenseInput(self._loop)
        self._swept = self._loop.time()
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def make(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(
            self._server,
            self,
            self._dense,
            self._loop,
            self._timeout_s,
            keepalive_timeout=KNOWN_IDLE_S + 30,
            **self._options,
        )

    def __len__(self) -> int:
        return len(self._open)

    # ------------------------------------------------------------ Gate

    def admit(self, connection: Connection) -> bool:
        """See Gate."""
        connection.is_proxy = self._proxies.trusts(connection.peer)
        address = block(connection.peer)
        if not connection.is_proxy and not self._has_room(address):
            self._ended("address")
            return False
        full = len(self._open) >= self._most or self._unknown_count >= self._most // UNKNOWN_SHARE
        if full and not self._make_room(max(self._unknown.values(), key=len, default=_Unknown())):
            self._ended("full")
            return False
        self._open[connection] = None
        self._count(connection, address)
        connection.reader = ("address", address)
        return True

    def _has_room(self, address: str) -> bool:
        """Return True if one more may count for the address. Makes room for it."""
        same = self._unknown.get(address) or _Unknown()
        return self._per_address == 0 or len(same) < self._per_address or self._make_room(same)

    def _count(self, connection: Connection, address: str, answered: bool = False) -> None:
        """Count the connection for an address."""
        connection.address, connection.owner = address, ""
        same = self._unknown.setdefault(address, _Unknown())
        (same.answered if answered else same.fresh)[connection] = None
        self._unknown_count += 1

    def forwarded(self, connection: Connection, request: web.BaseRequest) -> None:
        """See Gate."""
        if connection not in self._open:  # it is being closed
            return
        connection.client = self._proxies.client(connection.peer, request)
        self._forget(connection)
        address = block(connection.client)
        has_room = address == block(connection.peer) or self._has_room(address)
        self._count(connection, address)
        connection.reader = ("address", address)
        if not has_room:
            self._ended("address")
            raise RateLimited(
                f"{self._per_address} unfinished requests from {connection.client}, through {connection.peer}",
                remedy="end some of them first",
                retry_after_s=1,
            )

    def finished(self, connection: Connection) -> None:
        """See Gate."""
        if connection in self._open:
            self._forget(connection)
            self._count(connection, block(connection.peer), answered=True)

    def _make_room(self, among: _Unknown) -> bool:
        for connection in chain(among.fresh, among.answered):
            if connection.waits:
                self.remove(connection)
                self._ended("replaced")
                if connection.transport is not None:
                    connection.transport.abort()
                return True
        return False

    def answered(self, connection: Connection) -> None:
        """See Gate."""
        same = self._unknown.get(connection.address)
        if same is not None and connection in same.fresh:
            del same.fresh[connection]
            same.answered[connection] = None

    def recognized(self, connection: Connection, token_id: str) -> None:
        """See Gate."""
        if connection not in self._open:  # it is being closed
            return
        self._forget(connection)
        connection.owner = token_id
        connection.reader = ("token", token_id)
        self._owned[token_id] += 1
        if self._owned[token_id] > self._per_token > 0:
            connection.keep_alive(False)
            self._end_idle(token_id)

    def _end_idle(self, token_id: str) -> None:
        """End the connection of this token that was used least recently."""
        idle = [c for c in self._open if c.owner == token_id and c.request is None]
        if idle:
            self._ended("token")
            min(idle, key=lambda c: c.since).force_close()

    def remove(self, connection: Connection) -> None:
        """See Gate."""
        if connection in self._open:
            del self._open[connection]
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection.owner:
            self._owned[connection.owner] -= 1
            if not self._owned[connection.owner]:
                del self._owned[connection.owner]
            return
        same = self._unknown[connection.address]
        same.fresh.pop(connection, None)
        same.answered.pop(connection, None)
        self._unknown_count -= 1
        if not len(same):
            del self._unknown[connection.address]

    # ------------------------------------------------------------ once a second

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        now = self._loop.time()
        # A loop that was held has not read: that is not the peer's fault.
        passed, self._swept = min(now - self._swept, 2 * SWEEP_S), now
        for connection in list(self._open):
            why = connection.overdue(now, passed)
            if why:
                self._ended(why)
                connection.end(why)
        self._bound_unsent()

    def _bound_unsent(self) -> None:
        """Cut connections of a token or address whose peers leave too much in memory.

        Each takes its answer fast enough, but together they hold it.
        """
        unsent: dict[tuple[str, str], list[tuple[int, Connection]]] = {}
        for connection in self._open:
            if size := connection.unsent:
                unsent.setdefault(connection.reader, []).append((size, connection))
        for waiting in unsent.values():
            total = sum(size for size, _ in waiting)
            waiting.sort(key=lambda pair: pair[0])
            while total > UNSENT:
                size, connection = waiting.pop()
                total -= size
                self._ended("unsent")
                connection.end("answer")

    def close(self) -> None:
        """Stop looking at connections."""
        self._timer.cancel()
