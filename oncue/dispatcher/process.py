"""Runs a server as a process: signals, ports, `local.json`.

The process also ends when the log does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from typing import Any

from oncue import curve
from oncue.blobs import Blobs
from oncue.config import Settings, http_url
from oncue.disk.durable_files import replace_file
from oncue.disk.private_files import make_files_private
from oncue.dispatcher.folder import last_http_port
from oncue.dispatcher.http.app import HttpServer, bind_address, make_app
from oncue.dispatcher.http.app import serve as serve_api
from oncue.dispatcher.http.starting import StartingApi
from oncue.dispatcher.server import Server
from oncue.dispatcher.space_wait import is_full, start_again, wait_for_space
from oncue.errors import OncueError
from oncue.processes.garbage_collection import collect_seldom, keep_what_is_here
from oncue.processes.secrecy import hide_from_tasks
from oncue.processes.stop_signals import stop_signals

log = logging.getLogger("oncue.server")
STOP_S = 15.0  # how long `stop` may wait for the log
KILL_S = 10.0  # after that, until the process kills itself; `oncue down` waits for 30


def serve(settings: Settings, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run a server until SIGTERM or SIGINT.

    `ready` is called with the content of `local.json`: url, token, pid, bridge ... Raises
    LogLocked, NetworkMount, Conflict (port in use) ... if it cannot start.
    """
    make_files_private()
    # Where no memory is left, C libraries abort: the log says where, instead of nothing.
    with contextlib.suppress(OSError, ValueError):  # stderr is no file
        faulthandler.enable()
    if not settings.debuggable:
        hide_from_tasks()
    # The view's thread runs beside the loop. Measured: 1.4 times faster than with the default 5 ms.
    sys.setswitchinterval(0.0005)
    collect_seldom()
    factory = None
    if settings.uvloop:
        try:
            import uvloop

            factory = uvloop.new_event_loop
        except ImportError:
            pass
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(settings, ready))


async def _serve(settings: Settings, ready: Callable[[dict[str, Any]], None] | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stopping.set)
    try:
        await _run(settings, ready, stopping)
    except (OncueError, OSError, sqlite3.Error) as e:
        if not is_full(e, settings.data_path):
            raise
        if await wait_for_space(settings, last_http_port(settings.data_path), e, stopping):
            start_again()


async def _run(settings: Settings, ready: Callable[[dict[str, Any]], None] | None, stopping: asyncio.Event) -> None:
    """Start a server, and run it until it is told to stop."""
    server = Server(settings)
    sockets = await bind_address(settings, server.folder.last_http_port())
    try:
        started = await _start(server, sockets, stopping)
    except BaseException:
        _close(sockets)
        raise
    if not started:
        _close(sockets)
        log.info("stopped during the start; the next start goes on from there")
        return
    starting, serving = started
    try:
        await starting.close()
        try:
            local = await _write_local(server, serving.port)
            keep_what_is_here()
            if ready is not None:
                ready(local)
            await stopping.wait()
            server.refuse_new()
        finally:
            await serving.close()
    finally:
        # Everything that was acknowledged is in the log, so nothing is lost without it.
        asyncio.get_running_loop().call_later(STOP_S + KILL_S, os.kill, os.getpid(), signal.SIGKILL)
        try:
            async with asyncio.timeout(STOP_S):
                await server.stop()
        except TimeoutError:
            log.error(
                "the log has not answered for %g s: the server ends without it; start it again when it does", STOP_S
            )


async def _start(
    server: Server, sockets: Sequence[socket.socket], stopping: asyncio.Event
) -> tuple[StartingApi, HttpServer] | None:
    """Start the server; None if it was told to stop meanwhile.

    Meanwhile the API answers how far the start is. Close that part of it then.
    """
    starting = StartingApi(sockets, server.settings, lambda: server.progress.text)
    start, stop = asyncio.create_task(server.start()), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            await starting.close()
            return None
        await start  # raises what it has raised
        return starting, await _open_http(server, sockets)
    except BaseException:
        await starting.close()
        raise
    finally:
        stop.cancel()


async def _open_http(server: Server, sockets: Sequence[socket.socket]) -> HttpServer:
    """Open the API."""
    app = make_app(server.backend, server.settings, server.metrics)
    serving = await serve_api(app, server.settings, sockets=sockets)
    server.folder.set_http_port(serving.port)
    server.ownership.advertise(server.url())
    return serving


def _close(sockets: Sequence[socket.socket]) -> None:
    for bound in sockets:
        bound.close()


async def _write_local(server: Server, port: int) -> dict[str, Any]:
    """Write `local.json`, by which CLI and client find this server.

    Its mode is 600, because it holds a token.
    """
    path = server.folder.local_json
    token = await server.tokens.local_token(path, server.server_key)
    host = server.settings.host
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    local = {
        "url": http_url(here, port),
        "token": token,
        "pid": os.getpid(),
        "bridge": curve.address(here, server.bridge.port),
        "server_key": server.server_key,
        "version": server.context.version,
        "blobs": str(server.blobs.folder.absolute()) if type(server.blobs) is Blobs else "",
    }
    replace_file(path, json.dumps(local).encode())
    return local
