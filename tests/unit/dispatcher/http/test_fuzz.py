"""No request gives a 500, and every refusal has a remedy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncue.config import Settings
from oncue.dispatcher.http.app import make_app, serve
from oncue.dispatcher.http.routes.table import ROUTES
from oncue.dispatcher.metrics.metrics import Metrics
from tests.unit.dispatcher.http.api_backend import TOKENS, MemoryBackend

JSON, MSGPACK = "application/json", "application/msgpack"
ROUTES_WITH_BODY = [r for r in ROUTES if r.takes is not None or r.raw]


class RawServer:
    """A server in its own thread, with requests of arbitrary bytes.

    A client library would correct them.
    """

    def __init__(self) -> None:
        self.port, self._ready, self._stop = 0, threading.Event(), asyncio.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._run()), daemon=True)
        self.thread.start()
        assert self._ready.wait(10)

    async def _run(self) -> None:
        chosen = Settings(port=0, max_body_bytes=100_000)
        serving = await serve(make_app(MemoryBackend(), chosen, Metrics()), chosen)
        self.port = serving.port
        self._ready.set()
        await self._stop.wait()
        await serving.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(10)
        self.loop.close()

    def ask(self, method: str, path: bytes, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Return (status, body of the answer)."""
        return asyncio.run_coroutine_threadsafe(self._ask(method, path, headers, body), self.loop).result(20)

    async def _ask(self, method: str, path: bytes, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        head = f"Host: a\r\nAuthorization: Bearer {TOKENS['admin']}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        writer.write(
            method.encode() + b" " + path + b" HTTP/1.1\r\n" + (head + lines).encode("latin-1") + b"\r\n" + body
        )
        try:
            answer = await reader.read()
        finally:
            writer.close()
        head_, _, rest = answer.partition(b"\r\n\r\n")
        return int(head_.split(b" ", 2)[1]), rest


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    found = RawServer()
    yield found
    found.close()


def check(status: int, answer: bytes) -> None:
    assert status < 500, answer
    assert b"Traceback" not in answer
    if status >= 400 and answer.startswith(b"{"):
        problem = msgspec.json.decode(answer)
        assert problem["detail"]
        assert problem["status"] == status


def concrete(template: str) -> bytes:
    for name, value in (("{id}", "0" * 32), ("{offset}", "1"), ("{sha256}", "0" * 64), ("{trigger}", "daq")):
        template = template.replace(name, value)
    return template.replace("{name}", "n").replace("{label}", "l").replace("{file}", "f").encode()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["f", "0" * 32, "bQ==", "é", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(
    {
        f
        for r in ROUTES_WITH_BODY
        for k in (r.takes, r.takes_doc)
        if hasattr(k, "__struct_fields__")
        for f in k.__struct_fields__
    }
)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    route=st.sampled_from(ROUTES_WITH_BODY),
    body=st.binary(max_size=200),
    kind=st.sampled_from(
        [JSON, MSGPACK, "application/cloudevents+json", "application/cloudevents-batch+json", "text/plain", "", ";;"]
    ),
)
def test_any_bytes(server: RawServer, route: Any, body: bytes, kind: str) -> None:
    check(*server.ask(route.method, concrete(route.template), {"Content-Type": kind}, body))


@FUZZ
@given(route=st.sampled_from(ROUTES_WITH_BODY), body=objects | values, packed=st.booleans())
def test_any_values_under_the_right_names(server: RawServer, route: Any, body: Any, packed: bool) -> None:
    try:
        data = msgspec.msgpack.encode(body) if packed else msgspec.json.encode(body)
    except (OverflowError, UnicodeEncodeError):  # msgpack has no such number
        data = msgspec.json.encode(str(body).encode("utf-8", "replace"))
    kind = MSGPACK if packed else JSON
    check(*server.ask(route.method, concrete(route.template), {"Content-Type": kind}, data))


path_bytes = st.lists(
    st.sampled_from(
        [
            b"/",
            b"v1",
            b"tasks",
            b"events",
            b"functions",
            b"%",
            b"%ff",
            b"%00",
            b"..",
            b"{",
            b"a",
            b"0" * 32,
            b"\xc3\xa9",
            b";",
            b":",
        ]
    ),
    max_size=8,
).map(lambda parts: b"/" + b"".join(parts))
query_bytes = st.lists(
    st.sampled_from(
        [b"limit", b"=", b"&", b"1", b"%ff", b"+", b"cursor", b"%00", b"state", b"wait_ms", b"\xc3", b"#", b"?"]
    ),
    max_size=8,
).map(lambda parts: b"?" + b"".join(parts) if parts else b"")


@FUZZ
@given(method=st.sampled_from(["GET", "POST", "DELETE", "OPTIONS", "BREW"]), path=path_bytes, query=query_bytes)
def test_any_path_and_query(server: RawServer, method: str, path: bytes, query: bytes) -> None:
    check(*server.ask(method, path + query, {}, b""))


@FUZZ
@given(
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60),
    name=st.sampled_from(
        ["Oncue-Position", "Idempotency-Key", "Content-Type", "Last-Event-ID", "Content-Encoding", "ce-id", "X-Sign"]
    ),
    route=st.sampled_from([r for r in ROUTES if not r.streamed]),
)
def test_any_header(server: RawServer, value: str, name: str, route: Any) -> None:
    check(*server.ask(route.method, concrete(route.template), {name: value}, b'{"function":"f"}'))
