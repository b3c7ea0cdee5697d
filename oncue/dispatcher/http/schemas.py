"""Bodies and queries that only the HTTP API has.

The others are in oncue.protocol.api.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from oncue.protocol.api import FailureInfo, Request, Response
from oncue.protocol.codec import build_decoders

KEY_CHARS = 255  # of an idempotency key
POSITION_CHARS = 1_000  # of the header Oncue-Position
MAX_PAGE = 1_000
MAX_WAIT_MS = 60_000
#: Ten years. A longer duration is a mistake, and numbers stay within 64 bits.
LONGEST_MS = 10 * 366 * 86_400_000
_FAR = 1 << 62

Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="At most so many items.")]
WaitMs = Annotated[
    int, Meta(ge=0, description=f"Wait so long for it to close; more than {MAX_WAIT_MS} is taken as that.")
]
SinceUs = Annotated[int, Meta(ge=0, le=_FAR, description="Accepted at or after this unix time in µs.")]
UntilUs = Annotated[int, Meta(ge=0, le=_FAR, description="Accepted before this unix time in µs; 0: no limit.")]
Cursor = Annotated[str, Meta(description="`next` of the page before.")]


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of queries. An unknown parameter is an error."""


class PageQuery(Query, frozen=True):
    cursor: Cursor = ""
    limit: Limit = 50


class EndpointsQuery(Query, frozen=True):
    limit: Annotated[int, Meta(ge=0, le=10_000, description="At most so many; 0: all.")] = 0
    after: Annotated[str, Meta(max_length=200, description="Those after the endpoint with this id.")] = ""


class FileQuery(Query, frozen=True):
    path: Annotated[str, Meta(min_length=1, description="Absolute, or relative to the watched folder.")]


class TaskFilterQuery(Query, frozen=True):
    state: Annotated[str, Meta(description="States with commas, or open, or closed.")] = ""
    endpoint: str = ""
    function: str = ""
    rule: str = ""
    event_source: Annotated[str, Meta(description="With event_id: tasks that this event caused.")] = ""
    event_id: str = ""
    owner: str = ""
    since_us: SinceUs = 0
    until_us: UntilUs = 0
    not_retried: Annotated[bool, Meta(description="1: only tasks that no retry by hand has replaced.")] = False


class TasksQuery(TaskFilterQuery, frozen=True):
    id: Annotated[
        str, Meta(max_length=100, description="First digits of ids, or first..last; other filters do not count then.")
    ] = ""
    cursor: Cursor = ""
    limit: Limit = 50


class TaskWaitQuery(Query, frozen=True):
    wait_ms: WaitMs = 0


class LogsQuery(Query, frozen=True):
    follow: Annotated[bool, Meta(description="1: go on until the task has closed.")] = False


class StreamQuery(Query, frozen=True):
    stream: Annotated[str, Meta(min_length=1, max_length=200, description="The name that the client's tasks carry.")]


class EventFilterQuery(Query, frozen=True):
    type: str = ""
    source: str = ""
    id: Annotated[str, Meta(description="The id of events, or its beginning.")] = ""
    since_us: SinceUs = 0
    until_us: UntilUs = 0
    rule: Annotated[str, Meta(description="Events that made a task of yours, by this rule.")] = ""
    endpoint: Annotated[str, Meta(description="Events that made a task of yours, for this endpoint.")] = ""
    state: Annotated[str, Meta(description="Events that made a task of yours, which has one of these states.")] = ""


class EventsQuery(EventFilterQuery, frozen=True):
    cursor: Cursor = ""
    limit: Limit = 50


class ReportQuery(Query, frozen=True):
    since_us: SinceUs = 0
    until_us: UntilUs = 0
    rule: Annotated[str, Meta(description="This rule of yours, and those that follow its outcomes.")] = ""
    trigger: Annotated[str, Meta(description="Events of this trigger.")] = ""
    group: Annotated[str, Meta(max_length=1_000, description="Path into the event, as data.sample.")] = ""
    cursor: Cursor = ""
    limit: Limit = 200


class DeadQuery(PageQuery, frozen=True):
    all: Annotated[bool, Meta(description="1: also letters that were retried or dismissed.")] = False


class RevokeQuery(Query, frozen=True):
    endpoints: Annotated[bool, Meta(description="1: also the endpoints that the revoked tokens registered.")] = False


class LiveQuery(Query, frozen=True):
    kinds: Annotated[str, Meta(description="Of: task, outcome, event, rule, endpoint, trigger, dead; with commas.")] = (
        ""
    )


class OutcomesRequest(Request, frozen=True):
    """POST /v1/tasks/outcomes in JSON."""

    ids: list[str]  # hex
    wait_ms: WaitMs = 0


class OutcomesQuery(Request, frozen=True):
    """POST /v1/tasks/outcomes in msgpack."""

    ids: list[Annotated[bytes, Meta(min_length=16, max_length=16)]]
    wait_ms: WaitMs = 0


class OutcomeInfo(Response, frozen=True):
    """Outcome of a closed task, in JSON."""

    id: str
    state: str
    attempt: int
    started_us: int
    ended_us: int
    value: Any = None  # plain data, or a note in place of other values
    has_value: bool = False  # True: `value` is the value itself
    error: FailureInfo | None = None
    output: str = ""


class Cancelling(Response, frozen=True):
    """202: the cancel requests are durable.

    The first record that closes a task decides its outcome.

    `next`: the cursor of the next page, if the request has a filter and there is one.

    `tasks`: the open tasks that are asked to end. With `waiting` in the request: the tasks that
    will not run, because they had not been sent to their endpoint; all others stay as they are.
    """

    count: int
    tasks: list[str]
    next: str | None = None


class WhyRequest(Request, frozen=True):
    """POST /v1/rules/{name}/enable and disable."""

    why: str = ""


class ExplainRequest(Request, frozen=True):
    """POST /v1/rules/{name}/explain: a stored event by its offset,
    or any event in CloudEvents' JSON.
    """

    event: dict[str, Any] | None = None
    offset: Annotated[int, Meta(ge=0, le=_FAR)] | None = None


class RollbackRequest(Request, frozen=True):
    version: Annotated[int, Meta(ge=1, le=_FAR)]
    dry_run: bool = False


class EmitRequest(Request, frozen=True):
    """POST /v1/events with application/json: an event as people write it.

    Without an id it gets one: a new one, or, with the header Idempotency-Key, one that follows from
    the caller and that key.
    """

    type: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(min_length=1)]
    data: Any = None
    subject: str | None = None
    id: str = ""
    time: str | None = None  # RFC 3339


class BlobInfo(Response, frozen=True):
    sha256: str
    size_bytes: int


class DeploymentInfo(Response, frozen=True):
    """One version of a rule file, newest first."""

    label: str
    version: int
    owner: str = ""
    at_us: int = 0
    note: str = ""
    removed: bool = False
    text: str = ""
    functions: dict[str, str] = {}  # noqa: RUF012
    path: str = ""  # where the file was
    host: str = ""


build_decoders(globals())
