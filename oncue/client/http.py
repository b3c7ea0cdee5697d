"""Minimal HTTP/1.1 client: one socket and one buffered reader a connection.

    Http (a pool: a thread uses an idle connection or opens one)
      └─► Connection (one request at a time)

`http.client` parses the headers of each answer with the e-mail package, and an asyncio client needs
a thread and two wake-ups for every blocking call. Measured against an aiohttp server on loopback on
two busy cores, 3,000 POSTs of 100 bytes on one kept-alive connection with TCP_NODELAY
(`python -m bench.http_clients`; median wall µs · CPU µs of the client's process, a request):

    this file                182 ·  53
    http.client              266 · 144
    aiohttp in a thread      508 · 361      (httpx: 126 µs of CPU and more, by another measurement)
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import msgspec

from oncue import errors
from oncue.errors import OncueError, Unreachable
from oncue.protocol.api import FunctionRequest, Problem
from oncue.protocol.codec import build_decoders

MSGPACK = "application/msgpack"
CONNECT_S = 5.0
JSON_BODY_BYTES = 1 << 20  # of a function that is sent in JSON
LIMITED_S = 60.0  # longest time for which a request is repeated while the server refuses it with 429
Body = bytes | bytearray | memoryview
#: Returns (url, token). Called for each connection, because a restarted server may have moved.
Target = Callable[[], tuple[str, str]]


class Answer(msgspec.Struct, gc=False):
    status: int
    headers: dict[bytes, bytes]  # names in lower case
    body: bytes

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


class _Request(NamedTuple):
    """A request that may be sent several times. See Http.request."""

    method: str
    path: str
    body: Body | Callable[[], Iterable[Body]] | None
    kind: str
    headers: str
    size: int
    timeout_s: float | None


class Broken(Exception):
    """A connection failed. `sent`: the server may have received the request."""

    def __init__(self, why: str, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Connection:
    """One kept-alive connection, for one thread at a time. Methods raise Broken."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.Invalid(
                f"{url!r} is not the address of a server", remedy="it looks like http://127.0.0.1:8765"
            )
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if any(c in token for c in "\r\n\0"):
            raise errors.Invalid("the token holds a line break", remedy="check ONCUE_TOKEN")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.base = parts.path.rstrip("/")
        self._common = f" HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n".encode()
        try:
            self._socket = socket.create_connection((parts.hostname, port), timeout=min(CONNECT_S, timeout_s))
        except OSError as e:
            raise Broken(f"{e.strerror or e}", sent=False) from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=parts.hostname)
            self._socket.settimeout(timeout_s)
            self._file = cast(io.BufferedReader, self._socket.makefile("rb", buffering=1 << 16))
        except BaseException as e:
            self._socket.close()
            if isinstance(e, OSError):
                raise Broken(f"TLS: {e}", sent=False) from None
            raise

    def stale(self) -> bool:
        """True if the server closed it, or sent data, while it was idle."""
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def send(
        self, method: str, path: str, body: Body | Iterable[Body] | None, kind: str, headers: str, size: int
    ) -> None:
        """Send one request; `size` is the body's length in bytes."""
        head = b"".join((method.encode(), b" ", (self.base + path).encode(), self._common))
        head += (
            f"Content-Type: {kind}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() if body is not None else b"\r\n"
        )
        try:
            if body is None:
                self._socket.sendall(head)
            elif isinstance(body, bytes) and size < 1 << 16:
                self._socket.sendall(head + body)
            else:
                self._socket.sendall(head)
                for part in (body,) if isinstance(body, bytes | bytearray | memoryview) else body:
                    self._socket.sendall(part)
        except (OSError, ValueError) as e:
            raise Broken(_why(e), sent=False) from None

    def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Read an answer's status and headers."""
        readline = self._file.readline
        try:
            line = readline(65536)
            if not line:
                raise Broken("the server closed the connection", sent=True)
            status = int(line[9:12])
            headers: dict[bytes, bytes] = {}
            while (line := readline(65536)) not in (b"\r\n", b"\n"):
                if not line:
                    raise Broken("the answer broke off", sent=True)
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
        except (OSError, ValueError) as e:
            raise Broken(_why(e), sent=True) from None
        return status, headers

    def answer(self) -> Answer:
        """Read a whole answer."""
        status, headers = self.head()
        if status in (204, 304):
            return Answer(status, headers, b"")
        length = headers.get(b"content-length")
        if length is not None:
            return Answer(status, headers, self.read(int(length)))
        return Answer(status, headers, b"".join(self.parts(headers)))

    def read(self, size: int) -> bytes:
        try:
            found = self._file.read(size)
        except (OSError, ValueError) as e:
            raise Broken(_why(e), sent=True) from None
        if len(found) < size:
            raise Broken("the answer broke off", sent=True)
        return found

    def parts(self, headers: dict[bytes, bytes]) -> Iterator[bytes]:
        """Yield a body as it arrives.

        It ends by its length, its last HTTP chunk, or when the server closes.
        """
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            while size := self._chunk_size():
                yield self.read(size)
                self.read(2)
            while self._line() not in (b"\r\n", b"\n"):
                pass
            return
        left = int(headers.get(b"content-length", -1))
        while left:
            part = self.read(min(left, 1 << 20)) if left > 0 else self._some()
            if not part:
                return
            left -= len(part) if left > 0 else 0
            yield part

    def _chunk_size(self) -> int:
        line = self._line()
        try:
            return int(line.split(b";")[0], 16)
        except ValueError:
            raise Broken(f"not a chunk of an answer: {line[:20]!r}", sent=True) from None

    def _line(self) -> bytes:
        try:
            line = self._file.readline(65536)
        except (OSError, ValueError) as e:
            raise Broken(_why(e), sent=True) from None
        if not line:
            raise Broken("the answer broke off", sent=True)
        return line

    def _some(self) -> bytes:
        try:
            return self._file.read1(1 << 16)
        except (OSError, ValueError) as e:
            raise Broken(_why(e), sent=True) from None

    def interrupt(self) -> None:
        """End a read in progress, from another thread."""
        with contextlib.suppress(OSError):  # it was closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _why(e: Exception) -> str:
    return "no answer in time" if isinstance(e, TimeoutError) else str(e) or type(e).__name__


