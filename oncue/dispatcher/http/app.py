"""The HTTP API of a server.

    app = make_app(backend, settings, metrics)
    server = await serve(app, settings)  # listens; server.port
    await server.close()  # streams end cleanly, requests in progress are answered

One table (routes/table.py) defines the routes, the scopes they need, how bodies and queries are
decoded, and the OpenAPI document.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from functools import partial

from aiohttp import web

from oncue.config import Settings, http_url
from oncue.dispatcher.auth.base import AuthContext, AuthenticatorChain, AuthenticatorFactory, Credentials
from oncue.dispatcher.auth.catalog import AUTHENTICATORS
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.backend import Backend
from oncue.dispatcher.http.handler import bind
from oncue.dispatcher.http.openapi import document_json
from oncue.dispatcher.http.rate_limit import RateLimit
from oncue.dispatcher.http.route import Api
from oncue.dispatcher.http.routes.table import ROUTES, heads, no_route
from oncue.dispatcher.http.streams import Streams
from oncue.dispatcher.metrics import Metrics
from oncue.errors import Conflict, Invalid, OncueError

API = web.AppKey("oncue_api", Api)
BACKLOG = 1_024
SHUTDOWN_S = 2.0  # for requests under way when the server stops


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
    limit = RateLimit(settings.rate_per_s)
    # http/body.py reads bodies, with a limit for each route. aiohttp's own limit would answer with
    # a text of its own.
    app = web.Application(client_max_size=0)
    app[API] = api
    problems.quiet_aiohttp()
    for route in ROUTES:
        handler = bind(api, route, limit)
        app.router.add_route(route.method, route.path, handler)
        if heads(route):
            app.router.add_route("HEAD", route.path, handler)
    count = api.metrics.http_route("(none)", timed=False)

    async def refuse(request: web.Request) -> web.Response:
        response = problems.response(no_route(request.method, request.path), request)
        count(response.status, 0.0)
        return response

    app.router.add_route("*", "/{anything:.*}", refuse)

    async def stop(_: web.Application) -> None:
        streams.close()
        await chain.close()

    app.on_shutdown.append(stop)
    return app


class HttpServer:
    """An API that listens."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        self.runner, self.host, self.port = runner, host, port

    @property
    def url(self) -> str:
        return http_url(self.host, self.port)

    async def close(self) -> None:
        """Accept no more connections, and end streams.

        Requests in progress have SHUTDOWN_S to end.
        """
        await self.runner.cleanup()


async def serve(app: web.Application, settings: Settings, last_port: int = 0) -> HttpServer:
    """Listen on settings.host and settings.port.

    There is no access log, and no signal handler. Port 0 means `last_port` if it is free, since
    clients may know it, else any free port. Raises Conflict if the port is in use, Invalid if it is
    not permitted or the address is not of this machine.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        if settings.port or not (last_port and await _listens(runner, settings.host, last_port)):
            await web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG).start()
    except OSError as e:
        await runner.cleanup()
        raise _explained(e, f"{settings.host}:{settings.port}") from None
    except asyncio.CancelledError:
        await runner.cleanup()
        raise
    return HttpServer(runner, settings.host, int(runner.addresses[0][1]))


async def check_address(settings: Settings) -> None:
    """Check that `serve` can listen, before a server starts work that others see.

    Raises Conflict, Invalid.
    """
    loop = asyncio.get_running_loop()
    try:
        probe = await loop.create_server(asyncio.Protocol, settings.host or None, settings.port, start_serving=False)
    except OSError as e:
        raise _explained(e, f"{settings.host}:{settings.port}") from None
    probe.close()
    await probe.wait_closed()


async def _listens(runner: web.AppRunner, host: str, port: int) -> bool:
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError:
        return False
    return True


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
