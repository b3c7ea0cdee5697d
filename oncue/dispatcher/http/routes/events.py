"""Routes of events, triggers, and live events (server-sent events)."""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from oncue import ids
from oncue.dispatcher.http import problems
from oncue.dispatcher.http.body import BodyDecoder, coding_of
from oncue.dispatcher.http.json_encoding import encode_json
from oncue.dispatcher.http.route import EVENT_STREAM, JSON, JSON_BYTES, SMALL_BYTES, RequestContext, Route
from oncue.dispatcher.http.routes.tasks import idempotency_key
from oncue.dispatcher.http.schemas import EmitRequest, EventFilterQuery, EventsQuery, FileQuery, LiveQuery
from oncue.dispatcher.http.streams import serve_stream
from oncue.dispatcher.off_loop import LARGE_BYTES, off_loop_if
from oncue.errors import DiskFull, Invalid, NotFound, OncueError, TooLarge, TriggerFailed
from oncue.protocol import cloudevents
from oncue.protocol.api import (
    Backfilled,
    BackfillRequest,
    Emitted,
    EventCount,
    EventInfo,
    Page,
    TriggerFile,
    TriggerInfo,
    TriggerShown,
)
from oncue.protocol.cloudevents_http import check_containers, check_no_cloudevent, check_size, events_from_http
from oncue.protocol.records import Event
from oncue.view import EventFilter

STRUCTURED, BATCHED = "application/cloudevents+json", "application/cloudevents-batch+json"
KINDS = ("task", "outcome", "event", "rule", "endpoint", "trigger", "dead")
RETRY_MS = 2_000


async def emit(context: RequestContext) -> Emitted:
    events = await off_loop_if(len(context.raw) > LARGE_BYTES, _events, context)
    if len(events) > context.api.settings.max_batch:
        most = context.api.settings.max_batch
        raise TooLarge(f"{len(events):,} events are over the limit of {most:,}", remedy="send fewer", limit=most)
    return await context.backend.events.emit(context.caller, events)


def _events(context: RequestContext) -> Sequence[Event]:
    """Return the events of a CloudEvents request or of plain JSON.

    A CloudEvents request is binary, structured or a batch. Raises Invalid and others.
    """
    events = events_from_http(context.headers, context.raw)
    if events is not None:
        return events
    coding_of(context.request, PLAIN)
    check_size(context.raw)
    check_containers(context.raw)
    try:
        request: EmitRequest = _plain.decode(context.raw, JSON)
    except Invalid:
        check_no_cloudevent(context.raw)
        raise
    event = Event(
        id=request.id or _event_id(context, idempotency_key(context.request, "")),
        source=request.source,
        type=request.type,
        subject=request.subject,
        time=request.time,
        data=request.data,
        datacontenttype=JSON if request.data is not None else None,
    )
    cloudevents.check(event)
    return [event]


def _event_id(context: RequestContext, key: str) -> str:
    """Return an event id that is derived from caller and key.

    So a repeated request is the same event. Without a key the id is a new one.
    """
    if not key:
        return ids.new_uuid7().hex()
    return hashlib.blake2b(f"{context.caller.subject}\0{key}".encode(), digest_size=16).hexdigest()


async def events(context: RequestContext) -> Page:
    q: EventsQuery = context.query
    filters = msgspec.structs.replace(_filters(q), cursor=q.cursor, limit=q.limit)
    return await context.backend.events.page(context.caller, filters)


async def count(context: RequestContext) -> EventCount:
    return await context.backend.events.count(context.caller, _filters(context.query))


def _filters(q: EventFilterQuery) -> EventFilter:
    return EventFilter(
        type=q.type,
        source=q.source,
        id=q.id,
        since_us=q.since_us,
        until_us=q.until_us,
        rule=q.rule,
        endpoint=q.endpoint,
        state=q.state,
    )


async def event(context: RequestContext) -> EventInfo:
    return await context.backend.events.get(context.caller, context.number("offset"))


async def triggers(context: RequestContext) -> list[TriggerInfo]:
    return await context.backend.triggers.all(context.caller, context.bearer)


async def trigger(context: RequestContext) -> TriggerShown:
    return await context.backend.triggers.get(context.caller, context.path("name"), context.bearer)


