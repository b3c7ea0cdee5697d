"""Route of reports: what became of each event."""

from __future__ import annotations

from oncue.dispatcher.http.route import RequestContext, Route
from oncue.dispatcher.http.schemas import ReportQuery
from oncue.dispatcher.services.history.reports import ReportFilter
from oncue.errors import NotFound
from oncue.protocol.api import Page, ReportItem


async def report(context: RequestContext) -> Page:
    q: ReportQuery = context.query
    return await context.backend.reports.page(
        context.caller,
        ReportFilter(
            since_us=q.since_us,
            until_us=q.until_us,
            rule=q.rule,
            trigger=q.trigger,
            group=q.group,
            cursor=q.cursor,
            limit=q.limit,
        ),
    )


ROUTES = (
    Route(
        "GET",
        "/v1/report",
        report,
        summary="What became of each event, oldest first: done, failed, waiting, passed over or missing, with reasons.",
        scope="read",
        query=ReportQuery,
        gives=Page,
        items=ReportItem,
        errors=(NotFound,),
    ),
)
