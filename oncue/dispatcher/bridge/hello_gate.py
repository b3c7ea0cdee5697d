"""Decides whether a Hello begins a session; fences a second agent of an endpoint.

An endpoint has one agent. A copied folder, or a login node that came back, may bring a second
process with the same key. The first one that is alive stays:

    Hello of another process ─► the present one has said Bye, or was silent for SILENCE_MS: begins
                             ─► it is the successor of the present one (`after`): begins
                             ─► the present one speaks ALIVE_US later: Refuse
                             ─► else: Redirect to here, so that it asks again in half a second

Agents of former versions do not say whom they succeed; theirs begins at once.
"""

from __future__ import annotations

from oncue.dispatcher.bridge.agent_limits import HELLOS, HELLOS_PER_S
from oncue.dispatcher.bridge.effects import Dropped
from oncue.dispatcher.bridge.message_numbers import MessageNumbers
from oncue.dispatcher.token_bucket import TokenBucket
from oncue.protocol import bridge

ALIVE_US = 6_000_000  # behind a second agent's arrival: messages of a dead one were on their way


class HelloGate:
    """Admits the Hello messages of one endpoint."""

    def __init__(self) -> None:
        self._tokens = TokenBucket(HELLOS, HELLOS_PER_S)  # each makes the server read the view
        self._present: bridge.Hello | None = None  # of the agent whose session it is
        self._rival = b""  # another process that asks
        self._rival_us = 0  # since when
        self.fenced = -1  # number of its session, whose other messages are not answered

    def admit(
        self, number: int, hello: bridge.Hello, session: MessageNumbers, away: bool, now_us: int
    ) -> bool | Dropped | bridge.FromBridge:
        """Return True if the Hello begins a session, False if it is old, else the answer."""
        present = self._present
        if present is not None and not away and _may_be_rival(hello, present):
            return self._fence(number, hello, present, session.received_us, now_us)
        if not session.is_next(number, hello, away):
            behind = session.is_behind(number, hello)
            return behind and bridge.Reset("the agent's clock was ahead before", session.number)
        if not self._tokens.take(1, now_us / 1e6):
            return Dropped("hello", "said hello too often")  # the agent repeats it
        self._present, self._rival = hello, b""
        return True

    def _fence(
        self, number: int, hello: bridge.Hello, present: bridge.Hello, heard_us: int, now_us: int
    ) -> bridge.Refuse | bridge.Redirect:
        """Refuse the second agent if the present one is alive; else ask it to wait."""
        if hello.boot != self._rival:
            self._rival, self._rival_us = hello.boot, now_us
        self.fenced = number
        where = f"host {present.host}, pid {present.pid}"
        if heard_us < self._rival_us + ALIVE_US:
            return bridge.Redirect(why=f"another agent of this endpoint ({where}) was connected; waiting whether it is")
        return bridge.Refuse(
            bridge.OTHER_AGENT,
            f"another agent of this endpoint runs ({where}); an endpoint has one agent",
            f"stop that one first: oncue endpoint stop NAME, on {present.host}. For a second endpoint, register another"
            " name in another folder",
        )


def _may_be_rival(hello: bridge.Hello, present: bridge.Hello) -> bool:
    """Return True if both processes may be alive."""
    return hello.boot != present.boot and hello.after is not None and hello.after != present.boot
