"""The HTTP API of a server.

    app = make_app(backend, settings, metrics)
    server = await serve(app, settings)  # listens; server.port
    await server.close()  # streams end cleanly, requests in progress are answered

One table (routes/table.py) defines the routes, the scopes they need, how bodies and queries are
decoded, and the OpenAPI document.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence
from functools import partial

from aiohttp import web

from oncue.config import Settings, http_url
from oncue.dispatcher.auth.base import AuthContext, AuthenticatorChain, AuthenticatorFactory, Credentials
from oncue.dispatcher.auth.catalog import AUTHENTICATORS
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.backend import Backend
from oncue.dispatcher.http.client_address import TrustedProxies
from oncue.dispatcher.http.connections import Connections, most_connections
from oncue.dispatcher.http.fair_queue import FairQueue
from oncue.dispatcher.http.handler import Limits, bind, serving
from oncue.dispatcher.http.listener import Listener, bind_sockets
from oncue.dispatcher.http.openapi import document_json
from oncue.dispatcher.http.owner_memory import OWNER_ANSWERS, OwnerMemory
from oncue.dispatcher.http.rate_limit import AddressLimit, RateLimit
from oncue.dispatcher.http.route import Api
from oncue.dispatcher.http.routes.table import ROUTES, heads, no_route
from oncue.dispatcher.http.streams import Streams
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.errors import Conflict, Invalid, OncueError
from oncue.processes.descriptors import raise_descriptor_limit

API = web.AppKey("oncue_api", Api)
SHUTDOWN_S = 2.0  # for requests under way when the server stops
LINGER_S = 2.0  # the rest of a refused body is read and dropped for so long, then it is cut
READ_BYTES = 64 * 1024  # of a body, before its sender has to wait
PER_TOKEN = 1_024  # connections


def make_app(
    backend: Backend,
    settings: Settings,
    metrics: Metrics,
    streams: Streams | None = None,
    logins: Sequence[AuthenticatorFactory] = AUTHENTICATORS,
) -> web.Application:
    """Return the application.

    `metrics`: the server's. `streams`: the limits of open streams.
    """
    # `or` would not do: an empty Streams is false, because it has a length.
    streams = Streams() if streams is None else streams
    chain = AuthenticatorChain.open(logins, AuthContext(settings, backend.tokens.find, backend.sync_registry))
    streams.is_valid = lambda request: chain.is_valid(Credentials(request.headers.get("Authorization")))
    api = Api(backend, settings, metrics, streams, chain, partial(document_json, ROUTES))
    limits = Limits(
        RateLimit(settings.rate_per_s), FairQueue(), AddressLimit(), OwnerMemory(), OwnerMemory(OWNER_ANSWERS)
    )
    # http/body.py reads bodies, with a limit for each route. aiohttp's own limit would answer with
    # a text of its own.
    app = web.Application(client_max_size=0)
    app[API] = api
    problems.quiet_aiohttp()
    for route in ROUTES:
        handler = bind(api, route, limits)
        app.router.add_route(route.method, route.path, handler)
        if heads(route):
            app.router.add_route("HEAD", route.path, handler)

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise no_route(request.method, request.path)

    nowhere = serving(api, "(none)", refuse, limits.addresses, timed=False, scoped=False)
    app.router.add_route("*", "/{anything:.*}", nowhere)

    async def stop(_: web.Application) -> None:
        streams.close()
        await chain.close()

    app.on_shutdown.append(stop)
    return app


class HttpServer:
    """An API that listens."""

    def __init__(self, runner: web.AppRunner, connections: Connections, listener: Listener, host: str) -> None:
        self.runner, self.connections, self.host = runner, connections, host
        self._listener = listener
        self.port = listener.port

    @property
    def url(self) -> str:
        return http_url(self.host, self.port)

    async def close(self) -> None:
        """Accept no more connections, and end streams.

        Requests in progress have SHUTDOWN_S to end.
        """
        self._listener.close()
        await self.runner.cleanup()
        self.connections.close()


async def serve(
    app: web.Application, settings: Settings, last_port: int = 0, sockets: Sequence[socket.socket] = ()
) -> HttpServer:
    """Listen on settings.host and settings.port, or on sockets that are bound already.

    There is no access log, and no signal handler. Raises as `bind_address`.
    """
    bound = sockets or await bind_address(settings, last_port)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    assert runner.server is not None
    connections = Connections(
        runner.server,
        settings.connections_per_address,
        PER_TOKEN,
        most_connections(raise_descriptor_limit()),
        app[API].metrics.http_connection_ended,
        TrustedProxies(settings),
        settings.http_timeout_s,
        access_log=None,
        auto_decompress=False,  # body.py decodes, when a body is wanted
        lingering_time=LINGER_S,
        read_bufsize=READ_BYTES,
    )
    return HttpServer(runner, connections, Listener(bound, connections.make), settings.host)


async def bind_address(settings: Settings, last_port: int = 0) -> list[socket.socket]:
    """Return sockets for settings.host and settings.port.

    Port 0 means `last_port` if it is free, since clients may know it, else any free port. Raises
    Conflict if the port is in use, Invalid if it is not permitted or the address is not of this
    machine.
    """
    if not settings.port and last_port:
        with contextlib.suppress(OSError):
            return await bind_sockets(settings.host, last_port)
    try:
        return await bind_sockets(settings.host, settings.port)
    except OSError as e:
        raise _explained(e, f"{settings.host}:{settings.port}") from None


def _explained(e: OSError, where: str) -> OncueError:
    if e.errno == errno.EADDRINUSE:
        return Conflict(
            f"{where} is in use by another program",
            remedy="stop it, or choose another port: `oncue up --port 0` takes any free one",
        )
    return Invalid(
        f"cannot listen on {where}: {e.strerror or e}",
        remedy="set host to an address of this machine, and port to one above 1023",
    )
