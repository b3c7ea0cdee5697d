"""Numbered messages between the server and one agent; refusals of agents."""

from __future__ import annotations

from collections import deque

from oncue.dispatcher.bridge.effects import SendFrame
from oncue.protocol import bridge

MAX_EPOCH = 1 << 62  # more than any log has records


class MessageNumbers:
    """Message numbers and times since the agent's last Hello."""

    def __init__(self) -> None:
        self.number = 0  # chosen by the agent, higher for each Hello
        self._boot = b""  # of the agent's process
        self._earlier_boots: deque[bytes] = deque(maxlen=8)
        self.is_twin = False  # two processes with one key take turns
        self.expected = 0  # number of the agent's next message
        self.received_us = 0  # time of the agent's last message
        self.sent_us = 0
        self._next = 0  # number of the server's next message

    def is_next(self, number: int, hello: bridge.Hello, away: bool) -> bool:
        """Return True if this Hello begins a new session.

        A lower number is an old message, unless another process of the agent chose it by a clock
        that is behind. If that is certain (`away`: the old session has ended), it begins too.
        """
        return number > self.number or (away and number != self.number and hello.boot != self._boot)

    def is_behind(self, number: int, hello: bridge.Hello) -> bool:
        """Return True if another process of the agent must choose a higher number."""
        return number <= self.number and hello.boot != self._boot and hello.at_us > 0

    def start(self, number: int, hello: bridge.Hello, now_us: int) -> None:
        """Begin with the agent's Hello, which was message 0."""
        if hello.boot != self._boot:  # a process that has ended never comes back
            self.is_twin = hello.boot in self._earlier_boots
            self._earlier_boots.append(self._boot)
        self.number, self._boot, self.expected, self._next = number, hello.boot, 1, 0
        self.received_us = now_us

    def receive(self, now_us: int) -> None:
        """Count the expected message."""
        self.expected += 1
        self.received_us = now_us

    def frame(self, epoch: int, message: bridge.FromBridge, body: bytes, now_us: int) -> SendFrame:
        """Return the server's next message."""
        head = bridge.encode(bridge.BridgeEnvelope(self.number, self._next, epoch, message))
        self._next += 1
        self.sent_us = now_us
        return SendFrame([head, body] if body else [head])


def unnumbered(session: int, epoch: int, message: bridge.FromBridge) -> SendFrame:
    """Return a message without a number.

    It is for an agent without a valid session.
    """
    return SendFrame([bridge.encode(bridge.BridgeEnvelope(session, -1, epoch, message))])


def accepted_epoch(hello: bridge.Hello, epoch: int, sole: bool) -> int:
    """Return the epoch of a session with this agent.

    If the log is one server's (`sole`), no other server can have a later claim: an agent that knows
    one was with this server before an older log was put back. Then its epoch goes on.
    """
    return max(epoch, hello.epoch) if sole and hello.epoch < MAX_EPOCH else epoch


def refusal(hello: bridge.Hello, epoch: int, version: str) -> bridge.Refuse | None:
    """Return the refusal of an agent, or None if it is accepted.

    The agent is refused if its protocol is not that of this server (of release `version`), or if it
    knows a later claim of the endpoint than `epoch`.
    """
    if hello.protocol != bridge.PROTOCOL:
        return refuse_protocol(hello, version)
    if hello.held > bridge.HELD_TASKS:
        return bridge.Refuse(
            "inventory",
            f"the agent holds {hello.held:,} tasks; at most {bridge.HELD_TASKS:,} are taken",
            "register a new endpoint, and move the agent's folder away",
        )
    if hello.epoch > epoch:
        return bridge.Refuse("stale-epoch", "another server acts for this endpoint now", "")
    return None


def refuse_protocol(hello: bridge.Hello, version: str) -> bridge.Refuse:
    """Return the refusal of an agent with another protocol than this server's.

    `version`: the release of this server.
    """
    return bridge.Refuse(
        "version",
        f"the agent (oncue {hello.agent_version}) speaks protocol {hello.protocol}, this server (oncue {version}) speaks"
        f" {bridge.PROTOCOL}",
        f"install oncue {version} where the agent runs",
    )
