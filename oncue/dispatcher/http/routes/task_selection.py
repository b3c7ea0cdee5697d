"""Routes for many tasks: lists, counts, cancel and retry."""

from __future__ import annotations

import msgspec

from oncue import ids
from oncue.dispatcher.http.route import RequestContext, Route
from oncue.dispatcher.http.routes.tasks import ACCEPT, IDS_BYTES, parse_ids, task_id
from oncue.dispatcher.http.schemas import Cancelling, TaskFilterQuery, TasksQuery
from oncue.errors import Invalid, NotFound
from oncue.protocol.api import (
    CancelRequest,
    Page,
    Retried,
    RetryOneRequest,
    RetryRequest,
    TaskCount,
    TaskInfo,
)
from oncue.view import TaskFilter


async def find(context: RequestContext) -> Page:
    q: TasksQuery = context.query
    if q.id:
        return await context.backend.task_lists.find(context.caller, q.id, q.limit)
    filters = msgspec.structs.replace(_filters(q), cursor=q.cursor, limit=q.limit)
    return await context.backend.task_lists.page(context.caller, filters)


async def count(context: RequestContext) -> TaskCount:
    return await context.backend.task_lists.count(context.caller, _filters(context.query))


def _filters(q: TaskFilterQuery) -> TaskFilter:
    if bool(q.event_source) != bool(q.event_id):
        raise Invalid("the query: an event is named by event_source and event_id together", remedy="give both")
    return TaskFilter(
        state=q.state,
        endpoint=q.endpoint,
        function=q.function,
        rule=q.rule,
        event=(q.event_source, q.event_id) if q.event_id else None,
        owner=q.owner,
        since_us=q.since_us,
        until_us=q.until_us,
        not_retried=q.not_retried,
    )


async def cancel(context: RequestContext) -> Cancelling:
    request: CancelRequest = context.body
    if request.filter is not None:
        cancelled, following = await context.backend.task_lists.cancel_page(context.caller, request, context.bearer)
        return _cancelling(cancelled, following)
    wanted = list(map(ids.text, await parse_ids(request.tasks, "$.tasks")))
    to_cancel = CancelRequest(tasks=wanted, waiting=request.waiting)
    return _cancelling(await context.backend.cancellation.cancel(context.caller, to_cancel, context.bearer))


async def cancel_one(context: RequestContext) -> Cancelling:
    return _cancelling(
        await context.backend.cancellation.cancel(context.caller, CancelRequest(tasks=[task_id(context)]))
    )


def _cancelling(tasks: list[str], following: str | None = None) -> Cancelling:
    return Cancelling(count=len(tasks), tasks=tasks, next=following)


async def retry(context: RequestContext) -> Retried:
    request: RetryRequest = context.body
    wanted = list(map(ids.text, await parse_ids(request.tasks, "$.tasks")))
    return await context.backend.retries.retry(context.caller, msgspec.structs.replace(request, tasks=wanted))


async def retry_one(context: RequestContext) -> TaskInfo:
    return await context.backend.retries.retry_one(context.caller, task_id(context), context.body)


ROUTES = (
    Route(
        "GET",
        "/v1/tasks",
        find,
        summary="Tasks that you may see, newest first.",
        scope="read",
        query=TasksQuery,
        gives=Page,
        items=TaskInfo,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/tasks/count",
        count,
        summary="How many tasks a list has, up to 10,000.",
        scope="read",
        query=TaskFilterQuery,
        gives=TaskCount,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/tasks/cancel",
        cancel,
        summary="Ask for tasks to be cancelled, by id or by what they share; the first closing record of each decides.",
        scope="user",
        takes=CancelRequest,
        max_bytes=IDS_BYTES,
        gives=Cancelling,
        status=202,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/tasks/retry",
        retry,
        summary="Run closed tasks again, by id or by what they share, as new tasks that name the old ones.",
        scope="user",
        takes=RetryRequest,
        max_bytes=IDS_BYTES,
        gives=Retried,
        status=202,
        errors=ACCEPT,
    ),
    Route(
        "POST",
        "/v1/tasks/{id}/cancel",
        cancel_one,
        summary="Ask for one task to be cancelled.",
        scope="user",
        gives=Cancelling,
        status=202,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/tasks/{id}/retry",
        retry_one,
        summary="Run a closed task's call again, with the version in force: a new task that names the old one.",
        scope="user",
        takes=RetryOneRequest,
        optional=True,
        gives=TaskInfo,
        status=202,
        errors=ACCEPT,
    ),
)
