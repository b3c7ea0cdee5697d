"""Route: one row of the table that defines the HTTP API.

The aiohttp routes, the checks of scopes and bodies, and the OpenAPI document are all made from the
table.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import msgspec
from aiohttp import web

from oncue.config import Settings
from oncue.dispatcher.auth.base import AuthenticatorChain
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.scopes import Scope
from oncue.dispatcher.cluster.peers import FORWARDED
from oncue.dispatcher.http.backend import Backend
from oncue.dispatcher.http.streams import OpenRequest, Streams
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.errors import Invalid, OncueError

JSON, MSGPACK, PROBLEM = "application/json", "application/msgpack", "application/problem+json"
OCTETS, EVENT_STREAM, TEXT, HTML = "application/octet-stream", "text/event-stream", "text/plain", "text/html"

JSON_BYTES = 16 * 1024 * 1024
SMALL_BYTES = 256 * 1024  # of bodies with a few fields

ANONYMOUS = Caller("", frozenset())


class RequestContext:
    """A request that has passed all checks: the argument of a route's handler."""

    __slots__ = ("api", "body", "caller", "coding", "query", "raw", "request")

    def __init__(self, api: Api, request: web.Request, caller: Caller) -> None:
        self.api, self.request, self.caller = api, request, caller
        self.body: Any = None  # decoded as the route's `takes`
        self.raw = b""  # the body's bytes, if the route is `raw`
        self.query: Any = None  # decoded as the route's `query`
        self.coding = JSON  # of the body, and of the answer

    @property
    def backend(self) -> Backend:
        """The services of the server."""
        return self.api.backend

    @property
    def bearer(self) -> str:
        """The Authorization header to forward to a peer;

        "" if this request was forwarded itself.
        """
        headers = self.request.headers
        return "" if FORWARDED in headers else headers.get("Authorization", "")

    @property
    def headers(self) -> dict[str, str]:
        """The headers, with names in lower case."""
        return {name.lower(): value for name, value in self.request.headers.items()}

    def stream(self) -> OpenRequest:
        """Return the request as a stream of its caller, to be counted and ended as one."""
        return OpenRequest(self.api.streams, self.request, self.caller.token_id, self.caller.subject)

    def path(self, name: str) -> str:
        """Return a parameter of the path."""
        return self.request.match_info[name]

    def number(self, name: str) -> int:
        """Return a number in the path. Raises Invalid."""
        text = self.path(name)
        if text.isascii() and text.isdecimal() and len(text) < 19:
            return int(text)
        raise Invalid(f"{text[:100]!r} is not a number - at the path's {name}", remedy="give digits", path=name)


Handler = Callable[[RequestContext], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Api:
    """State that all handlers share."""

    backend: Backend
    settings: Settings
    metrics: Metrics
    streams: Streams
    logins: AuthenticatorChain
    document: Callable[[], bytes]  # OpenAPI, in JSON; built when it is first asked for


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route without query parameters."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API."""

    method: str
    path: str  # aiohttp's syntax: {name}, {name:.+}
    handler: Handler
    _: KW_ONLY
    summary: str
    scope: Scope
    takes: Any = None  # the Struct that the body is decoded as
    reads: tuple[str, ...] = (JSON,)  # content types of the body
    takes_msgpack: Any = None  # if the body in msgpack has other types than in JSON
    decoder: Any = None  # a Decoder of its own (body.py)
    takes_doc: Any = None  # type of the body for the document, if the handler reads it itself
    optional: bool = False  # an empty body is a `takes()`
    raw: bool = False  # the handler gets the body's bytes
    # The handler reads the body itself, or answers with a stream. Neither has a limit of size.
    streamed: bool = False
    query: type[msgspec.Struct] = NoQuery
    any_query: bool = False  # senders add parameters of their own: they are ignored
    gives: Any = None  # type of the answer; None: no content
    gives_msgpack: Any = None  # if the answer in msgpack has other types than in JSON
    items: Any = None  # type of the items, if `gives` is Page
    writes: tuple[str, ...] = (JSON,)  # content types of the answer
    status: int = 200
    also: tuple[int, ...] = ()  # other statuses with an answer of this form
    errors: tuple[type[OncueError], ...] = ()  # besides those of every route
    max_bytes: int = 0  # of the body; 0: settings.max_body_bytes
    json_bytes: int = JSON_BYTES  # of the body in JSON
    probe: bool = False  # asked by proxies and monitors: takes turns, but is never refused for its rate
    waits: bool = False  # may be held open at the caller's request; ended when the server stops

    @property
    def template(self) -> str:
        """The path without patterns, as OpenAPI writes it."""
        return re.sub(r"\{(\w+):[^{}]+\}", r"{\1}", self.path)

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters in the path."""
        return re.findall(r"\{(\w+)\}", self.template)

    @property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression of the paths of this route."""
        parts = re.split(r"\{\w+(?::([^{}]+))?\}", self.path)
        literal, patterns = parts[::2], parts[1::2]
        text = re.escape(literal[0])
        for pattern, after in zip(patterns, literal[1:], strict=True):
            text += f"(?:{pattern or '[^/]+'})" + re.escape(after)
        return re.compile(text + r"\Z")