async def trigger_file(context: RequestContext) -> TriggerFile:
    return await context.backend.triggers.explain(
        context.caller, context.path("name"), context.query.path, context.bearer
    )


async def backfill(context: RequestContext) -> Backfilled:
    return await context.backend.triggers.backfill(context.caller, context.path("name"), context.body, context.bearer)


async def live(context: RequestContext) -> web.StreamResponse:
    kinds = frozenset(k for k in context.query.kinds.split(",") if k) or frozenset(KINDS)
    for kind in sorted(kinds.difference(KINDS)):
        near = difflib.get_close_matches(kind[:100], KINDS, n=1)
        raise Invalid(
            f"there is no kind {kind[:100]!r} - at the query's kinds",
            remedy=f"did you mean {near[0]}?" if near else f"the kinds are {', '.join(KINDS)}",
            path="kinds",
        )
    response = web.StreamResponse(
        headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    counter = itertools.count(1)
    boot = ids.new_uuid7().hex()[:12]  # tells the ids of two connections apart
    resumed = "Last-Event-ID" in context.request.headers

    def head() -> bytes:
        # Events that a client missed are not repeated. After `reset` it should read its lists
        # again.
        text = f"retry: {RETRY_MS}\n" + (f"id: {boot}-0\nevent: reset\ndata: {{}}\n\n" if resumed else "\n")
        return text.encode()

    def frame(item: tuple[str, Any]) -> bytes:
        kind, data = item
        if not kind:
            return b":\n\n"
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (boot.encode(), next(counter), kind.encode(), encode_json(data))

    def problem_frame(error: Exception) -> bytes:
        known = error if isinstance(error, OncueError) else problems.unexpected(error, "GET /v1/live")
        return b"event: problem\ndata: %s\n\n" % problems.problem_json(known)

    source = context.backend.events.live(context.caller, kinds)
    return await serve_stream(context.stream(), response, source, frame, head=head(), on_error=problem_frame)


PLAIN = Route(
    "POST",
    "/v1/events",
    emit,
    summary="Tell that something happened. CloudEvents 1.0 over HTTP (binary: ce- headers; structured; batch), or plain "
    "JSON with type, source and data. 202: the events are durable.",
    scope="emit",
    raw=True,
    max_bytes=JSON_BYTES,
    takes_doc=EmitRequest,
    reads=(JSON, STRUCTURED, BATCHED),
    gives=Emitted,
    status=202,
    errors=(DiskFull,),
)
_plain = BodyDecoder(EmitRequest)

ROUTES = (
    PLAIN,
    Route(
        "GET",
        "/v1/events",
        events,
        summary="Stored events, newest first.",
        scope="read",
        query=EventsQuery,
        gives=Page,
        items=EventInfo,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/events/count",
        count,
        summary="How many events a list has, up to 10,000.",
        scope="read",
        query=EventFilterQuery,
        gives=EventCount,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/events/{offset:(?!count$)[^/]+}",
        event,
        summary="One event, and what it caused.",
        scope="read",
        gives=EventInfo,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/triggers",
        triggers,
        summary="The sources of events, and how they are.",
        scope="read",
        gives=list[TriggerInfo],
    ),
    Route(
        "GET",
        "/v1/triggers/{name}",
        trigger,
        summary="One source of events, and what became of the last files.",
        scope="read",
        gives=TriggerShown,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/triggers/{name}/file",
        trigger_file,
        summary="Why a file fired, or did not.",
        scope="read",
        query=FileQuery,
        gives=TriggerFile,
        errors=(NotFound, TriggerFailed),
    ),
    Route(
        "POST",
        "/v1/triggers/{name}/backfill",
        backfill,
        summary="Let files fire that existed before the trigger.",
        scope="user",
        takes=BackfillRequest,
        max_bytes=SMALL_BYTES,
        gives=Backfilled,
        errors=(NotFound, TriggerFailed, DiskFull),
    ),
    Route(
        "GET",
        "/v1/live",
        live,
        summary="What happens, as server-sent events (event: the kind, data: JSON). `reset` after a reconnection: read lists "
        "again. `problem`: the stream ends.",
        scope="read",
        query=LiveQuery,
        gives=str,
        writes=(EVENT_STREAM,),
        streamed=True,
    ),
)
