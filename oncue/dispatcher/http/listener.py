"""Accepts TCP connections, a few at a time.

An event loop's own server accepts all that wait in one go, and everybody else waits for that: a
thousand new connections take 0.3 s. This one leaves the loop its turn. Without a free descriptor it
pauses, and what waits stays in the system's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence

from oncue.text.log_lines import LineLimiter

lines = LineLimiter(logging.getLogger("oncue.api"))
AT_ONCE = 16
BACKLOG = 1_024
PAUSE_S = 0.5
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Sockets that listen, and the protocols of their connections."""

    def __init__(self, sockets: Sequence[socket.socket], make: Callable[[], asyncio.Protocol]) -> None:
        self._sockets, self._make = sockets, make
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        for listening in sockets:
            listening.setblocking(False)
            listening.listen(BACKLOG)
            self._loop.add_reader(listening, self._accept, listening)

    @property
    def port(self) -> int:
        """The port of the first socket."""
        return int(self._sockets[0].getsockname()[1])

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                peer, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                self._pause(listening, e)
                return
            task = self._loop.create_task(self._open(peer))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, peer: socket.socket) -> None:
        try:
            peer.setblocking(False)
            await self._loop.connect_accepted_socket(self._make, peer)
        except OSError:  # it has gone
            peer.close()

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        what = "no descriptors or memory are left" if error.errno in _NO_ROOM else "a connection was not accepted"
        lines.warning("accept", "%s: %s; new connections wait for %g s", what, error.strerror, PAUSE_S)
        self._loop.remove_reader(listening)
        self._paused[listening] = self._loop.call_later(PAUSE_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        del self._paused[listening]
        self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        for timer in self._paused.values():
            timer.cancel()
        for listening in self._sockets:
            if listening.fileno() >= 0:
                self._loop.remove_reader(listening)
                listening.close()
        for task in self._opening:
            task.cancel()


async def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to the addresses of a host; "": all. Raises OSError."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, host or None, port, start_serving=False)
    try:
        return [socket.socket(fileno=os.dup(bound.fileno())) for bound in server.sockets]
    finally:
        server.close()
        await server.wait_closed()
