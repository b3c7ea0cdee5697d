"""The HTTP API while the server starts: 503, and how far the start is.

A start takes long if the view is built from a large log. Until then nobody can be answered, and
load balancers, `oncue up` and people want to know how long that will be.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from oncue import __version__
from oncue.config import Settings
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.client_address import TrustedProxies
from oncue.dispatcher.http.connections import Connections, most_connections
from oncue.dispatcher.http.listener import Listener
from oncue.errors import NotReady
from oncue.processes.descriptors import raise_descriptor_limit
from oncue.protocol.api import Health

PER_TOKEN = 64  # connections; nobody is known yet
LINGER_S = 0.5
SHUTDOWN_S = 0.5


class StartingApi:
    """Answers all requests until the server is ready. `close` it then."""

    def __init__(self, sockets: Sequence[socket.socket], settings: Settings, progress: Callable[[], str]) -> None:
        """Listen on copies of the sockets. `progress`: the text of the answers."""
        self._progress = progress
        self._server = web.Server(self._answer, access_log=None)
        self._connections = Connections(
            self._server,
            settings.connections_per_address,
            PER_TOKEN,
            most_connections(raise_descriptor_limit()),
            _ignore,
            TrustedProxies(settings),
            settings.http_timeout_s,
            access_log=None,
            auto_decompress=False,
            lingering_time=LINGER_S,
        )
        self._listener = Listener([bound.dup() for bound in sockets], self._connections.make)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/health/live":
            answer = _health(200, Health(status="ok", version=__version__))
        elif request.path == "/health/ready":
            checks = {"start": f"not ok: {self._progress()}"}
            answer = _health(503, Health(status="starting", version=__version__, checks=checks))
        else:
            error = NotReady(f"the server is starting: {self._progress()}", remedy="try again in a moment")
            answer = problems.response(error)
        answer.force_close()  # the next request is for the server that is ready
        return answer

    async def close(self) -> None:
        """Listen no more. Requests in progress have a moment to end."""
        self._listener.close()
        await self._server.shutdown(SHUTDOWN_S)
        self._connections.close()


def _health(status: int, health: Health) -> web.Response:
    headers: dict[str, Any] = {"Cache-Control": "no-store"} | ({"Retry-After": "1"} if status == 503 else {})
    return web.json_response(body=msgspec.json.encode(health), status=status, headers=headers)


def _ignore(why: str) -> None:
    """Ended connections are counted when the server is ready."""
