"""Handles one request, from authentication to the answer.

Its steps are: authenticate, limit, decode, call the route's handler, encode, count.

There is one try/except and no chain of middlewares. All this costs about a quarter of a bare
aiohttp handler.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from oncue.dispatcher.auth.base import Credentials
from oncue.dispatcher.auth.scopes import require
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.body import BodyDecoder, Decoder, coding_of, decode_query, read_body
from oncue.dispatcher.http.connection import Connection
from oncue.dispatcher.http.fair_queue import FairQueue
from oncue.dispatcher.http.json_encoding import encode_json
from oncue.dispatcher.http.rate_limit import AddressLimit, RateLimit
from oncue.dispatcher.http.route import ANONYMOUS, JSON, MSGPACK, Api, NoQuery, RequestContext, Route
from oncue.dispatcher.http.streams import hold
from oncue.dispatcher.off_loop import off_loop
from oncue.errors import Invalid, OncueError, Unauthorized
from oncue.processes.fair_threads import on_behalf_of

POSITION = "Oncue-Position"
_msgpack = msgspec.msgpack.Encoder().encode
Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


def bind(api: Api, route: Route, limit: RateLimit, queue: FairQueue, addresses: AddressLimit) -> Serve:
    """Return the aiohttp handler of a route."""
    count = api.metrics.http_route(f"{route.method} {route.template}", timed=not (route.streamed or route.waits))
    exchange = _exchange(api, route, limit, queue, addresses)

    async def serve(request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        connection = connection_of(request)
        connection.started(request)
        response: web.StreamResponse
        try:
            response = await exchange(request)
        except OncueError as e:
            if isinstance(e, Unauthorized) or not route.scope:
                await addresses.refused(connection.address)
            response = problems.response(e, request)
        except ConnectionError:  # the client has gone
            raise
        except Exception as e:
            response = problems.response(problems.unexpected(e, f"{route.method} {route.template}"), request)
        if response.status >= 400 and not request.content.is_eof():
            response.force_close()  # the rest of the body is not wanted
        count(response.status, time.perf_counter() - started)
        return response

    return serve


def _exchange(api: Api, route: Route, limit: RateLimit, queue: FairQueue, addresses: AddressLimit) -> Serve:
    decoder: Decoder | None = None
    if route.takes is not None:
        decoder = route.decoder or BodyDecoder(route.takes, route.takes_msgpack, route.optional)
    max_bytes = min(route.max_bytes or api.settings.max_body_bytes, api.settings.max_body_bytes)
    json_bytes = route.json_bytes
    fixed = 0 < route.max_bytes <= api.settings.max_body_bytes
    plain_query = route.query is NoQuery
    no_query = NoQuery()

    async def exchange(request: web.Request) -> web.StreamResponse:
        headers = request.headers
        context = RequestContext(api, request, ANONYMOUS)
        if not route.scope:
            on_behalf_of.set(address := connection_of(request).address)
            if not route.probe:
                addresses.count(address)
            elif not queue.is_free():
                await queue.turn(address)
        else:
            context.caller = caller = await api.logins.authenticate(Credentials(headers.get("Authorization")))
            connection_of(request).authenticated(caller.token_id)
            require(caller, route.scope)
            on_behalf_of.set(caller.subject)
            limit.count(caller.token_id)
            if not queue.is_free():
                await queue.turn(caller.subject)
        context.query = no_query if plain_query and "?" not in request.raw_path else decode_query(request, route.query)
        if decoder is not None:
            # Some clients name a type even for no body.
            if request.can_read_body or not route.optional:
                context.coding = coding_of(request, route)
            if context.coding == JSON and json_bytes < max_bytes:
                data = await read_body(request, json_bytes, True)
            else:
                data = await read_body(request, max_bytes, fixed)
            context.body = await decoder.read(data, context.coding)
        elif route.raw:
            context.raw = await read_body(request, max_bytes, fixed)
        position = headers.get(POSITION)
        if position is not None and route.scope:
            await _wait_for(api, position)
        if route.waits:
            result = await hold(api.streams, request, lambda: route.handler(context), context.caller.subject)
        else:
            result = await route.handler(context)
        if isinstance(result, web.StreamResponse):
            return result
        if route.items is None:
            return answer(result, route.status, context.coding)
        # Values that JSON has not are converted one by one; a page may have many.
        return await off_loop(answer, result, route.status, context.coding)

    return exchange


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection of a request."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


async def _wait_for(api: Api, position: str) -> None:
    if len(position) > 1000 or not position.isascii() or not position.isprintable():
        raise Invalid(f"the header {POSITION} is not a position", remedy="send back what an answer of oncue carried")
    await api.backend.wait_for(position)


def answer(result: Any, status: int = 200, coding: str = JSON) -> web.Response:
    """Return a result as a response, with its position in the log if it has one."""
    if result is None:
        return web.Response(status=204, headers={"X-Content-Type-Options": "nosniff"})
    body = _msgpack(result) if coding == MSGPACK else encode_json(result)
    headers = {"Content-Type": coding, "X-Content-Type-Options": "nosniff"}
    position = getattr(result, "position", "")
    if position:
        headers[POSITION] = position
    return web.Response(status=status, body=body, headers=headers)
