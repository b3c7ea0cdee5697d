"""Outcome streams of clients, and what they have not read yet.

If the streams of an owner have too much unread, the one with the most is closed: its client
connects again and requests the outcomes that it missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator

OWNER_BYTES = 256 << 20  # unread, of all streams of an owner
KEEP_ALIVE_S = 10.0


class OwnerStreams:
    """The streams of one owner by name, and how much they have unread together."""

    def __init__(self) -> None:
        self.by_name: dict[str, OutcomeStream] = {}
        self.unread_bytes = 0


class OutcomeStream:
    """Encoded outcomes that one client has not read yet."""

    def __init__(self, owner: OwnerStreams) -> None:
        self._owner = owner
        self._unread: deque[bytes] = deque()
        self.unread_bytes = 0
        self.ready = asyncio.Event()
        self.closed = False

    def enqueue(self, message: bytes) -> None:
        """Add a message. Closes the owner's fullest stream if too much is unread."""
        if self.closed:
            return
        self._unread.append(message)
        self._count(len(message))
        self.ready.set()
        if self._owner.unread_bytes > OWNER_BYTES:
            max(self._owner.by_name.values(), key=lambda stream: stream.unread_bytes).close()

    def read(self) -> Iterator[bytes]:
        """Yield the messages. Each counts as unread until the next one is wanted."""
        while self._unread:
            yield (message := self._unread[0])
            if not self.closed:
                self._unread.popleft()
                self._count(-len(message))
        self.ready.clear()

    def close(self) -> None:
        """End the stream. What is unread is dropped."""
        self.closed = True
        self._unread.clear()
        self._count(-self.unread_bytes)
        self.ready.set()

    def _count(self, size: int) -> None:
        self.unread_bytes += size
        self._owner.unread_bytes += size


class OutcomeStreams:
    """The open outcome streams of a server."""

    def __init__(self) -> None:
        self._owners: dict[str, OwnerStreams] = {}

    def get(self, name: str, owner: str) -> OutcomeStream | None:
        """Return the owner's open stream of this name."""
        found = self._owners.get(owner)
        return found.by_name.get(name) if found is not None else None

    async def read(self, name: str, owner: str) -> AsyncIterator[bytes]:
        """Yield the messages of a client's stream; b"" as a keep-alive.

        A second reader of an owner's stream takes it over.
        """
        if (old := self.get(name, owner)) is not None:
            old.close()
        streams = self._owners.setdefault(owner, OwnerStreams())
        stream = streams.by_name[name] = OutcomeStream(streams)
        try:
            yield b""  # the stream is subscribed
            while not stream.closed:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await stream.ready.wait()
                except TimeoutError:
                    yield b""
                    continue
                for message in stream.read():
                    yield message
        finally:
            stream.close()
            if streams.by_name.get(name) is stream:
                del streams.by_name[name]
            if not streams.by_name and self._owners.get(owner) is streams:
                del self._owners[owner]

    def close(self) -> None:
        """End all streams."""
        for owner in self._owners.values():
            for stream in owner.by_name.values():
                stream.close()
