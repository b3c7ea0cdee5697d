"""The stream of outcomes, as it comes from the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from oncue.client.http import Connection

CHECKS_S = (30.0, 60.0, 120.0, 300.0)  # an outcome that the stream did not bring is asked for after these pauses


def messages(
    connection: Connection, headers: dict[bytes, bytes], check: Callable[[float], None]
) -> Iterator[bytes | memoryview]:
    """The stream's messages: each is 4 bytes of length (big endian), then its bytes; length 0 is a sign of life, and the
    moment to ask for what the stream should have brought long ago."""
    checks, due = iter(CHECKS_S), time.monotonic() + CHECKS_S[0]
    pause = next(checks)
    buffer = bytearray()
    for part in connection.parts(headers):
        if not buffer and len(part) >= 4 and int.from_bytes(part[:4], "big") == len(part) - 4 > 0:
            yield memoryview(part)[4:]
        else:
            buffer += part
            while len(buffer) >= 4 and len(buffer) >= (size := 4 + int.from_bytes(buffer[:4], "big")):
                if size > 4:
                    yield bytes(buffer[4:size])
                del buffer[:size]
        if time.monotonic() > due:
            check(pause)
            pause = next(checks, CHECKS_S[-1])
            due = time.monotonic() + pause
