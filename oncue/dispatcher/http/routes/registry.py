"""Functions, endpoints and tokens."""

from __future__ import annotations

from oncue.dispatcher.auth.tokens import check_token_request
from oncue.dispatcher.http.route import JSON, MSGPACK, Ask, Route
from oncue.dispatcher.http.routes.tasks import check_ms
from oncue.dispatcher.http.schemas import PageQuery
from oncue.errors import CannotPack, Conflict, DiskFull, NotFound, TooLarge
from oncue.protocol.api import (
    EndpointInfo,
    EndpointRequest,
    FunctionInfo,
    FunctionRequest,
    Me,
    Page,
    Registered,
    TokenInfo,
    TokenRequest,
)
from oncue.protocol.records import FUNCTION_BYTES


async def me(ask: Ask) -> Me:
    from oncue import __version__

    return Me(
        subject=ask.who.subject,
        scopes=sorted(ask.who.scopes),
        server=__version__,
        server_id=ask.backend.server_id,
    )


async def register_function(ask: Ask) -> FunctionInfo:
    request: FunctionRequest = ask.body
    if len(request.body) > FUNCTION_BYTES:
        raise TooLarge(
            f"the function has {len(request.body):,} bytes; at most {FUNCTION_BYTES:,}",
            remedy="read large data inside the function, instead of shipping it along",
            limit_bytes=FUNCTION_BYTES,
            size_bytes=len(request.body),
        )
    return await ask.backend.functions.register(ask.who, request)


async def functions(ask: Ask) -> Page:
    return await ask.backend.functions.page(ask.who, ask.query.cursor, ask.query.limit)


async def function(ask: Ask) -> FunctionInfo:
    return await ask.backend.functions.get(ask.who, ask.path("name"))


async def register_endpoint(ask: Ask) -> Registered:
    request: EndpointRequest = ask.body
    if request.lost_after_ms is not None:
        check_ms(request, "lost_after_ms")
    return await ask.backend.endpoints.register(ask.who, request)


async def endpoints(ask: Ask) -> list[EndpointInfo]:
    return await ask.backend.endpoints.all(ask.who)


async def endpoint(ask: Ask) -> EndpointInfo:
    return await ask.backend.endpoints.get(ask.who, ask.path("name"), ask.bearer)


async def revoke_endpoint(ask: Ask) -> None:
    await ask.backend.endpoints.revoke(ask.who, ask.path("name"))


async def make_token(ask: Ask) -> TokenInfo:
    check_token_request(ask.who, ask.body)
    return await ask.backend.tokens.create(ask.who, ask.body)


async def tokens(ask: Ask) -> list[TokenInfo]:
    return await ask.backend.tokens.all(ask.who)


async def revoke_token(ask: Ask) -> None:
    await ask.backend.tokens.revoke(ask.who, ask.path("id"))


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
        gives=Registered,
        status=201,
        errors=(Conflict, DiskFull),
    ),
    Route(
        "GET",
        "/v1/endpoints",
        endpoints,
        summary="Endpoints, and how they are.",
        scope="read",
        gives=list[EndpointInfo],
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
        gives=TokenInfo,
        status=201,
        errors=(DiskFull,),
    ),
    Route("GET", "/v1/tokens", tokens, summary="Tokens, without their secret.", scope="read", gives=list[TokenInfo]),
    Route(
        "DELETE",
        "/v1/tokens/{id}",
        revoke_token,
        summary="Revoke a token, at once.",
        scope="user",
        status=204,
        errors=(NotFound,),
    ),
)
