"""One server asks another: with the caller's token, once, and not for longer than a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from oncue.dispatcher.cluster import peers
from oncue.dispatcher.cluster.peers import FORWARDED, PeerClient
from oncue.protocol import api as r
from tests.unit.dispatcher.http.api_backend import Client, with_server

TASK = r.TaskInfo(id="0" * 32, state="waiting", function="f", name="f", endpoint="e", owner="ada", attempt=1, why="?")
ENDPOINT = r.EndpointInfo(id="e1", name="laptop", owner="ada", state="never", labels={"a": "b"})
IDS = [bytes([n]) * 16 for n in range(4)]
BEARER = "Bearer oncue_x"


class There:
    """Another server: what it was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, str, bytes]] = []
        self.answer: Callable[[], Awaitable[web.Response]] = self.ok
        self.body: object = {}

    async def ok(self) -> web.Response:
        return web.json_response(self.body)

    async def handle(self, request: web.Request) -> web.Response:
        told = request.headers.get("Authorization", ""), request.headers.get(FORWARDED, "")
        self.asked.append((request.method, request.path, *told, await request.read()))
        return await self.answer()


def with_there(test: Callable[[There, str, PeerClient], Awaitable[None]]) -> None:
    async def run() -> None:
        there, asking = There(), PeerClient()
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", there.handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            await test(there, f"http://127.0.0.1:{runner.addresses[0][1]}", asking)
        finally:
            await asking.close()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_it_is_asked_with_the_callers_token_and_what_it_says_counts() -> None:
    async def work(there: There, url: str, asking: PeerClient) -> None:
        there.body = {"state": "waiting", "attempt": 1, "why": "no free worker", "sent": True, "new": 1}
        told = await asking.task(url, TASK, BEARER)
        assert (told.why, told.sent, told.id) == ("no free worker", True, TASK.id)
        there.body = {"state": "connected", "workers": 3, "labels": {}}
        at = await asking.endpoint(url, ENDPOINT, BEARER)
        assert (at.state, at.workers, at.labels) == ("connected", 3, {"a": "b"})
        there.body = {"count": 2, "tasks": [IDS[0].hex(), IDS[3].hex()]}
        assert await asking.cancel_waiting(url, IDS, BEARER) == [IDS[0], IDS[3]]
        assert [a[:4] for a in there.asked] == [
            ("GET", f"/v1/tasks/{TASK.id}", BEARER, "1"),
            ("GET", "/v1/endpoints/e1", BEARER, "1"),
            ("POST", "/v1/tasks/cancel", BEARER, "1"),
        ]
        assert b'"waiting":true' in there.asked[2][4]

    with_there(work)


def test_nobody_is_asked_without_a_token_or_a_place() -> None:
    async def work(there: There, url: str, asking: PeerClient) -> None:
        assert await asking.task(url, TASK, "") is TASK
        assert await asking.task("", TASK, BEARER) is TASK
        assert await asking.cancel_waiting(url, IDS, "") == []
        assert there.asked == []

    with_there(work)


def test_a_server_that_has_read_more_or_less_of_the_log_is_not_believed() -> None:
    async def work(there: There, url: str, asking: PeerClient) -> None:
        for body in ({"state": "failed", "attempt": 1, "why": "x"}, {"state": "waiting", "attempt": 2, "why": "x"}):
            there.body = body
            assert await asking.task(url, TASK, BEARER) is TASK

    with_there(work)


def test_a_refusal_or_an_answer_that_cannot_be_read_is_none() -> None:
    async def work(there: There, url: str, asking: PeerClient) -> None:
        async def refused() -> web.Response:
            return web.Response(status=401)

        async def moved() -> web.Response:
            return web.Response(status=307, headers={"Location": f"{url}/elsewhere"})

        async def strange() -> web.Response:
            return web.Response(text="<html>")

        for there.answer in (refused, moved, strange):
            assert await asking.cancel_waiting(url, IDS, BEARER) == []
        assert len(there.asked) == 3  # a token does not follow where it is sent

    with_there(work)


def test_one_that_hangs_is_waited_for_once_and_then_left_alone_for_a_moment() -> None:
    async def work(there: There, url: str, asking: PeerClient) -> None:
        for_ever = asyncio.Event()

        async def hang() -> web.Response:
            await for_ever.wait()
            return web.Response()

        there.answer = hang
        began = time.monotonic()
        assert await asking.task(url, TASK, BEARER) is TASK
        assert peers.ANSWER_S * 0.9 < time.monotonic() - began < peers.ANSWER_S + 2
        assert await asking.cancel_waiting(url, IDS, BEARER) == []
        assert len(there.asked) == 1
        for_ever.set()

    with_there(work)


def test_one_that_is_not_there_is_no_error() -> None:
    async def work(there: There, url: str, asking: PeerClient) -> None:
        for nowhere in ("http://127.0.0.1:1", "not a url"):
            assert await asking.cancel_waiting(nowhere, IDS, BEARER) == []

    with_there(work)


def test_a_request_is_handed_on_once() -> None:
    async def work(client: Client) -> None:
        heard: list[str] = []
        for name in ("task", "endpoint", "cancel"):
            really = getattr(client.backend, name)

            async def noted(*args: object, really: Callable[..., Awaitable[object]] = really) -> object:
                heard.append(str(args[-1]))
                return await really(*args)

            setattr(client.backend, name, noted)
        task = (await client.ask("POST", "/v1/tasks", json={"function": "f", "endpoint": "e"}))[1]["id"]
        for headers in ({}, {FORWARDED: "1"}):
            assert (await client.ask("GET", f"/v1/tasks/{task}", headers=headers))[0] == 200
            assert (await client.ask("GET", "/v1/endpoints/e1", headers=headers))[0] == 200
            body = {"tasks": [task], "waiting": True}
            assert (await client.ask("POST", "/v1/tasks/cancel", json=body, headers=headers))[0] == 202
        assert all(b.startswith("Bearer oncue_") for b in heard[:3])
        assert heard[3:] == ["", "", ""]

    with_server(work)
