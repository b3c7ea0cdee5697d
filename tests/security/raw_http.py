"""HTTP as an attacker sends it: bytes on sockets, from several threads."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

TIMEOUT_S = 60.0


def connect(url: str, receive_bytes: int = 0, source: str = "") -> socket.socket:
    """Open a connection to the server of this URL.

    `receive_bytes`: of its buffer, if not the system's. `source`: the address from which it comes.
    """
    parts = urlsplit(url)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.socket())
        peer.settimeout(TIMEOUT_S)
        if receive_bytes:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)  # before connect: it sets the window
        if source:
            peer.bind((source, 0))
        peer.connect((parts.hostname or "", parts.port or 80))
        stack.pop_all()
        return peer


def head(method: str, path: str, length: int | None = None, **headers: str) -> bytes:
    """Return the head of a request. In names of headers, "_" stands for "-"."""
    lines = [f"{method} {path} HTTP/1.1", "Host: a", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def exchange(url: str, sent: bytes, source: str = "") -> bytes:
    """Send bytes, and return all that is answered until the server closes.

    A connection that the server resets while it is written to is no failure.
    """
    with connect(url, source=source) as peer:
        with contextlib.suppress(ConnectionError):
            peer.sendall(sent)
        return read_all(peer)


def read_all(peer: socket.socket) -> bytes:
    """Return what comes until the server closes or resets the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := peer.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def status(answer: bytes) -> int:
    """Return the status of an answer; 0 if there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def is_closed(peer: socket.socket) -> bool:
    """Return True if the server has closed this connection. Reads what it sent."""
    peer.settimeout(0)
    try:
        while peer.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


@contextlib.contextmanager
def many(url: str, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Hold open so many connections on each of which these bytes were sent."""
    with contextlib.ExitStack() as stack:
        peers = []
        for _ in range(count):
            peer = stack.enter_context(connect(url))
            with contextlib.suppress(ConnectionError):
                peer.sendall(sent)
            peers.append(peer)
        yield peers


def in_threads(count: int, work: Callable[[], object]) -> None:
    """Run the work in so many threads, and wait for all. Raises what one of them raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
