"""Routes of rules: deploy, show, enable, explain, roll back, remove."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from oncue.dispatcher.http.json_encoding import encode_json
from oncue.dispatcher.http.route import JSON_BYTES, SMALL_BYTES, RequestContext, Route
from oncue.dispatcher.http.routes.tasks import task_id
from oncue.dispatcher.http.schemas import DeploymentInfo, ExplainRequest, RollbackRequest, WhyRequest
from oncue.errors import Conflict, DiskFull, Invalid, NotFound, RuleFileError
from oncue.protocol import cloudevents
from oncue.protocol.api import Deployed, DeployRequest, Explanation, RuleInfo
from oncue.protocol.records import EVENT_BYTES, Event
from oncue.rules.schema.rule_file import schema_text
from oncue.triggers.catalog import OptionStructs


async def deploy(context: RequestContext) -> list[Deployed]:
    request: DeployRequest = context.body
    if not request.files:
        raise Invalid("the body: there are no files - at `$.files`", remedy="give at least one", path="$.files")
    return await context.backend.deployments.deploy(context.caller, request, context.bearer)


async def rules(context: RequestContext) -> list[RuleInfo]:
    return await context.backend.rules.all(context.caller, context.bearer)


async def rule(context: RequestContext) -> RuleInfo:
    return await context.backend.rules.get(context.caller, context.path("name"), context.bearer)


async def enable(context: RequestContext) -> RuleInfo:
    return await context.backend.rules.switch(context.caller, context.path("name"), True, context.body.why)


async def disable(context: RequestContext) -> RuleInfo:
    return await context.backend.rules.switch(context.caller, context.path("name"), False, context.body.why)


async def explain(context: RequestContext) -> Explanation:
    request: ExplainRequest = context.body
    if (request.event is None) == (request.offset is None):
        raise Invalid(
            f"the body: {'neither' if request.event is None else 'both'} `event` and `offset`",
            remedy="give one of them: a stored event's offset, or an event in CloudEvents' JSON",
            path="$",
        )
    event: Event | None = None
    if request.event is not None:
        # A draft needs no id, source or version.
        draft = {"specversion": "1.0", "id": "draft", "source": "/draft"} | request.event
        event = cloudevents.from_json(encode_json(draft))
    return await context.backend.rules.explain(context.caller, context.path("name"), event, request.offset)


async def explain_outcome(context: RequestContext) -> Explanation:
    return await context.backend.rules.explain_outcome(context.caller, context.path("name"), task_id(context))


async def history(context: RequestContext) -> list[DeploymentInfo]:
    found = await context.backend.deployments.history(context.caller, context.path("label"))
    return [msgspec.convert(item, DeploymentInfo) for item in found]


async def rollback(context: RequestContext) -> Deployed:
    return await context.backend.deployments.rollback(
        context.caller, context.path("label"), context.body.version, context.body.dry_run, context.bearer
    )


async def remove(context: RequestContext) -> Deployed:
    return await context.backend.deployments.remove(context.caller, context.path("label"))


async def schema(context: RequestContext) -> web.Response:
    """Answer the JSON Schema of rule files, which editors fetch without a token."""
    return web.Response(body=_schema(), headers={"Content-Type": "application/schema+json"})


@cache
def _schema() -> bytes:
    return schema_text(OptionStructs())


ROUTES = (
    Route(
        "GET",
        "/v1/schemas/rules",
        schema,
        summary="JSON Schema of rule files, for editors.",
        scope="",
        gives=dict[str, Any],
        writes=("application/schema+json",),
    ),
    Route(
        "POST",
        "/v1/rules",
        deploy,
        summary="Deploy rule files: all or nothing. With dry_run: only say what would change.",
        scope="user",
        takes=DeployRequest,
        max_bytes=JSON_BYTES,
        gives=list[Deployed],
        errors=(RuleFileError, Conflict, DiskFull),
    ),
    Route("GET", "/v1/rules", rules, summary="All rules, and how they are.", scope="read", gives=list[RuleInfo]),
    Route("GET", "/v1/rules/{name}", rule, summary="One rule.", scope="read", gives=RuleInfo, errors=(NotFound,)),
    Route(
        "POST",
        "/v1/rules/{name}/enable",
        enable,
        summary="Let a rule fire (again).",
        scope="user",
        takes=WhyRequest,
        max_bytes=SMALL_BYTES,
        optional=True,
        gives=RuleInfo,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/rules/{name}/disable",
        disable,
        summary="Keep a rule from firing, and say why.",
        scope="user",
        takes=WhyRequest,
        max_bytes=SMALL_BYTES,
        optional=True,
        gives=RuleInfo,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/rules/{name}/explain",
        explain,
        summary="Why the rule fires for an event, or does not: each condition in turn.",
        scope="user",
        takes=ExplainRequest,
        max_bytes=4 * EVENT_BYTES,
        gives=Explanation,
        errors=(NotFound,),
    ),
    Route(
        "GET",
        "/v1/tasks/{id}/rules/{name}",
        explain_outcome,
        summary="Why the rule fires for the outcome of a task, or does not: each condition in turn.",
        scope="user",
        gives=Explanation,
        errors=(NotFound, Conflict),
    ),
    Route(
        "GET",
        "/v1/deployments/{label}",
        history,
        summary="The versions of a rule file, newest first.",
        scope="read",
        gives=list[DeploymentInfo],
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/deployments/{label}/rollback",
        rollback,
        summary="Deploy an earlier version again, as a new version. With dry_run: only say what would change.",
        scope="user",
        takes=RollbackRequest,
        max_bytes=SMALL_BYTES,
        gives=Deployed,
        errors=(NotFound, Conflict),
    ),
    Route(
        "DELETE",
        "/v1/deployments/{label}",
        remove,
        summary="Remove a rule file's rules and triggers.",
        scope="user",
        gives=Deployed,
        errors=(NotFound,),
    ),
)
