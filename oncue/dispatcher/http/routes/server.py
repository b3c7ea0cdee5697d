"""Routes outside of /v1.

They are webhooks, health, metrics, the OpenAPI document and the pages.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web

from oncue import __version__
from oncue.dispatcher.auth.base import Credentials
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.scopes import OPENS
from oncue.dispatcher.http.route import HTML, TEXT, RequestContext, Route
from oncue.dispatcher.metrics.metrics import CONTENT_TYPE
from oncue.dispatcher.off_loop import off_loop
from oncue.errors import Forbidden, NotFound, NotReady, TriggerFailed, Unauthorized
from oncue.protocol.api import Health
from oncue.protocol.records import EVENT_BYTES
from oncue.triggers.base import HookAnswer

#: Scripts, styles and requests from this server only; nothing inline, nothing framed, and no form
#: is sent elsewhere.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": HTML, "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
FILES = ("index.html", "status.js", "docs.html", "docs.js", "page.js", "style.css", "icon.svg")


async def hook(context: RequestContext) -> web.Response:
    """Pass a request to its webhook trigger.

    The trigger authenticates it by a signature or token of its own.
    """
    return _hook_answer(await context.backend.triggers.receive(context.path("trigger"), context.headers, context.raw))


async def hook_options(context: RequestContext) -> web.Response:
    """Answer a sender that asks whether it may send.

    See CloudEvents' HTTP 1.1 Web Hooks, section 4.
    """
    return _hook_answer(await context.backend.triggers.handshake(context.path("trigger"), context.headers))


def _hook_answer(answer: HookAnswer) -> web.Response:
    status, headers, body = answer
    response = web.Response(status=status, body=body, headers=headers)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


async def alive(context: RequestContext) -> Health:
    return Health(status="ok", version=__version__)


async def ready(context: RequestContext) -> web.Response:
    """Return the health, with 503 while the server starts or stops.

    Details of checks need a token that may read.
    """
    caller = await _reader(context)
    if context.api.streams.closing:
        health = Health(status="stopping", version=__version__)
    else:
        health = await context.backend.status.health(caller)
    if caller is None:
        brief = {name: _brief(found) for name, found in health.checks.items()}
        health = msgspec.structs.replace(health, checks=brief, triggers={})
    status = 503 if health.status in ("starting", "stopping") else 200
    return web.json_response(body=msgspec.json.encode(health), status=status, headers={"Cache-Control": "no-store"})


def _brief(found: str) -> str:
    """Return a check's result without names and paths.

    It is "ok", "not ok", or a count such as "not ok: 1 of 3".
    """
    return found if found == "ok" or found.startswith("not ok: ") else "not ok"


async def _reader(context: RequestContext, *scopes: str) -> Caller | None:
    """Return the caller of the request, if it may read or has one of the scopes.

    Unknown credentials are refused from memory.
    """
    logins, credentials = context.api.logins, Credentials(context.request.headers.get("Authorization"))
    if not logins.is_valid(credentials):
        return None
    caller = await logins.authenticate(credentials)
    return None if caller.scopes.isdisjoint(OPENS["read"] | set(scopes)) else caller


async def metrics(context: RequestContext) -> web.Response:
    """Return the metrics, with the names of what the caller may see.

    They need a token unless open_metrics is set.
    """
    caller = await _reader(context, "metrics")
    if not context.api.settings.open_metrics and caller is None:
        if "Authorization" in context.request.headers:
            raise Forbidden(
                "these metrics need a good token that may read", remedy="use one with the scope metrics or read"
            )
        raise Unauthorized(
            "the metrics need a token",
            remedy="let Prometheus send one with scope metrics (authorization.credentials_file), or set open_metrics = true",
        )
    await context.backend.status.collect()
    context.api.metrics.streams(len(context.api.streams))
    if caller is None or caller.sees_all or "metrics" in caller.scopes:
        text = await off_loop(context.api.metrics.text)
    else:
        rules = context.backend.status.rules_of(caller.subject)
        text = await off_loop(context.api.metrics.text_for, caller.subject, rules)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def openapi(context: RequestContext) -> web.Response:
    return web.Response(
        body=context.api.document(), headers={"Content-Type": "application/json", "Cache-Control": "no-cache"}
    )


@cache
def page_file(name: str) -> tuple[bytes, str]:
    """Return the content and content type of a page's file. Raises NotFound."""
    if name not in FILES:
        raise NotFound(f"there is no page file {name[:100]!r}", remedy="the pages are / and /docs")
    content = (resources.files("oncue.dispatcher") / "web" / name).read_bytes()
    return content, _TYPES[name.rpartition(".")[2]] + ("" if name.endswith(".svg") else "; charset=utf-8")


def _page(name: str) -> web.Response:
    content, kind = page_file(name)
    return web.Response(body=content, headers=_PAGE_HEADERS | {"Content-Type": kind})


async def index(context: RequestContext) -> web.Response:
    return _page("index.html")


async def docs(context: RequestContext) -> web.Response:
    return _page("docs.html")


async def file(context: RequestContext) -> web.Response:
    return _page(context.path("file"))


ROUTES = (
    Route(
        "POST",
        "/hooks/{trigger}",
        hook,
        summary="A webhook trigger. Verified as its rule file says; the event is durable before the 2xx.",
        scope="",
        raw=True,
        takes_doc=bytes,
        reads=("*/*",),
        gives=Any,
        errors=(Unauthorized, NotFound, TriggerFailed, NotReady),
        any_query=True,
        max_bytes=4 * EVENT_BYTES,
    ),
    Route(
        "OPTIONS",
        "/hooks/{trigger}",
        hook_options,
        summary="May this sender send? The handshake of CloudEvents' web hooks (WebHook-Request-Origin).",
        scope="",
        errors=(NotFound, Forbidden, TriggerFailed, NotReady),
        any_query=True,
    ),
    Route("GET", "/health/live", alive, summary="The process answers.", scope="", gives=Health, probe=True),
    Route(
        "GET",
        "/health/ready",
        ready,
        summary="503 while the server starts or stops.",
        scope="",
        gives=Health,
        also=(503,),
        probe=True,
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        summary="For Prometheus. Needs a token with the scope metrics, or read (without others' names), unless the setting "
        "open_metrics is true.",
        scope="",
        gives=str,
        writes=(TEXT,),
        errors=(Unauthorized, Forbidden),
    ),
    Route("GET", "/openapi.json", openapi, summary="This document.", scope="", gives=dict[str, Any]),
    Route("GET", "/docs", docs, summary="This document, to read.", scope="", gives=str, writes=(HTML,)),
    Route("GET", "/", index, summary="The status page.", scope="", gives=str, writes=(HTML,)),
    Route(
        "GET",
        "/page/{file}",
        file,
        summary="Files of the pages.",
        scope="",
        gives=bytes,
        writes=("*/*",),
        errors=(NotFound,),
    ),
)