class Http:
    """Connection pool; sends requests from any thread."""

    def __init__(self, target: Target, timeout_s: float = 60.0) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._idle: deque[Connection] = deque(maxlen=16)
        self._busy: set[Connection] = set()
        self._pid = os.getpid()
        self.closed = False

    def address(self) -> str:
        """Return the server's URL for people; without one, the reason."""
        try:
            return self.target()[0]
        except OncueError as e:
            return f"no server ({e.message})"

    def connect(self, timeout_s: float | None = None) -> Connection:
        """Open a connection for a stream; the caller closes it. Raises Broken."""
        url, token = self.target()
        return Connection(url, token, self.timeout_s if timeout_s is None else timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: Body | Callable[[], Iterable[Body]] | None = None,
        *,
        kind: str = "application/json",
        headers: str = "",
        size: int = -1,
        repeat: bool | None = None,
        timeout_s: float | None = None,
        limited_s: float = LIMITED_S,
    ) -> Answer:
        """Send one request and return its answer.

        A callable body is streamed; `size` is its length in bytes. `repeat`: send the request again
        if its answer was lost (default: only GET, PUT and DELETE). `limited_s`: how long to send it
        again, after the pauses that the server asks for, if it has too many requests (429: nothing
        was done). Raises Unreachable; for a problem response, the class of oncue.errors that it
        names.
        """
        repeat = method in ("GET", "PUT", "DELETE") if repeat is None else repeat
        until = time.monotonic() + limited_s
        request = _Request(method, path, body, kind, headers, size, timeout_s)
        while True:
            answer = self._answered(request, repeat)
            if answer.status < 400:
                return answer
            error = problem(answer)
            pause = pause_after(error, 1.0)
            if answer.status != 429 or self.closed or time.monotonic() + pause > until:
                raise error
            time.sleep(pause)

    def _answered(self, request: _Request, repeat: bool) -> Answer:
        """Return the answer; send twice if the connection breaks. Raises Unreachable."""
        for attempt in (0, 1):
            try:
                return self._once(request)
            except Broken as e:
                if attempt or (e.sent and not repeat) or self.closed:
                    raise self.unreachable(str(e), e.sent and not repeat) from None
        raise AssertionError("unreachable")

    def _once(self, request: _Request) -> Answer:
        body, timeout_s = request.body, request.timeout_s
        connection = self._acquire() if timeout_s is None else self.connect(timeout_s)
        self._busy.add(connection)
        try:
            content = body() if callable(body) else body
            length = request.size if callable(body) else len(body or b"")
            connection.send(request.method, request.path, content, request.kind, request.headers, length)
            answer = connection.answer()
        except BaseException:  # also on KeyboardInterrupt: half an answer may be left unread
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        if self.closed or timeout_s is not None or answer.headers.get(b"connection", b"").lower() == b"close":
            connection.close()
        else:
            self._release(connection)
        return answer

    def _acquire(self) -> Connection:
        if self.closed:
            raise errors.ClientClosed("this client is closed", remedy="make a new Client()")
        if self._pid != os.getpid():
            self.after_fork()
        while True:
            connection = self._idle_connection()
            if connection is None:
                return self.connect()
            if not connection.stale():
                return connection
            connection.close()

    def _idle_connection(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # other threads take them too
            return None

    def _release(self, connection: Connection) -> None:
        if len(self._idle) >= 8:
            connection.close()
        else:
            self._idle.append(connection)

    def after_fork(self) -> None:
        """Close this process's copies of the sockets, which the parent still uses."""
        self._pid = os.getpid()
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._idle.clear()
        self._busy.clear()

    def unreachable(self, why: str, unsure: bool = False) -> Unreachable:
        try:
            url, _ = self.target()
        except OncueError as e:
            return Unreachable(e.message, remedy=e.remedy)
        if unsure:
            return Unreachable(
                f"the server at {url} did not answer: {why}; the request may have been carried out or not",
                remedy="check (for example with `oncue tasks list`) before you send it again",
            )
        return Unreachable(
            f"nothing answers at {url}: {why}",
            remedy="start a server with `oncue up`, or set ONCUE_URL and ONCUE_TOKEN",
        )

    def close(self) -> None:
        self.closed = True
        if self._pid != os.getpid():
            self.after_fork()
            return
        for connection in list(self._busy):
            connection.interrupt()  # its own thread closes it
        while self._idle:
            self._idle.pop().close()


def register_function(http: Http, request: FunctionRequest) -> Answer:
    """Register a function; again is harmless.

    A large one is sent, and answered, in msgpack, which the server decodes at once.
    """
    if len(request.body) <= JSON_BODY_BYTES:
        return http.request("POST", "/v1/functions", msgspec.json.encode(request), repeat=True)
    return http.request("POST", "/v1/functions", msgspec.msgpack.encode(request), kind=MSGPACK, repeat=True)


def in_path(text: str) -> str:
    """Return a name as a part of a URL's path."""
    return quote(text, safe="", errors="surrogateescape")


def error_classes() -> dict[str, type[OncueError]]:
    """Return all error classes by their code."""
    found: dict[str, type[OncueError]] = {}
    todo: list[type[OncueError]] = [OncueError]
    while todo:
        kind = todo.pop()
        found.setdefault(kind.__dict__.get("code", ""), kind)
        todo.extend(kind.__subclasses__())
    found.pop("", None)
    return found


def problem(answer: Answer) -> OncueError:
    """Return the error that a problem response (RFC 9457) names."""
    try:
        found = msgspec.json.decode(answer.body, type=Problem)
    except msgspec.MsgspecError:
        text = answer.body[:200].decode("utf-8", "replace")
        return OncueError(
            f"the server answered {answer.status}: {text}", remedy="is this the address of an oncue server?"
        )
    details: dict[str, Any] = {str(k): v for k, v in found.details.items() if k not in ("message", "remedy", "self")}
    retry_after = answer.header(b"retry-after")
    if retry_after:
        details.setdefault("retry_after_s", retry_after)
    error = error_classes().get(found.code, OncueError)(found.detail, remedy=found.remedy, **details)
    return error


def pause_after(error: OncueError, pause: float) -> float:
    """Return the pause before a repeat: Retry-After (at most 30 s), or `pause`."""
    try:
        return max(pause, min(30.0, float(error.details.get("retry_after_s", pause))))
    except (TypeError, ValueError):
        return pause


build_decoders(globals())
