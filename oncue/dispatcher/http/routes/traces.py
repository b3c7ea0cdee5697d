"""Routes of traces: an event, its tasks, and what followed their outcomes."""

from __future__ import annotations

from oncue.dispatcher.http.route import RequestContext, Route
from oncue.dispatcher.http.routes.tasks import task_id
from oncue.errors import NotFound
from oncue.protocol.api import Trace


async def of_event(context: RequestContext) -> Trace:
    return await context.backend.traces.of_event(context.caller, context.number("offset"))


async def of_task(context: RequestContext) -> Trace:
    return await context.backend.traces.of_task(context.caller, task_id(context))


ROUTES = (
    Route(
        "GET",
        "/v1/events/{offset}/trace",
        of_event,
        summary="What an event has caused: its tasks, those that follow them, and so on.",
        scope="read",
        gives=Trace,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/trace",
        of_task,
        summary="What the event has caused with which a task's chain began.",
        scope="read",
        gives=Trace,
        errors=(NotFound,),
    ),
)
