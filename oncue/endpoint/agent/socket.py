"""The agent's socket: an encrypted DEALER, made anew with each dial.

ZeroMQ's file descriptor is edge-triggered: after it was readable, and after each send, read until
there is nothing more.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import zmq

from oncue import curve
from oncue.errors import OncueError

READ_AT_ONCE = 256
EVENTS = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED


class ConnectionProblem(Enum):
    """A problem that the socket's monitor reports."""

    KEY_REFUSED = "the server does not know our key"
    CLOSED = "the server closed the connection"
    NO_ANSWER = "nobody answers there"  # ZeroMQ retries by itself


_PROBLEMS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: ConnectionProblem.KEY_REFUSED,
    zmq.EVENT_DISCONNECTED: ConnectionProblem.CLOSED,
    zmq.EVENT_CONNECT_RETRIED: ConnectionProblem.NO_ANSWER,
}


class AgentLink(Protocol):
    """Connection to a server, as the loop uses it: a socket, or a simulated one."""

    connects: int

    @property
    def readable(self) -> bool:
        """True if messages wait."""
        ...

    def filenos(self) -> list[int]: ...

    def receive(self) -> list[list[bytes]]: ...

    def send(self, parts: list[bytes]) -> None: ...


class AgentSocket:
    """The connection to a server; it holds at most one."""

    def __init__(self, keys: curve.Keys) -> None:
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self.lost = 0  # frames that could not be sent
        self.connects = 0

    def connect(self, address: str, server_key: bytes) -> None:
        """Close the connection, if any, and dial.

        Raises Invalid for a bad key or address, OncueError if no descriptor is left.
        """
        self.disconnect()
        try:
            self._socket = curve.dealer(self._context, server_key, self._keys)
            self._monitor = self._socket.get_monitor_socket(EVENTS)
        except zmq.ZMQError as e:
            self.disconnect()
            raise OncueError(f"cannot dial: {e.strerror}", remedy="see what opens so many files: lsof") from None
        socket = self._socket
        self.connects += 1
        curve.connect(socket, address)

    def disconnect(self, linger_ms: int = 0) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger_ms)
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket = self._monitor = None

    def filenos(self) -> list[int]:
        """Return the descriptors to watch for reading: messages and monitor."""
        return [int(s.getsockopt(zmq.FD)) for s in (self._socket, self._monitor) if s is not None]

    def receive(self) -> list[list[bytes]]:
        """Return messages, at most READ_AT_ONCE: if it is full, call again.

        Asking first if there is a message costs a third of the exception that says there is none.
        """
        out: list[list[bytes]] = []
        try:
            while self.readable and len(out) < READ_AT_ONCE:
                out.append(self._socket.recv_multipart(zmq.NOBLOCK))  # type: ignore[union-attr]
        except zmq.Again:
            pass
        return out

    @property
    def readable(self) -> bool:
        return self._socket is not None and bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def send(self, parts: list[bytes]) -> None:
        """Send a message.

        A lost one leaves a gap in the numbers, which restarts the session.
        """
        if self._socket is None:
            return
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=sum(map(len, parts)) < 65_536)
        except zmq.ZMQError:
            self.lost += 1

    def problems(self) -> dict[ConnectionProblem, int]:
        """Return problems since the last call.

        KEY_REFUSED has curve.UNKNOWN or curve.REVOKED.
        """
        found: dict[ConnectionProblem, int] = {}
        if self._monitor is None or not int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return found
        from zmq.utils.monitor import recv_monitor_message  # on use: it imports asyncio, and a node is to start soon

        while self._monitor is not None and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            problem = _PROBLEMS.get(zmq.Event(message["event"]))
            if problem is not None:
                found[problem] = int(message["value"])
        return found

    def close(self) -> None:
        self.disconnect(500)  # a Bye on its way
        self._context.term()
