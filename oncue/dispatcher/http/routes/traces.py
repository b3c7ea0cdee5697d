"""Route of traces: an event, its tasks, and what followed their outcomes."""

from __future__ import annotations

from oncue.dispatcher.http.route import RequestContext, Route
from oncue.dispatcher.http.schemas import TraceQuery
from oncue.errors import NotFound
from oncue.protocol.api import Trace


async def trace(context: RequestContext) -> Trace:
    return await context.backend.traces.get(context.caller, context.query.offset, context.query.task)


ROUTES = (
    Route(
        "GET",
        "/v1/trace",
        trace,
        summary="What an event, or the event with which a task's chain began, has caused. Give offset or task.",
        scope="read",
        query=TraceQuery,
        gives=Trace,
        errors=(NotFound,),
    ),
)
