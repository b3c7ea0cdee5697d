"""Handles one request, from authentication to the answer.

Its steps are: authenticate, limit, decode, call the route's handler, encode, count.

There is one try/except and no chain of middlewares. All this costs about a quarter of a bare
aiohttp handler.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from oncue.dispatcher.auth.base import Credentials
from oncue.dispatcher.auth.scopes import require
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.body import BodyDecoder, Decoder, coding_of, decode_query, read_body
from oncue.dispatcher.http.connection import connection_of
from oncue.dispatcher.http.fair_queue import FairQueue
from oncue.dispatcher.http.json_encoding import encode_json
from oncue.dispatcher.http.owner_memory import SMALL_BYTES, UNMADE_BYTES, OwnerMemory, memory_of
from oncue.dispatcher.http.rate_limit import AddressLimit, RateLimit
from oncue.dispatcher.http.route import ANONYMOUS, JSON, MSGPACK, Api, NoQuery, RequestContext, Route
from oncue.dispatcher.http.schemas import POSITION_CHARS
from oncue.dispatcher.http.streams import hold
from oncue.dispatcher.off_loop import off_loop
from oncue.errors import Invalid, OncueError, Unauthorized
from oncue.processes.fair_threads import on_behalf_of

POSITION = "Oncue-Position"
_msgpack = msgspec.msgpack.Encoder().encode
Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that all routes of a server share."""

    rate: RateLimit
    queue: FairQueue
    addresses: AddressLimit
    bodies: OwnerMemory
    answers: OwnerMemory


def bind(api: Api, route: Route, limits: Limits) -> Serve:
    """Return the aiohttp handler of a route."""
    name = f"{route.method} {route.template}"
    timed = not (route.streamed or route.waits)
    return serving(api, name, _Exchange(api, route, limits).answer, limits.addresses, timed, bool(route.scope))


def serving(api: Api, name: str, exchange: Serve, addresses: AddressLimit, timed: bool, scoped: bool) -> Serve:
    """Return an aiohttp handler that counts requests, and answers errors.

    `scoped`: callers need a token, so that only a bad token counts as a refusal of an address.
    """
    count = api.metrics.http_route(name, timed)

    async def serve(request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        connection = connection_of(request)
        response: web.StreamResponse
        try:
            connection.started(request)
            response = await exchange(request)
        except OncueError as e:
            if isinstance(e, Unauthorized) or not scoped:
                await addresses.refused(connection.address)
            response = problems.response(e, request)
        except ConnectionError:  # the client has gone
            raise
        except Exception as e:
            response = problems.response(problems.unexpected(e, name), request)
        if response.status >= 400 and not request.content.is_eof():
            response.force_close()  # the rest of the body is not wanted
        count(response.status, time.perf_counter() - started)
        return response

    return serve


class _Exchange:
    """Steps of a route, from a request to its answer."""

    def __init__(self, api: Api, route: Route, limits: Limits) -> None:
        self._api, self._route, self._limits = api, route, limits
        self._decoder: Decoder | None = None
        if route.takes is not None:
            self._decoder = route.decoder or BodyDecoder(route.takes, route.takes_msgpack, route.optional)
        most = api.settings.max_body_bytes
        self._max_bytes = min(route.max_bytes or most, most)
        self._fixed = 0 < route.max_bytes <= most
        self._plain_query = route.query is NoQuery
        self._no_query = NoQuery()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        route = self._route
        context = RequestContext(self._api, request, ANONYMOUS)
        await self._admit(context)
        plain = self._plain_query and (route.any_query or "?" not in request.raw_path)
        context.query = self._no_query if plain else decode_query(request, route.query)
        if self._decoder is None and not route.raw:
            return await self._respond(context)
        size = memory_of(request, self._max_bytes) if route.scope else 0  # connections bound those of others
        if size <= SMALL_BYTES:
            await self._read(context)
            return await self._respond(context)
        async with self._limits.bodies.room(context.caller.subject, size):
            await self._read(context)
            if not route.waits:
                return await self._respond(context)
        return await self._respond(context)

    async def _admit(self, context: RequestContext) -> None:
        """Authenticate the caller, and wait for its turn. Raises Unauthorized ..."""
        route, request, limits = self._route, context.request, self._limits
        connection = connection_of(request)
        if not route.scope:
            on_behalf_of.set(connection.address)
            if not route.probe:
                limits.addresses.count(connection.address)
            elif not limits.queue.is_free():
                await limits.queue.turn(connection.address)
            return
        credentials = Credentials(request.headers.get("Authorization"))
        context.caller = caller = await self._api.logins.authenticate(credentials)
        connection.authenticated(caller.token_id)
        require(caller, route.scope)
        on_behalf_of.set(caller.subject)
        limits.rate.count(caller.token_id)
        if not limits.queue.is_free():
            await limits.queue.turn(caller.subject)

    async def _read(self, context: RequestContext) -> None:
        route, request = self._route, context.request
        if self._decoder is None:
            context.raw = await read_body(request, self._max_bytes, self._fixed)
            return
        # Some clients name a type even for no body.
        if request.can_read_body or not route.optional:
            context.coding = coding_of(request, route)
        if context.coding == JSON and route.json_bytes < self._max_bytes:
            data = await read_body(request, route.json_bytes, True)
        else:
            data = await read_body(request, self._max_bytes, self._fixed)
        context.body = await self._decoder.read(data, context.coding)

    async def _respond(self, context: RequestContext) -> web.StreamResponse:
        route = self._route
        position = context.request.headers.get(POSITION)
        if position is not None and route.scope:
            await _wait_for(self._api, position)
        if route.waits:
            streams, owner = self._api.streams, context.caller.subject
            result = await hold(streams, context.request, lambda: route.handler(context), owner)
        elif route.items is not None:
            return await self._page(context)
        else:
            result = await route.handler(context)
        if isinstance(result, web.StreamResponse):
            return result
        return answer(result, route.status, context.coding)

    async def _page(self, context: RequestContext) -> web.StreamResponse:
        """Make a page of a list.

        It waits while the owner's other clients leave too many answers unread.
        """
        answers, owner = self._limits.answers, context.caller.subject
        await answers.take(owner, UNMADE_BYTES)
        connection, size = connection_of(context.request), UNMADE_BYTES
        try:
            result = await self._route.handler(context)
            # Values that JSON has not are converted one by one; a page may have many.
            response = await off_loop(answer, result, self._route.status, context.coding)
            kept = min(size, len(response.body) if isinstance(response.body, bytes) else 0)
            if kept > SMALL_BYTES and connection.transport is not None:
                connection.on_answered = partial(answers.give, owner, kept)
                size -= kept
        finally:
            answers.give(owner, size)
        return response


async def _wait_for(api: Api, position: str) -> None:
    if len(position) > POSITION_CHARS or not position.isascii() or not position.isprintable():
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
