"""Compare HTTP clients for a blocking request: `python -m bench.http_clients`.

One aiohttp server in a child process; each client sends POSTs of 100 bytes over one kept-alive
connection. Prints JSON.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

import aiohttp
from aiohttp import web

from oncue.client.http import Http

BODY = b"x" * 100


def _serve(pipe: Pipe) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/x", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        pipe.send(listener.getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        await runner.cleanup()

    asyncio.run(main())


def _measure(ask: Callable[[], Any], count: int) -> dict[str, float]:
    for _ in range(50):
        ask()
    before = resource.getrusage(resource.RUSAGE_SELF)
    walls = []
    for _ in range(count):
        start = time.perf_counter()
        ask()
        walls.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_us": round(statistics.median(walls) * 1e6), "cpu_us": round(cpu / count * 1e6)}


def run(count: int = 3_000) -> dict[str, dict[str, float]]:
    """Return the median wall time and client CPU of a request, in µs."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,))
    server.start()
    port = here.recv()
    results: dict[str, dict[str, float]] = {}

    ours = Http(lambda: (f"http://127.0.0.1:{port}", "t"))
    results["oncue.client.http"] = _measure(lambda: ours.request("POST", "/v1/x", BODY), count)
    ours.close()

    theirs = http.client.HTTPConnection("127.0.0.1", port)
    theirs.connect()
    theirs.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> bytes:
        theirs.request("POST", "/v1/x", BODY)
        return theirs.getresponse().read()

    results["http.client"] = _measure(ask, count)
    theirs.close()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    client = asyncio.run_coroutine_threadsafe(session(), loop).result()

    async def one() -> bytes:
        async with client.post(f"http://127.0.0.1:{port}/v1/x", data=BODY) as answer:
            return await answer.read()

    results["aiohttp in a thread"] = _measure(lambda: asyncio.run_coroutine_threadsafe(one(), loop).result(), count)
    asyncio.run_coroutine_threadsafe(client.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    here.send(None)
    server.join()
    return results


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
