"""Large frames that ZeroMQ holds because their agent does not read them.

ZeroMQ's high-water mark counts messages. Of large ones far fewer fit into memory, so their bytes
are counted here, until they have left for the network.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

#: Smaller frames are copied by pyzmq, which cannot tell when those have left.
LARGE_BYTES: Final = 65_536
BACKLOG_BYTES: Final = 32 << 20  # of one agent; above it gets nothing but what keeps its session


class Tracker(Protocol):
    """See zmq.MessageTracker."""

    @property
    def done(self) -> bool:
        """True once ZeroMQ does not hold the frame any more."""
        ...


class SendBacklog:
    """Bytes of large frames that are on their way, by endpoint."""

    def __init__(self) -> None:
        self._frames: dict[str, deque[tuple[int, Tracker]]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, endpoint: str, size_bytes: int, tracker: Tracker) -> bool:
        """Count a frame. Return True if the endpoint's agent is behind now."""
        self._frames.setdefault(endpoint, deque()).append((size_bytes, tracker))
        self._bytes[endpoint] = self._bytes.get(endpoint, 0) + size_bytes
        return self._bytes[endpoint] > BACKLOG_BYTES and not self._drop_sent(endpoint)

    def caught_up(self) -> list[str]:
        """Return the endpoints whose agents are not far behind any more."""
        return [endpoint for endpoint in list(self._frames) if self._drop_sent(endpoint)]

    def _drop_sent(self, endpoint: str) -> bool:
        frames, left = self._frames[endpoint], self._bytes[endpoint]
        while frames and frames[0][1].done:
            left -= frames.popleft()[0]
        self._bytes[endpoint] = left
        if not frames:
            del self._frames[endpoint], self._bytes[endpoint]
        return left <= BACKLOG_BYTES // 2
