"""Bytes with many short lines, or many at once, parsed a piece in each turn.

aiohttp's parser takes some µs for a line of a head and for a chunk of a body, however short. One
read of a socket may bring 40,000 chunks of one byte, or 256 KiB of an extension of a chunk, which
no buffer ever bounds, and a turn of the loop reads all sockets. So such bytes wait here, and the
connections take turns. Large bodies come here too: their pieces are parsed as fast as they arrive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

SHORT = 64  # average bytes a line
LEAST = 2_048  # bytes; fewer are parsed at once
LARGE = 64 * 1024  # bytes of one read; a turn of the loop parses one such read at once
LINES = 1_024  # in one turn
PAUSE_S = 0.01  # until connections are asked again, if all are paused


class DenseConnection(Protocol):
    """A connection with bytes that wait."""

    @property
    def is_paused(self) -> bool:
        """True while the connection's buffers are full."""
        ...

    def parse(self, data: bytes, last: bool) -> None:
        """Parse bytes. `last`: none wait any more."""
        ...


class DenseInput:
    """Waiting bytes of all connections of a server."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[DenseConnection, deque[tuple[bytes, int]]] = {}  # (bytes, size of a piece)
        self._timer: asyncio.Handle | None = None
        self._had_large = False  # in this turn of the loop

    def must_wait(self, connection: DenseConnection, data: bytes) -> bool:
        """Return True if bytes that were read are to wait for their turn."""
        if connection in self._waiting or _is_dense(data):
            return True
        if len(data) < LARGE:
            return False
        if self._waiting or self._had_large:
            return True
        self._had_large = True
        self._loop.call_soon(self._new_turn)
        return False

    def _new_turn(self) -> None:
        self._had_large = False

    def holds(self, connection: DenseConnection) -> bool:
        """Return True if bytes of this connection wait. Later ones must wait, too."""
        return connection in self._waiting

    def add(self, connection: DenseConnection, data: bytes) -> None:
        """Let bytes wait for their turn."""
        size = max(LEAST, LINES * len(data) // max(1, data.count(b"\n")))
        self._waiting.setdefault(connection, deque()).append((data, size))
        if self._timer is None:
            self._timer = self._loop.call_soon(self._turn)

    def remove(self, connection: DenseConnection) -> None:
        """Forget the bytes of a connection that was lost."""
        self._waiting.pop(connection, None)

    def _turn(self) -> None:
        """Parse one piece, of the connection that has waited longest."""
        self._timer = None
        connection = next((c for c in self._waiting if not c.is_paused), None)
        if connection is not None:
            pieces = self._waiting.pop(connection)
            data, size = pieces.popleft()
            if len(data) > size:
                pieces.appendleft((data[size:], size))
            if pieces:
                self._waiting[connection] = pieces  # now the last one
            connection.parse(data[:size], not pieces)
        if self._waiting and self._timer is None:
            self._timer = (
                self._loop.call_soon(self._turn)
                if connection is not None
                else self._loop.call_later(PAUSE_S, self._turn)
            )


def _is_dense(data: bytes) -> bool:
    """Return True if these bytes have many short lines, as tiny chunks have."""
    return len(data) > LEAST and data.count(b"\n") * SHORT > len(data)
