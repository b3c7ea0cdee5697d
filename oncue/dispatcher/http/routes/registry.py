"""Routes of functions, endpoints and tokens."""

from __future__ import annotations

from aiohttp import web

from oncue.dispatcher.http.json_encoding import encode_items
from oncue.dispatcher.http.route import JSON, MSGPACK, SMALL_BYTES, RequestContext, Route
from oncue.dispatcher.http.routes.tasks import check_ms
from oncue.dispatcher.http.schemas import EndpointsQuery, PageQuery, RevokeQuery
from oncue.dispatcher.off_loop import off_loop_if
from oncue.dispatcher.services.endpoints import MANY_ENDPOINTS
from oncue.errors import CannotPack, Conflict, DiskFull, NotFound, TooLarge
from oncue.protocol.api import (
    EndpointInfo,
    EndpointRequest,
    FunctionInfo,
    FunctionRequest,
    Me,
    Page,
    Registered,
    RevokedToken,
    TokenInfo,
    TokenRequest,
)
from oncue.protocol.records import FUNCTION_BYTES


async def me(context: RequestContext) -> Me:
    from oncue import __version__

    record = context.backend.tokens.by_id(context.caller.token_id)
    return Me(
        subject=context.caller.subject,
        scopes=sorted(context.caller.scopes),
        server=__version__,
        server_id=context.backend.server_id,
        token=context.caller.token_id,
        expires_us=record.expires_us if record else 0,
    )


async def register_function(context: RequestContext) -> FunctionInfo:
    request: FunctionRequest = context.body
    if len(request.body) > FUNCTION_BYTES:
        raise TooLarge(
            f"the function has {len(request.body):,} bytes; at most {FUNCTION_BYTES:,}",
            remedy="read large data inside the function, instead of shipping it along",
            limit_bytes=FUNCTION_BYTES,
            size_bytes=len(request.body),
        )
    return await context.backend.functions.register(context.caller, request)


async def functions(context: RequestContext) -> Page:
    return await context.backend.functions.page(context.caller, context.query.cursor, context.query.limit)


async def function(context: RequestContext) -> FunctionInfo:
    return await context.backend.functions.get(context.caller, context.path("name"))


async def register_endpoint(context: RequestContext) -> Registered:
    request: EndpointRequest = context.body
    if request.lost_after_ms is not None:
        check_ms(request, "lost_after_ms")
    return await context.backend.endpoints.register(context.caller, request)


async def endpoints(context: RequestContext) -> web.Response:
    query: EndpointsQuery = context.query
    found = await context.backend.endpoints.all(context.caller, query.after, query.limit)
    body = await off_loop_if(len(found) > MANY_ENDPOINTS, encode_items, found)
    return web.Response(body=body, headers={"Content-Type": JSON, "X-Content-Type-Options": "nosniff"})


async def endpoint(context: RequestContext) -> EndpointInfo:
    return await context.backend.endpoints.get(context.caller, context.path("name"), context.bearer)


async def revoke_endpoint(context: RequestContext) -> None:
    await context.backend.endpoints.revoke(context.caller, context.path("name"))


async def make_token(context: RequestContext) -> TokenInfo:
    return await context.backend.tokens.create(context.caller, context.body)


async def tokens(context: RequestContext) -> list[TokenInfo]:
    return await context.backend.tokens.all(context.caller)


async def revoke_token(context: RequestContext) -> RevokedToken:
    return await context.backend.tokens.revoke(context.caller, context.path("id"), context.query.endpoints)


ROUTES = (
    Route("GET", "/v1/me", me, summary="Who you are to this server.", scope="any", gives=Me),
    Route(
        "POST",
        "/v1/functions",
        register_function,
        summary="Register a function by its content; again is harmless.",
        scope="user",
        takes=FunctionRequest,
        reads=(JSON, MSGPACK),
        gives=FunctionInfo,
        writes=(JSON, MSGPACK),
        status=201,
        errors=(CannotPack, Conflict, DiskFull),
    ),
    Route(
        "GET",
        "/v1/functions",
        functions,
        summary="Functions that you may use.",
        scope="read",
        query=PageQuery,
        gives=Page,
        items=FunctionInfo,
    ),
    Route(
        "GET",
        "/v1/functions/{name:.+}",
        function,
        summary="One function: by its content hash, its name, or name@version.",
        scope="read",
        gives=FunctionInfo,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/endpoints",
        register_endpoint,
        summary="Register an agent's public key; the answer is what it needs to dial in.",
        scope="user",
        takes=EndpointRequest,
        max_bytes=SMALL_BYTES,
        gives=Registered,
        status=201,
        errors=(Conflict, DiskFull),
    ),
    Route(
        "GET",
        "/v1/endpoints",
        endpoints,
        summary="Endpoints, and how they are, by name.",
        scope="read",
        query=EndpointsQuery,
        gives=list[EndpointInfo],
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/endpoints/{name}",
        endpoint,
        summary="One endpoint, by name or id.",
        scope="read",
        gives=EndpointInfo,
        errors=(NotFound,),
    ),
    Route(
        "DELETE",
        "/v1/endpoints/{name}",
        revoke_endpoint,
        summary="Revoke an endpoint's key; a live link is cut.",
        scope="user",
        status=204,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/tokens",
        make_token,
        summary="Make a token. It is in this answer only. Nobody makes a token that can do more than theirs.",
        scope="user",
        takes=TokenRequest,
        max_bytes=SMALL_BYTES,
        gives=TokenInfo,
        status=201,
        errors=(DiskFull, Conflict),
    ),
    Route("GET", "/v1/tokens", tokens, summary="Tokens, without their secret.", scope="read", gives=list[TokenInfo]),
    Route(
        "DELETE",
        "/v1/tokens/{id}",
        revoke_token,
        summary="Revoke a token, at once, and those that were made by it.",
        scope="user",
        query=RevokeQuery,
        gives=RevokedToken,
        errors=(NotFound,),
    ),
)
