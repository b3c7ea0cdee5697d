"""Bodies of tiny chunks, heads of short lines, and floods of bytes that nobody wants."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time

import pytest

from tests.e2e.running import System
from tests.security.raw_http import connect, exchange, head, in_threads, read_all, status
from tests.security.stall import check_no_stall

TINY = b"1\r\na\r\n"
PATHS = ("/hooks/nothing", "/v1/tasks/batch", "/nowhere")


def chunked(data: bytes, size: int) -> bytes:
    """Return a body in chunks of `size` bytes."""
    pieces = (data[i : i + size] for i in range(0, len(data), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("known", [False, True], ids=["no token", "token"])
def test_bodies_of_tiny_chunks_hold_nobody_up(served: System, path: str, known: bool) -> None:
    url = served.local["url"]
    headers = {"Transfer_Encoding": "chunked", "Content_Type": "application/json"}
    if known:
        headers["Authorization"] = f"Bearer {served.local['token']}"
    request = head("POST", path, **headers) + TINY * 200_000

    def ask() -> None:
        with connect(url) as peer, contextlib.suppress(ConnectionError, TimeoutError):
            peer.settimeout(10)
            peer.sendall(request)
            read_all(peer)

    check_no_stall(url, lambda: in_threads(16, ask))


#: Name -> what comes first, and what comes without end after it. No buffer of a body fills by these.
UPGRADE = {"Upgrade": "websocket", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13"}
FLOODS = {
    "an extension of a chunk": (head("GET", "/health/live", Transfer_Encoding="chunked") + b"1;", b"a"),
    "bytes after an upgrade": (head("GET", "/health/live", **UPGRADE).replace(b"close", b"Upgrade"), b"x"),
    "a body that is not wanted": (head("GET", "/health/live", length=10**12), b"x"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_that_fill_no_buffer_hold_nobody_up(served: System, flood: str) -> None:
    url = served.local["url"]
    first, then = FLOODS[flood]
    end = 0.0

    def ask() -> None:
        while time.monotonic() < end:
            with connect(url) as peer, contextlib.suppress(OSError):
                peer.sendall(first)
                while time.monotonic() < end:
                    peer.sendall(then * (256 << 10))

    def attack() -> None:
        nonlocal end
        end = time.monotonic() + 4
        in_threads(32, ask)

    check_no_stall(url, attack)


@pytest.mark.parametrize("size", [1, 7, 50, 5_000])
def test_a_body_in_chunks_of_any_size_arrives_whole(served: System, size: int) -> None:
    event = {"specversion": "1.0", "type": "t", "source": "s", "id": f"chunks-{size}", "data": {"x": "y\n" * 20_000}}
    body = json.dumps(event).encode()
    request = head(
        "POST",
        "/v1/events",
        Transfer_Encoding="chunked",
        Content_Type="application/cloudevents+json",
        Authorization=f"Bearer {served.local['token']}",
    )

    answer = exchange(served.local["url"], request + chunked(body, size))

    assert status(answer) in (200, 202), answer[:500]
    wanted = f"chunks-{size}".encode()
    served.await_true(lambda: wanted in served.http("GET", "/v1/events?limit=1").body, "the event is shown")


def test_a_body_of_short_lines_with_a_length_arrives_whole(served: System) -> None:
    lines = b"0.1, 0.2\r\n" * 500_000
    answer = served.http("PUT", f"/v1/blobs/{hashlib.sha256(lines).hexdigest()}", lines)

    assert answer.status in (200, 201, 204), answer.body[:500]


def test_heads_of_many_lines_are_refused_and_leave_no_memory(served: System) -> None:
    url = served.local["url"]
    request = head("GET", "/v1/me", **{f"X_{i}": "a" for i in range(200_000)})
    before = served.server.memory_info().rss
    peaks: list[int] = []

    def attack() -> None:
        for _ in range(5):
            in_threads(8, lambda: exchange(url, request))
            peaks.append(served.server.memory_info().rss)

    check_no_stall(url, attack)

    assert status(exchange(url, request)) in (0, 400)  # 0: closed while it was still sent
    assert max(peaks) < before + (200 << 20)
