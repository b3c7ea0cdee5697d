"""Many callers and streams of one owner, in a process of their own.

    python -I busy_callers.py URL TOKEN,TOKEN... CALLERS STREAMS

Prints "ready" when the streams are open, and runs until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from urllib.parse import urlsplit

EVENT = json.dumps({"type": "busy", "source": "/busy", "data": "x" * 200})
PATHS = (("GET", "/v1/tasks?limit=100", ""), ("POST", "/v1/events", EVENT), ("GET", "/v1/endpoints", ""))


def request(method: str, path: str, token: str, body: str) -> bytes:
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{kind}\r\n{body}".encode()


async def answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])


async def call(host: str, port: int, token: str, counts: dict[int, int]) -> None:
    """Send requests one after the other, as fast as they are answered."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            while True:
                for method, path, body in PATHS:
                    writer.write(request(method, path, token, body))
                    status = await answer(reader)
                    counts[status] = counts.get(status, 0) + 1
        except (OSError, EOFError):
            await asyncio.sleep(0.1)


async def hold(host: str, port: int, token: str) -> asyncio.StreamReader:
    """Open a stream that is never read."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 12)
    writer.write(request("GET", "/v1/live", token, ""))
    await reader.readuntil(b"\r\n\r\n")
    return reader


async def main(url: str, token: str, callers: int, streams: int) -> None:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    counts: dict[int, int] = {}
    tokens = token.split(",")
    opening = (hold(host, port, tokens[i % len(tokens)]) for i in range(streams))
    held = await asyncio.gather(*opening, return_exceptions=True)
    tasks = [asyncio.create_task(call(host, port, tokens[i % len(tokens)], counts)) for i in range(callers)]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    streams_held = sum(isinstance(found, asyncio.StreamReader) for found in held)
    print(json.dumps({"statuses": counts, "streams": streams_held}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
