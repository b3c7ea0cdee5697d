"""Socket of the agent to which its nodes dial: ROUTER, CURVE, one key a block.

The user id of each message is the block whose key opened the connection. So a node reaches only
what its own block's nodes have. A message that cannot be read ends the node that sent it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

import zmq

from oncue import curve
from oncue.processes.descriptors import REFUSE_S
from oncue.text.log_lines import LineLimiter

log = logging.getLogger("oncue.agent")
READ_AT_ONCE = 256  # messages, before others of the loop have their turn
MOST_PARTS = 3  # of a message: route, envelope, body
LARGE_BYTES = 65_536

Received = Callable[[str, bytes, list[bytes]], None]  # (block, route, parts)


class NodeLink(Protocol):
    """Connections to nodes: a socket (below), or a simulated network."""

    @property
    def readable(self) -> bool:
        """True if messages wait."""
        ...

    def filenos(self) -> list[int]:
        """Return the descriptors to watch; they are edge-triggered."""
        ...

    def receive(self, on_message: Received) -> None:
        """Hand over what has arrived, a bounded number of messages."""
        ...

    def allow(self, block: str, public_key: bytes) -> None: ...

    def forbid(self, block: str, public_key: bytes) -> None: ...

    def close(self) -> None: ...

    def send(self, route: bytes, parts: list[bytes]) -> bool:
        """Send a message. Return False if the node has closed its connection."""
        ...


class NodeListener:
    """A bound socket. `port` 0 takes any free one.

    Raises Conflict if the port is taken, Invalid if the host is not an address of this machine.
    """

    def __init__(self, keys: curve.Keys, host: str, port: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._limited = LineLimiter(log)
        self._gate = curve.Gate(self._context, self._on_refused)
        self._socket = curve.router(self._context, keys)
        self._blocks: set[str] = set()
        self.key = keys.public
        try:
            self._listener = curve.bind(self._socket, host, port)
        except BaseException:
            self._close_sockets()
            raise
        self.port = self._listener.port

    def _on_refused(self, address: str, reason: str) -> None:
        self._limited.log(logging.WARNING, "refused", "a node at %s was refused: it has %s", address, reason)

    # ------------------------------------------------------------ blocks

    def allow(self, block: str, public_key: bytes) -> None:
        """Let the nodes of a block connect. Raises Invalid for a malformed key."""
        self._gate.allow(public_key, block)
        self._blocks.add(block)

    def forbid(self, block: str, public_key: bytes) -> None:
        """Refuse the block's nodes, also those that are connected."""
        self._gate.forbid(public_key)
        self._blocks.discard(block)

    # ------------------------------------------------------------ messages

    def filenos(self) -> list[int]:
        return [int(self._socket.getsockopt(zmq.FD)), self._gate.fileno()]

    def receive(self, on_message: Received) -> None:
        """Hand over what has arrived, at most READ_AT_ONCE messages."""
        if self._listener.watch():
            log.warning("too many connections to the port of nodes: for %g s it takes no others", REFUSE_S)
        self._gate.on_readable(READ_AT_ONCE)
        for _ in range(READ_AT_ONCE):
            if not self.readable:
                return
            try:
                frames = self._read()
            except zmq.ZMQError:
                return
            if frames is None:
                continue
            try:
                block = str(frames[-1].get("User-Id"))
            except zmq.ZMQError:  # not authenticated by ZAP; cannot happen
                continue
            if block in self._blocks:  # else it was forbidden, and its connection is open still
                on_message(block, frames[0].bytes, [f.bytes for f in frames[1:]])

    def _read(self) -> list[zmq.Frame] | None:
        """Return a message's parts; None if they are too many."""
        frames: list[zmq.Frame] = []
        count = 0
        while True:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            count += 1
            if count <= MOST_PARTS:
                frames.append(frame)
            if not frame.more:
                return frames if 2 <= count <= MOST_PARTS else None

    @property
    def readable(self) -> bool:
        return not self._socket.closed and bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def send(self, route: bytes, parts: list[bytes]) -> bool:
        try:
            self._socket.send_multipart([route, *parts], zmq.NOBLOCK, copy=sum(map(len, parts)) < LARGE_BYTES)
        except zmq.Again:  # it does not read: the gap in the numbers makes it dial again
            return True
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        self._close_sockets()
        self._listener.close()

    def _close_sockets(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._socket.close(linger=200)
        self._gate.close()
        self._context.destroy(linger=200)
