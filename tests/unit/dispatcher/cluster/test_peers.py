"""Requests to peer servers: with the caller's token, forwarded once, with a short timeout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from oncue.dispatcher.cluster import peers
from oncue.dispatcher.cluster.peers import FORWARDED, PeerClient
from oncue.protocol import api as r
from tests.unit.dispatcher.http.api_backend import Client, with_server

TASK = r.TaskInfo(id="0" * 32, state="waiting", function="f", name="f", endpoint="e", owner="ada", attempt=1, why="?")
ENDPOINT = r.EndpointInfo(id="e1", name="laptop", owner="ada", state="never", labels={"a": "b"})
IDS = [bytes([n]) * 16 for n in range(4)]
BEARER = "Bearer oncue_x"


class FakePeer:
    """A peer server that records requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, str, bytes]] = []
        self.answer: Callable[[], Awaitable[web.Response]] = self.ok
        self.body: object = {}

    async def ok(self) -> web.Response:
        return web.json_response(self.body)

    async def handle(self, request: web.Request) -> web.Response:
        headers = request.headers.get("Authorization", ""), request.headers.get(FORWARDED, "")
        self.requests.append((request.method, request.path, *headers, await request.read()))
        return await self.answer()


def with_peer(test: Callable[[FakePeer, str, PeerClient], Awaitable[None]]) -> None:
    async def run() -> None:
        peer, client = FakePeer(), PeerClient()
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", peer.handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            await test(peer, f"http://127.0.0.1:{runner.addresses[0][1]}", client)
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_peer_gets_the_callers_token_and_its_answer_is_merged() -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        peer.body = {"state": "waiting", "attempt": 1, "why": "no free worker", "sent": True, "new": 1}
        answer = await client.task(url, TASK, BEARER)
        assert (answer.why, answer.sent, answer.id) == ("no free worker", True, TASK.id)
        peer.body = {"state": "connected", "workers": 3, "labels": {}}
        at = await client.endpoint(url, ENDPOINT, BEARER)
        assert (at.state, at.workers, at.labels) == ("connected", 3, {"a": "b"})
        peer.body = {"count": 2, "tasks": [IDS[0].hex(), IDS[3].hex()]}
        assert await client.cancel_waiting(url, IDS, BEARER) == [IDS[0], IDS[3]]
        assert [a[:4] for a in peer.requests] == [
            ("GET", f"/v1/tasks/{TASK.id}", BEARER, "1"),
            ("GET", "/v1/endpoints/e1", BEARER, "1"),
            ("POST", "/v1/tasks/cancel", BEARER, "1"),
        ]
        assert b'"waiting":true' in peer.requests[2][4]

    with_peer(work)


def test_no_request_without_a_token_or_a_url() -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        assert await client.task(url, TASK, "") is TASK
        assert await client.task("", TASK, BEARER) is TASK
        assert await client.cancel_waiting(url, IDS, "") == []
        assert peer.requests == []

    with_peer(work)


def test_an_answer_about_another_state_or_attempt_is_ignored() -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        for body in ({"state": "failed", "attempt": 1, "why": "x"}, {"state": "waiting", "attempt": 2, "why": "x"}):
            peer.body = body
            assert await client.task(url, TASK, BEARER) is TASK

    with_peer(work)


def test_a_refusal_redirect_or_malformed_answer_is_ignored() -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        async def refused() -> web.Response:
            return web.Response(status=401)

        async def moved() -> web.Response:
            return web.Response(status=307, headers={"Location": f"{url}/other"})

        async def strange() -> web.Response:
            return web.Response(text="<html>")

        for peer.answer in (refused, moved, strange):
            assert await client.cancel_waiting(url, IDS, BEARER) == []
        assert len(peer.requests) == 3  # the redirect was not followed

    with_peer(work)


def test_after_a_timeout_the_peer_is_not_asked_for_a_moment() -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        released = asyncio.Event()

        async def hang() -> web.Response:
            await released.wait()
            return web.Response()

        peer.answer = hang
        began = time.monotonic()
        assert await client.task(url, TASK, BEARER) is TASK
        assert time.monotonic() - began > peers.ANSWER_S * 0.9  # it would hang for ever
        assert await client.cancel_waiting(url, IDS, BEARER) == []
        assert len(peer.requests) == 1
        released.set()

    with_peer(work)


def test_a_long_backfill_is_waited_for_and_delays_nobody_elses_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        async def slow() -> web.Response:
            await asyncio.sleep(0.6)
            return web.json_response({"trigger": "frames", "dry_run": False, "files": 3})

        peer.answer = slow
        monkeypatch.setattr(peers, "ANSWER_S", 0.2)
        done = await client.backfill(url, "frames", r.BackfillRequest(), BEARER)
        assert done is not None
        assert done.files == 3
        assert await client.trigger_file(url, "frames", "a.h5", BEARER) is None
        monkeypatch.setattr(peers, "ANSWER_S", 20.0)
        peer.answer, peer.body = peer.ok, {"state": "waiting", "attempt": 1, "why": "no free worker"}
        assert (await client.task(url, TASK, BEARER)).why == "no free worker"

    with_peer(work)


def test_an_unreachable_peer_is_no_error() -> None:
    async def work(peer: FakePeer, url: str, client: PeerClient) -> None:
        for nowhere in ("http://127.0.0.1:1", "not a url"):
            assert await client.cancel_waiting(nowhere, IDS, BEARER) == []

    with_peer(work)


def test_a_request_is_forwarded_once() -> None:
    async def work(client: Client) -> None:
        bearers: list[str] = []
        backend = client.backend
        for service, name in ((backend.tasks, "get"), (backend.endpoints, "get"), (backend.cancellation, "cancel")):
            really = getattr(service, name)

            async def noted(*args: object, really: Callable[..., Awaitable[object]] = really) -> object:
                bearers.append(str(args[-1]))
                return await really(*args)

            setattr(service, name, noted)
        task = (await client.ask("POST", "/v1/tasks", json={"function": "f", "endpoint": "e"}))[1]["id"]
        for headers in ({}, {FORWARDED: "1"}):
            assert (await client.ask("GET", f"/v1/tasks/{task}", headers=headers))[0] == 200
            assert (await client.ask("GET", "/v1/endpoints/e1", headers=headers))[0] == 200
            body = {"tasks": [task], "waiting": True}
            assert (await client.ask("POST", "/v1/tasks/cancel", json=body, headers=headers))[0] == 202
        assert all(b.startswith("Bearer oncue_") for b in bearers[:3])
        assert bearers[3:] == ["", "", ""]

    with_server(work)
