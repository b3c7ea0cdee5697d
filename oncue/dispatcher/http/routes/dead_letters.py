"""Routes of dead letters: list, show, retry, dismiss."""

from __future__ import annotations

from oncue.dispatcher.http.route import SMALL_BYTES, RequestContext, Route
from oncue.dispatcher.http.schemas import DeadQuery
from oncue.errors import Conflict, DiskFull, NotFound
from oncue.protocol.api import DeadInfo, Dismissed, DismissRequest, Page


async def dead(context: RequestContext) -> Page:
    return await context.backend.dead_letters.page(
        context.caller, context.query.cursor, context.query.limit, context.query.all
    )


async def dead_letter(context: RequestContext) -> DeadInfo:
    return await context.backend.dead_letters.get(context.caller, context.number("id"))


async def retry(context: RequestContext) -> None:
    await context.backend.dead_letters.retry(context.caller, context.number("id"))


async def dismiss(context: RequestContext) -> Dismissed:
    return await context.backend.dead_letters.dismiss(context.caller, context.body)


ROUTES = (
    Route(
        "GET",
        "/v1/dead",
        dead,
        summary="What could not go on, with the reason, newest first: of your rules, and of everything for an admin.",
        scope="read",
        query=DeadQuery,
        gives=Page,
        items=DeadInfo,
    ),
    Route(
        "GET",
        "/v1/dead/{id:(?!dismiss$)[^/]+}",  # that is a path of its own
        dead_letter,
        summary="One dead letter, and what was done about it.",
        scope="read",
        gives=DeadInfo,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/dead/{id}/retry",
        retry,
        summary="Try a dead letter again.",
        scope="user",
        status=204,
        errors=(NotFound, Conflict, DiskFull),
    ),
    Route(
        "POST",
        "/v1/dead/dismiss",
        dismiss,
        summary="Dismiss dead letters: nothing is to be done about them. They can still be looked at, and retried.",
        scope="user",
        takes=DismissRequest,
        max_bytes=2 * SMALL_BYTES,
        gives=Dismissed,
        errors=(NotFound, DiskFull),
    ),
)
