"""Streams start at once and end cleanly.

A slow reader, or one that has gone, affects no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
import time
from typing import Any

import aiohttp
import pytest

from oncue.dispatcher.http.streams import Streams
from oncue.errors import NotFound
from tests.unit.dispatcher.http.api_backend import TOKENS, Client, with_server

ID = "0" * 32


async def until(condition: Any, seconds: float = 10) -> None:
    """Poll until it holds, for states without an event to await."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_outcomes_are_framed_and_subscribed_before_the_headers() -> None:
    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/outcomes?stream=s1") as answer:
            assert answer.status == 200
            assert c.backend.feeds, "the headers came, so the stream is subscribed"
            for message in (b"first", b"", b"x" * 100_000):
                c.backend.feeds[0].put_nowait(message)
            read = answer.content.readexactly
            assert await read(4 + 5) == b"\0\0\0\x05first"
            assert await read(4) == b"\0\0\0\0"
            assert await read(4 + 100_000) == (100_000).to_bytes(4, "big") + b"x" * 100_000
            c.backend.feeds[0].put_nowait(None)
            assert await answer.content.read() == b""
        assert c.backend.finished_streams == 1

    with_server(test)


def test_streams_end_cleanly_when_the_server_stops() -> None:
    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/outcomes?stream=s") as a, c.request("GET", "/v1/live") as b:
            c.backend.feeds[0].put_nowait(b"m")
            assert await a.content.readexactly(5) == b"\0\0\0\x01m"
            task = asyncio.create_task(c.serving.close())
            assert await a.content.read() == b""  # the end of the body, not a broken connection
            assert await b.content.read() == b"retry: 2000\n\n"
            await asyncio.wait_for(task, 5)
        assert c.backend.finished_streams == 2
        assert len(c.streams) == 0

    with_server(test)


def test_waiting_requests_are_answered_when_the_server_stops() -> None:
    async def test(c: Client) -> None:
        waiting = asyncio.create_task(c.ask("GET", f"/v1/tasks/{ID}?wait_ms=30000"))
        await c.backend.subscribed.wait()
        closing = asyncio.create_task(c.serving.close())
        status, problem, headers = await waiting
        assert (status, problem["code"], headers["Retry-After"]) == (503, "not-ready", "5")
        await asyncio.wait_for(closing, 5)

    with_server(test)


def test_a_disconnected_reader_is_noticed_on_an_idle_stream() -> None:
    async def test(c: Client) -> None:
        answer = await c.request("GET", "/v1/outcomes?stream=s")
        assert len(c.streams) == 1
        answer.close()  # closes the connection
        await until(lambda: c.backend.finished_streams == 1 and not len(c.streams))
        assert not c.backend.feeds

    with_server(test, lambda: Streams(sweep_s=0.02))


def test_a_reader_that_has_stopped_is_disconnected_and_affects_no_other() -> None:
    async def test(c: Client) -> None:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, (c.serving.host, c.serving.port))
            head = f"GET /v1/outcomes?stream=s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKENS['user']}\r\n\r\n"
            await loop.sock_sendall(slow, head.encode())
            await c.backend.subscribed.wait()
            for _ in range(64):
                c.backend.feeds[0].put_nowait(b"x" * 262_144)
            left: list[int] = []
            async with c.request("GET", "/v1/live") as quick:
                feed = c.backend.feeds[1]
                feed.put_nowait(("task", {"n": 1}))
                assert b'"n":1' in await quick.content.readuntil(b"}")
                await until(lambda: left.append(c.backend.finished_streams) or left[-1] == 1)
                feed.put_nowait(("task", {"n": 2}))
                assert b'"n":2' in await quick.content.readuntil(b"}")
            assert not any(f.qsize() > 64 for f in c.backend.feeds)

    with_server(test, lambda: Streams(sweep_s=0.02), http_timeout_s=1.0)


def test_a_slow_reader_gets_a_large_message_whole() -> None:
    """It may take longer than the patience with one that has stopped: it goes on."""

    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/outcomes?stream=s") as answer:
            c.backend.feeds[0].put_nowait(b"x" * 16_000_000)
            begun, taken = time.monotonic(), 0
            while taken < 16_000_000:
                taken += len(await answer.content.readexactly(400_000))
                await asyncio.sleep(0.1)
            assert time.monotonic() - begun > 3.0

    with_server(test, lambda: Streams(sweep_s=0.02), http_timeout_s=1.0)


def test_an_error_within_a_stream_closes_the_connection() -> None:
    """The client can tell a partial body from a whole one."""

    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/outcomes?stream=s") as answer:
            c.backend.feeds[0].put_nowait(b"m")
            await answer.content.readexactly(5)
            c.backend.feeds[0].put_nowait(ValueError("broken"))
            with pytest.raises(aiohttp.ClientError):
                await answer.content.read()
        assert (await c.ask("GET", "/v1/me"))[0] == 200

    with_server(test)


