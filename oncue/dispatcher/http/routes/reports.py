"""Routes of reports, replays and simulations."""

from __future__ import annotations

from oncue.dispatcher.http.route import JSON_BYTES, SMALL_BYTES, RequestContext, Route
from oncue.dispatcher.http.schemas import ReportQuery
from oncue.dispatcher.services.history.reports import ReportFilter
from oncue.errors import Conflict, DiskFull, NotFound
from oncue.protocol.api import Page, ReplayPage, ReplayRequest, ReportItem, SimulateRequest, SimulationPage
from oncue.rules.survey.surveyor import SurveyFailed


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


async def replay(context: RequestContext) -> ReplayPage:
    return await context.backend.replays.page(context.caller, context.path("name"), context.body)


async def simulate(context: RequestContext) -> SimulationPage:
    return await context.backend.simulations.page(context.caller, context.path("label"), context.body)


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
    Route(
        "POST",
        "/v1/rules/{name}/replay",
        replay,
        summary="Test a rule with a page of stored events once more. With dry_run: only count.",
        scope="user",
        takes=ReplayRequest,
        max_bytes=SMALL_BYTES,
        gives=ReplayPage,
        errors=(NotFound, Conflict, DiskFull, SurveyFailed),
    ),
    Route(
        "POST",
        "/v1/deployments/{label}/simulate",
        simulate,
        summary="What another text of a rule file would have done with a page of stored events. Nothing is run.",
        scope="user",
        takes=SimulateRequest,
        max_bytes=JSON_BYTES,
        gives=SimulationPage,
        errors=(SurveyFailed,),
    ),
)
