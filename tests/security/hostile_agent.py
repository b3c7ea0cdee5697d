"""An agent that says whatever a test wants, over a real CURVE socket."""

from __future__ import annotations

import os
import time
from types import TracebackType

import msgspec
import zmq

from oncue import curve
from oncue.protocol import bridge

Received = tuple[bridge.FromBridge, bytes]


class HostileAgent:
    """A peer with a key pair of its own. It keeps to the protocol's numbers unless told otherwise."""

    def __init__(
        self,
        address: str,
        server_key: bytes,
        keys: curve.Keys | None = None,
        *,
        plain: bool = False,
        routing_id: bytes = b"",
    ) -> None:
        self._context = zmq.Context()
        if plain:  # no CURVE
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.setsockopt(zmq.LINGER, 0)
        else:
            self._socket = curve.dealer(self._context, server_key, keys or curve.make_keys())
        if routing_id:
            self._socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self._socket.connect(address)
        self.session, self.n, self.epoch = time.time_ns() // 1000, 0, 0

    def __enter__(self) -> HostileAgent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close(0)
        self._context.term()

    def say(self, message: bridge.FromAgent, body: bytes | None = None) -> None:
        envelope = bridge.AgentEnvelope(self.session, self.n, self.epoch, message)
        self.n += 1
        self.raw([bridge.encode(envelope)] if body is None else [bridge.encode(envelope), body])

    def raw(self, parts: list[bytes]) -> None:
        self._socket.send_multipart(parts, zmq.NOBLOCK)

    def hello(self, held: int = 0, seconds: float = 3.0, **fields: object) -> list[Received]:
        """Open a session, and return what the bridge says to that."""
        from oncue import __version__

        self.session, self.n = max(self.session + 1, time.time_ns() // 1000), 0
        hello = bridge.Hello(
            protocol=bridge.PROTOCOL,
            agent_version=__version__,
            python="3.11",
            host="hostile",
            pid=1,
            boot=os.urandom(8),
            journal=os.urandom(8),
            workers=1,
            held=held,
        )
        self.say(msgspec.structs.replace(hello, **fields))
        found = self.hear(seconds)
        for message, _ in found:
            if isinstance(message, bridge.Welcome):
                self.epoch = message.epoch
        return found

    def hear(self, seconds: float) -> list[Received]:
        """Return what arrives until nothing has for a moment."""
        found: list[Received] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._socket.poll(max(1, int(1000 * left))):
                break
            envelope, body = bridge.decode_from_bridge(self._socket.recv_multipart())
            found.append((envelope.message, body))
            deadline = min(deadline, time.monotonic() + 0.2)
        return found
