"""The agent's side of a link: its phase, the numbers of its messages, when to dial, beat and give up. Pure.

AWAY ◄── Redirect ── (any)
AWAY ──dial_us──► (Dial, Hello, Inventory) GREETING ──Welcome──► READY ──silence──► AWAY
                             ▲─────────── a gap, or Reset ─────────┘
"""

from __future__ import annotations

import random
from enum import Enum

from oncue.endpoint.agent.effects import Send
from oncue.protocol import bridge

BACKOFF_US, BACKOFF_CAP_US = 250_000, 10_000_000
WAIT_US = 500_000  # until somebody acts for the endpoint
CIRCLE_US = 50_000  # before a second redirect in a row is followed; doubles each time
BEAT_US, SILENCE_US = bridge.BEAT_MS * 1000, bridge.SILENCE_MS * 1000


class Phase(Enum):
    AWAY = "away"  # no link; dials at dial_us
    GREETING = "greeting"  # said hello
    READY = "connected"  # welcomed


class Session:
    """`epoch` is the highest that was obeyed; it travels in each frame."""

    def __init__(self, rng: random.Random, epoch: int, now_us: int) -> None:
        self._rng = rng
        self.epoch = epoch
        self.phase = Phase.AWAY
        self.dial_us = now_us
        self.number = 0  # of the session, higher each time
        self.expect = 0  # number of the bridge's next message
        self.failures = 0  # dials in a row that led nowhere
        self._redirects = 0  # in a row
        self._next = 0
        self._heard_us = self._said_us = now_us

    def begin(self, now_us: int) -> None:
        """Before a Hello."""
        if self.phase is not Phase.GREETING:
            self._heard_us = now_us  # the server's silence counts from here
        self.phase = Phase.GREETING
        self.number = max(self.number + 1, now_us)
        self._next = self.expect = 0

    def heard(self, now_us: int) -> None:
        """The message that was expected has come."""
        self.expect += 1
        self._heard_us = now_us

    def welcomed(self) -> None:
        self.phase, self.failures, self._redirects = Phase.READY, 0, 0

    def frame(self, message: bridge.FromAgent, body: bytes, now_us: int) -> Send:
        """The next message, numbered."""
        head = bridge.encode(bridge.AgentEnvelope(self.number, self._next, self.epoch, message))
        self._next += 1
        self._said_us = now_us
        return Send([head, body] if body else [head])

    def put_off(self, now_us: int) -> None:
        """Dial again, but not at once: ever later, and not when all the others do."""
        pause = min(BACKOFF_CAP_US, BACKOFF_US << min(self.failures, 20))
        self.failures += 1
        self.dial_us = now_us + pause // 2 + int(self._rng.random() * pause / 2)

    def redirected(self, now_us: int, known: bool) -> None:
        """Told whom to dial: at once, but not in circles, while the servers do not agree. Or nobody is known yet."""
        pause = min(WAIT_US, CIRCLE_US << min(self._redirects, 10)) if self._redirects else 0
        self._redirects += 1
        self.failures = 0
        self.dial_us = now_us + (pause if known else WAIT_US // 2 + int(self._rng.random() * WAIT_US / 2))

    def silent(self, now_us: int) -> bool:
        """Whether the other side is to be taken as gone."""
        return now_us - self._heard_us > SILENCE_US

    def owes_beat(self, now_us: int) -> bool:
        return now_us - self._said_us >= BEAT_US

    def wake_us(self) -> int:
        """While there is a link: when silence ends it, or a beat is due."""
        return min(self._said_us + BEAT_US, self._heard_us + SILENCE_US + 1)
