"""The stall meter sees a loop that is held, and does not see a machine that is slow."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from aiohttp import web

from tests.security.stall import StallMeter, check_no_stall, figures


@contextlib.contextmanager
def server() -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """Yield the URL and the loop of a server with nothing but its health."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/health/live", live)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", loop
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_an_idle_server_is_not_held() -> None:
    with server() as (url, _):
        check_no_stall(url, lambda: time.sleep(0.5))


def test_a_held_loop_is_seen() -> None:
    with server() as (url, loop):

        def attack() -> None:
            loop.call_soon_threadsafe(time.sleep, 1.0)
            time.sleep(0.2)

        with StallMeter(url) as meter:
            attack()

        assert meter.figures is not None
        assert meter.figures.worst > 0.5
        assert meter.figures.p99 > 0.5
        meter.figures = meter.figures._replace(slowdown=1.0)  # this machine may be busy, with larger limits
        with pytest.raises(AssertionError, match="held"):
            meter.check()


def test_a_server_that_ends_is_seen() -> None:
    with server() as (url, _):
        meter = StallMeter(url)
        meter.__enter__()
    time.sleep(0.1)
    meter.__exit__()

    with pytest.raises(AssertionError, match="failed"):
        meter.check()


def test_what_the_control_waited_is_taken_off() -> None:
    quick = [(i * 0.02, 0.001) for i in range(50)]

    alone = figures([*quick, (1.0, 2.0)], [])
    beside = figures([*quick, (1.0, 2.0)], [(1.1, 0.4), (1.6, 1.3)])

    assert alone.worst == pytest.approx(2.0)
    assert alone.samples == 150  # one of 2 s stands for a hundred
    assert beside.worst == pytest.approx(0.3)
