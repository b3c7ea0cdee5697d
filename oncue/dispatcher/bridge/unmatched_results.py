"""Results that match no task in flight: the view is asked for their tasks."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import Call, Ended

MAX_BYTES = 128 << 20  # an honest agent has at most outbox.UNACKED_BYTES of them


class UnmatchedResults:
    """Result messages of one agent that wait for the view's answer."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[bridge.Results, list[Ended], int]] = {}  # by token; with bytes
        self._bytes = 0

    def add(self, token: int, message: bridge.Results, ends: list[Ended], size_bytes: int) -> bool:
        """Add a message. Return False, and add nothing, if too much waits."""
        if self._bytes + size_bytes > MAX_BYTES:
            return False
        self._waiting[token] = (message, ends, size_bytes)
        self._bytes += size_bytes
        return True

    def pop(self, token: int, calls: Mapping[bytes, Call]) -> tuple[bridge.Results, list[Ended], int] | None:
        """Remove a message; return it, the ends that count, the number of others.

        `calls`: of those tasks that are this endpoint's. Others' results were invented by the
        agent, or the server crashed before it acknowledged the request. Results of several calls in
        one message are invented, too. The returned message has the view's call, not the agent's.
        None if the message is of a former session.
        """
        found = self._waiting.pop(token, None)
        if found is None:
            return None
        message, ends, size = found
        self._bytes -= size
        call = next((calls[e.id] for e in ends if e.id in calls), None)
        kept = [e for e in ends if e.id in calls and calls[e.id] == call]
        if call is not None:
            message = msgspec.structs.replace(message, call=encode(call))
        return message, kept, len(ends) - len(kept)

    def clear(self) -> None:
        """Forget all; the agent sends them again in its next session."""
        self._waiting.clear()
        self._bytes = 0