def test_too_many_streams_of_one_token() -> None:
    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/outcomes?stream=a"), c.request("GET", "/v1/outcomes?stream=b"):
            status, problem, headers = await c.ask("GET", "/v1/outcomes?stream=c")
            assert (status, problem["code"], headers["Retry-After"]) == (429, "rate-limited", "1")
            async with c.request("GET", "/v1/outcomes?stream=c", token="admin") as answer:
                assert answer.status == 200

    with_server(test, lambda: Streams(per_token=2))


def test_live_events() -> None:
    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/live?kinds=task,event") as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            feed = c.backend.feeds[0]
            for item in (("task", {"id": "a\nb\ud800"}), ("", None), ("event", {"n": 2}), NotFound("gone", remedy="r")):
                feed.put_nowait(item)
            text = (await answer.content.read()).decode()
        parts = text.split("\n\n")
        assert parts[0] == "retry: 2000"
        first = dict(line.split(": ", 1) for line in parts[1].split("\n"))
        assert first["event"] == "task"
        assert json.loads(first["data"]) == {"id": "a\nb\\ud800"}
        assert parts[2] == ":"
        third = dict(line.split(": ", 1) for line in parts[3].split("\n"))
        assert (third["event"], third["data"]) == ("event", '{"n":2}')
        assert first["id"].split("-")[0] == third["id"].split("-")[0]
        assert [int(p["id"].split("-")[1]) for p in (first, third)] == [1, 2]
        last = dict(line.split(": ", 1) for line in parts[4].split("\n"))
        assert last["event"] == "problem"
        assert json.loads(last["data"])["code"] == "not-found"

    with_server(test)


def test_live_reports_missed_events_after_a_reconnection() -> None:
    async def test(c: Client) -> None:
        async with c.request("GET", "/v1/live", headers={"Last-Event-ID": "x-7"}) as answer:
            c.backend.feeds[0].put_nowait(None)
            assert "event: reset\ndata: {}\n\n" in (await answer.content.read()).decode()

    with_server(test)


def test_logs() -> None:
    async def test(c: Client) -> None:
        _, task, _ = await c.ask("POST", "/v1/tasks", json={"function": "f"})
        status, text, headers = await c.ask("GET", f"/v1/tasks/{task['id']}/logs")
        assert (status, text) == (200, b"one\ntwo\n")
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        async with c.request("GET", f"/v1/tasks/{task['id']}/logs?follow=1") as answer:
            assert await answer.content.readexactly(8) == b"one\ntwo\n"
            await c.backend.subscribed.wait()
            c.backend.feeds[0].put_nowait(b"three\n")
            assert await answer.content.readexactly(6) == b"three\n"
            c.backend.feeds[0].put_nowait(None)
            assert await answer.content.read() == b""

    with_server(test)


def test_blobs() -> None:
    async def test(c: Client) -> None:
        content = bytes(range(256)) * 8192  # 2 MiB: over max_body_bytes, which is not for streams
        path = "/v1/blobs/" + hashlib.sha256(content).hexdigest()
        status, info, _ = await c.ask("PUT", path, data=io.BytesIO(content))
        assert (status, info["size_bytes"]) == (201, len(content))
        status, found, headers = await c.ask("GET", path)
        assert (status, found == content, headers["Content-Length"]) == (200, True, str(len(content)))
        empty = "/v1/blobs/" + hashlib.sha256(b"").hexdigest()
        assert (await c.ask("PUT", empty, data=b""))[0] == 201
        assert (await c.ask("GET", empty))[:2] == (200, b"")

        async def parts() -> Any:
            yield content

        status, problem, _ = await c.ask("PUT", path, data=parts())
        assert (status, problem["code"]) == (400, "malformed")
        assert "Content-Length" in problem["detail"]
        status, problem, _ = await c.ask("PUT", path, data=b"x", headers={"Content-Encoding": "gzip"})
        assert (status, problem["code"]) == (415, "unsupported-type")

    with_server(test, max_body_bytes=1 << 20)


def test_a_truncated_blob_is_not_complete() -> None:
    async def test(c: Client) -> None:
        content = bytes(1 << 20)
        path = "/v1/blobs/" + hashlib.sha256(content).hexdigest()
        await c.ask("PUT", path, data=content)
        c.backend.short_blob = True
        with pytest.raises(aiohttp.ClientError):
            await c.ask("GET", path)

    with_server(test)


def test_an_interrupted_upload_stores_nothing() -> None:
    async def test(c: Client) -> None:
        sha256 = hashlib.sha256(b"abc").hexdigest()
        _, writer = await asyncio.open_connection(c.serving.host, c.serving.port)
        head = f"PUT /v1/blobs/{sha256} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKENS['user']}\r\n"
        writer.write(f"{head}Content-Length: 10\r\n\r\nabc".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await c.ask("GET", f"/v1/blobs/{sha256}"))[0] == 410
        assert not c.backend.stored_blobs

    with_server(test)
