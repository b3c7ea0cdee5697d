"""Session of the agent with a node's process. Pure.

This is the server's side of protocol/bridge.py.

AWAY ──Hello──► INVENTORY ──all tasks named──► READY ──silence, or a closed connection──► AWAY
"""

from __future__ import annotations

from enum import Enum

from oncue.protocol import bridge

BEAT_US = bridge.BEAT_MS * 1000


class NodePhase(Enum):
    """Phase of the connection to a node. The values are shown in status.json."""

    AWAY = "away"  # no session; it may come back
    INVENTORY = "greeting"  # it names the tasks that it holds
    READY = "connected"


class NodeSession:
    """Numbers and times of the session. `epoch` is that of this process of the agent."""

    def __init__(self, epoch: int, now_us: int) -> None:
        self.epoch = epoch
        self.phase = NodePhase.AWAY
        self.number = 0  # chosen by the node, higher for each Hello
        self.received_us = now_us
        self._expect = self._next = 0
        self._sent_us = now_us

    def begin(self, number: int, hello: bridge.Hello, now_us: int) -> bool:
        """Begin with the node's Hello. Return False if it is an old one."""
        if number <= self.number:
            return False
        # A node that was with an agent whose clock is ahead obeys that one's epoch.
        self.epoch = max(self.epoch, hello.epoch)
        self.number, self._expect, self._next = number, 1, 0
        self.phase, self.received_us = NodePhase.INVENTORY, now_us
        return True

    def accept(self, envelope: bridge.AgentEnvelope, now_us: int) -> bool | None:
        """Return True for the next message, False for one to drop, None if one was lost."""
        if envelope.session != self.number:
            return False
        if self.phase is NodePhase.AWAY or envelope.n > self._expect:
            return None
        if envelope.n < self._expect:
            return False
        self._expect += 1
        self.received_us = now_us
        return True

    def message(self, message: bridge.FromBridge, body: bytes, now_us: int) -> list[bytes]:
        """Return the next message to the node."""
        head = bridge.encode(bridge.BridgeEnvelope(self.number, self._next, self.epoch, message))
        self._next += 1
        self._sent_us = now_us
        return [head, body] if body else [head]

    def unnumbered(self, message: bridge.FromBridge) -> list[bytes]:
        """Return a message that needs no session."""
        return [bridge.encode(bridge.BridgeEnvelope(self.number, -1, self.epoch, message))]

    def beat_due(self, now_us: int) -> bool:
        return now_us - self._sent_us >= BEAT_US
