"""Session of the agent with a server: phase, message numbers, timers. Pure.

DISCONNECTED ◄── Redirect ── (any)
DISCONNECTED ──connect_us──► (Connect, Hello, Inventory) HANDSHAKE ──Welcome──► CONNECTED
                                   ▲──────────── a gap, or Reset ──────────────────┤
DISCONNECTED ◄───────────────────────────────── silence ───────────────────────────┘
"""

from __future__ import annotations

import random
from enum import Enum

from oncue.endpoint.agent.effects import SendMessage
from oncue.protocol import bridge

BACKOFF_US, BACKOFF_CAP_US = 250_000, 10_000_000
WAIT_US = 500_000  # until a server acts for the endpoint
CIRCLE_US = 50_000  # before a second redirect in a row is followed; doubles each time
MAX_NUMBER = (1 << 63) - 1_000_000  # room for the sessions after it
BEAT_US, SILENCE_US = bridge.BEAT_MS * 1000, bridge.SILENCE_MS * 1000


class SessionPhase(Enum):
    """Phase of the session. The values are shown in status.json."""

    DISCONNECTED = "away"  # dials at connect_us
    HANDSHAKE = "greeting"  # Hello was sent
    CONNECTED = "connected"  # Welcome has arrived


class AgentSession:
    """State of the session.

    `epoch` is the highest one obeyed; every message carries it.
    """

    def __init__(self, rng: random.Random, epoch: int, now_us: int) -> None:
        self._rng = rng
        self.epoch = epoch
        self.phase = SessionPhase.DISCONNECTED
        self.connect_us = now_us
        self.number = 0  # of the session, higher each time, also than those of earlier processes
        self.expect = 0  # number of the bridge's next message
        self.failures = 0  # failed dials in a row
        self.welcomed = False  # once, by a server, since the process began
        self._redirects = 0  # in a row
        self._next = 0
        self._received_us = self._sent_us = now_us

    def begin(self, now_us: int) -> None:
        """Begin a new session; Hello is its first message."""
        if self.phase is not SessionPhase.HANDSHAKE:
            self._received_us = now_us  # the silence timer starts here
        self.phase = SessionPhase.HANDSHAKE
        self.number = max(self.number + 1, now_us)
        self._next = self.expect = 0

    def raise_number(self, above: int) -> None:
        """Number the next session higher than one that the server knows.

        An earlier process of this agent chose it, by a clock that was ahead of this one.
        """
        self.number = max(self.number, min(above, MAX_NUMBER))

    def on_received(self, now_us: int) -> None:
        """Note that the expected message has arrived."""
        self.expect += 1
        self._received_us = now_us

    def on_welcome(self) -> None:
        self.phase, self.failures, self._redirects = SessionPhase.CONNECTED, 0, 0
        self.welcomed = True

    def number_message(self, message: bridge.FromAgent, body: bytes, now_us: int) -> SendMessage:
        """Return the message with the session's next number."""
        head = bridge.encode(bridge.AgentEnvelope(self.number, self._next, self.epoch, message))
        self._next += 1
        self._sent_us = now_us
        return SendMessage([head, body] if body else [head])

    def back_off(self, now_us: int) -> None:
        """Schedule the next dial with exponential backoff and jitter."""
        pause = min(BACKOFF_CAP_US, BACKOFF_US << min(self.failures, 20))
        self.failures += 1
        self.connect_us = now_us + pause // 2 + int(self._rng.random() * pause / 2)

    def on_redirect(self, now_us: int, known: bool) -> None:
        """Schedule the next dial after a redirect.

        The first follows at once. Further ones pause ever longer, so that servers that disagree do
        not send the agent in circles. `known` is False if the server does not know yet where to
        send it.
        """
        pause = min(WAIT_US, CIRCLE_US << min(self._redirects, 10)) if self._redirects else 0
        self._redirects += 1
        self.failures = 0
        self.connect_us = now_us + (pause if known else WAIT_US // 2 + int(self._rng.random() * WAIT_US / 2))

    def timed_out(self, now_us: int) -> bool:
        """Return True if the server was silent for SILENCE_US."""
        return now_us - self._received_us > SILENCE_US

    def beat_due(self, now_us: int) -> bool:
        return now_us - self._sent_us >= BEAT_US

    def wake_us(self) -> int:
        """Return when a heartbeat is due or silence ends the session."""
        return min(self._sent_us + BEAT_US, self._received_us + SILENCE_US + 1)
