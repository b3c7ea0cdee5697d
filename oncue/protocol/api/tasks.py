"""Bodies of `/v1/tasks` and `/v1/outcomes`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import msgspec

from oncue.protocol.api.base import Moment, Name, PageLimit, Request, Response, Text, Time
from oncue.protocol.codec import build_decoders
from oncue.protocol.priority import PRIORITY_WORDS
from oncue.protocol.records import Ended, StoredRetryPolicy
from oncue.protocol.run_options import KEY_CHARS, MOST_PATTERNS
from oncue.protocol.stated_options import MOST, PATTERN_CHARS, RESOURCES
from oncue.quantities import MOST_BYTES, MOST_MS

_COUNT = {"type": "integer", "minimum": 1, "maximum": MOST}
_MEMORY = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_BYTES}, {"type": "string"}]}
_WALLTIME = {"anyOf": [{"type": "number", "minimum": 0, "maximum": MOST_MS // 1_000}, {"type": "string"}]}
_RESOURCES = dict.fromkeys(RESOURCES, _COUNT) | {"memory": _MEMORY, "walltime": _WALLTIME}
# Read by protocol/stated_options.py, whose errors name the nearest word.
Resources = Annotated[
    dict[Annotated[Name, msgspec.Meta(extra_json_schema={"enum": list(RESOURCES)})], int | float | str],
    msgspec.Meta(max_length=20, extra_json_schema={"properties": _RESOURCES}),
]
Sandbox = Annotated[bool | str, msgspec.Meta(extra_json_schema={"enum": [False, True, "keep"]})]
Outputs = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=PATTERN_CHARS)]], msgspec.Meta(max_length=MOST_PATTERNS)
]

Priority = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(PRIORITY_WORDS)})]
Affinity = Annotated[str, msgspec.Meta(max_length=KEY_CHARS)]


class RetryPolicy(Request, frozen=True, omit_defaults=True):
    """Retry policy of a task. Durations in milliseconds."""

    max: int = 0
    backoff: str = "exponential"
    base_ms: int = 2_000
    cap_ms: int = 300_000
    on: Annotated[list[Name], msgspec.Meta(max_length=100)] = msgspec.field(default_factory=lambda: ["lost", "error"])
    never: Annotated[list[Name], msgspec.Meta(max_length=100)] = []
    max_age_ms: int | None = None  # after this time from its acceptance a task is not retried; null: no limit

    def stored(self) -> StoredRetryPolicy:
        """Return the policy as a record.

        Raises msgspec.ValidationError for an unknown backoff.
        """
        pauses = (self.backoff, self.base_ms, self.cap_ms)
        fields = (self.max, *pauses, tuple(self.on), tuple(self.never), self.max_age_ms or 0)
        return msgspec.convert(fields, StoredRetryPolicy)


class TaskRequest(Request, frozen=True, omit_defaults=True):
    """POST /v1/tasks with JSON: one call. `args` and `kwargs` are JSON values."""

    function: str  # name, name@version, or content hash
    endpoint: str = "local"  # name or id
    args: list[Any] = msgspec.field(default_factory=list)
    kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    retry: RetryPolicy | None = None
    timeout_ms: int | None = None  # of one attempt; null: no limit
    expires_ms: int | None = None  # latest start, from now; null: no limit
    key: Text = ""  # idempotency key; also accepted as the Idempotency-Key header
    wait_ms: int = 0  # wait so long for the outcome before responding
    resources: Resources = {}  # cores, memory, gpus, nodes, ranks, walltime
    sandbox: Sandbox = False  # true: a folder of the task's own; "keep": it stays if the task fails
    outputs: Outputs = []  # globs of files in it that come back
    affinity: Affinity = ""  # tasks with the same key prefer the worker, or the node, that had it
    priority: Priority = "normal"  # or live, low: which waiting tasks go first


class BatchRequest(Request, frozen=True, omit_defaults=True):
    """POST /v1/tasks/batch: many calls of one function on one endpoint.

    The body is JSON or msgpack. It has either `payloads` (encoded by payload.py; base64 in JSON) or
    `calls`, each [args, kwargs] of JSON values. The task ids are derived from the caller's subject,
    `key` (hex of a 16-byte UUIDv7 that the client creates) and the index, so repeating the request
    does not create other tasks.
    """

    function: str
    endpoint: str = "local"
    key: str = ""  # hex; "": the server creates one
    payloads: list[bytes] = msgspec.field(default_factory=list)
    calls: list[tuple[list[Any], dict[str, Any]]] = msgspec.field(default_factory=list)
    retry: RetryPolicy | None = None
    timeout_ms: int | None = None
    expires_ms: int | None = None
    stream: Name = ""  # outcome stream that receives the outcomes (GET /v1/outcomes?stream=...)
    resources: Resources = {}  # as of POST /v1/tasks
    sandbox: Sandbox = False
    outputs: Outputs = []
    affinity: Affinity = ""
    priority: Priority = "normal"


class Accepted(Response, frozen=True):
    """202: the tasks are durable.

    Their ids are first, first + 1 ... (128-bit numbers), `count` of them.
    """

    first: str  # hex
    count: int
    position: str = ""  # for the Oncue-Position header


class TaskFileInfo(Response, frozen=True):
    """A file that a task has left: GET /v1/blobs/{sha256}."""

    name: str  # relative to the task's folder
    sha256: str
    size_bytes: int
    stream: str = ""  # stdout or stderr; "": an output


class TaskInfo(Response, frozen=True):
    """A task, its state and its outcome."""

    id: str
    # open: waiting, retrying, running, cancelling
    # closed: succeeded, failed, lost, timed_out, cancelled, expired, refused
    state: str
    function: str
    name: str
    endpoint: str
    owner: str
    endpoint_id: str = ""  # the name may belong to another endpoint by now
    rule: str = ""
    rule_version: int = 0
    event: tuple[str, str] | None = None  # (source, id)
    retry_of: str = ""
    replay: str = ""  # name of the replay that made it
    replaced_by: str = ""  # the newest task that is a retry by hand of this one
    attempt: int = 1
    accepted_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    due_us: int = 0
    expires_us: int = 0
    timeout_ms: int = 0
    mark_us: int = 0
    sent: bool = False  # open, and sent to its endpoint: it runs, or waits for a free worker
    why: str = ""  # reason for waiting or failing, one line
    value: Any = None  # the result if it is plain data; otherwise a note
    has_value: bool = False
    error: FailureInfo | None = None
    output: str = ""  # printed by the task
    arguments: Any = None
    attempts: list[AttemptInfo] = []
    position: str = ""  # in the response to POST: for the Oncue-Position header
    short: str = ""  # in lists: the digits of the id that suffice, "first" or "first..last"
    version: int = 0  # of the function, in the response to a retry
    resources: dict[str, int | float | str] = {}  # of the call
    affinity: str = ""  # key of the call
    priority: str = "normal"
    files: list[TaskFileInfo] = []  # of the attempt that closed it

    accepted = Moment("accepted_us")
    started = Moment("started_us")  # of the last attempt
    ended = Moment("ended_us")

    @property
    def duration(self) -> timedelta | None:
        """Duration of the last attempt; None until it has ended."""
        return timedelta(microseconds=self.ended_us - self.started_us) if self.started_us and self.ended_us else None


class AttemptInfo(Response, frozen=True):
    """One ended attempt of a task."""

    n: int
    status: str
    started_us: int
    ended_us: int
    superseded: bool = False
    error: FailureInfo | None = None
    cpu_us: int = 0  # of the task and its child processes; 0: not measured, as of short tasks
    peak_bytes: int = 0  # of memory; 0: not known. In lists both are 0

    started = Moment("started_us")
    ended = Moment("ended_us")


class FailureInfo(Response, frozen=True):
    """Error of an attempt."""

    type: str
    message: str
    traceback: str = ""
    remedy: str = ""
    exit_code: int = -1  # of the program; -1: none
    folder: str = ""  # on the endpoint: the task's sandbox, which was kept

    @property
    def line(self) -> str:
        """Type and message on one line, as the last line of a Python traceback."""
        return f"{self.type}: {self.message}" if self.message else self.type


class TimelineEntry(Response, frozen=True):
    """One step in the life of a task."""

    at_us: int
    what: str
    detail: str = ""

    at = Moment("at_us")


class TaskSelection(Request, frozen=True):
    """Tasks that a request is for; the fields are those of GET /v1/tasks."""

    state: Text = ""  # states with commas, open or closed
    endpoint: Text = ""
    function: Text = ""
    rule: Text = ""
    owner: Text = ""
    since_us: Time = 0
    until_us: Time = 0


class CancelRequest(Request, frozen=True, omit_defaults=True):
    """POST /v1/tasks/cancel: `tasks`, or a page of those that `filter` selects.

    With `filter`, open tasks only. Send `next` of the answer back as `cursor` until it is null.
    """

    tasks: list[str] = msgspec.field(default_factory=list)
    waiting: bool = False  # only tasks that have not been sent to their endpoint
    filter: TaskSelection | None = None
    cursor: Text = ""
    limit: PageLimit = 500


class RetryOneRequest(Request, frozen=True):
    """POST /v1/tasks/{id}/retry."""

    same_version: bool = False  # run the function's version that the task ran; else the one in force


#: States of tasks that have failed in any way.
FAILED_STATES = "failed,lost,timed_out,expired,refused"


class RetryRequest(Request, frozen=True):
    """POST /v1/tasks/retry: run closed tasks again, as new tasks.

    `tasks`, or a page of those that `filter` selects; a filter without a state takes those that
    have failed in any way. With `filter`, a task that was retried before is left out, so that the
    same request can be repeated; `again` takes it too. Send `next` back as `cursor` until it is
    null.
    """

    tasks: Annotated[list[Name], msgspec.Meta(max_length=1_000)] = msgspec.field(default_factory=list)
    filter: TaskSelection | None = None
    same_version: bool = False  # run the versions that the tasks ran; else those in force
    again: bool = False
    dry_run: bool = False  # only answer what would run
    key: Text = ""  # the same key makes the same tasks; "": a new one
    cursor: Text = ""
    limit: PageLimit = 500


class RetriedTask(Response, frozen=True):
    """A task that is run again."""

    retry_of: str
    id: str = ""  # of the new task; "" in a dry run
    short: str = ""
    state: str = ""  # of the old task
    name: str = ""
    function: str = ""  # content hash
    version: int = 0  # of the function; 0: not known
    old_version: int = 0  # that the old task ran
    endpoint: str = ""
    rule: str = ""


class Retried(Response, frozen=True):
    """The tasks that run again, and why others do not."""

    tasks: list[RetriedTask]
    refused: dict[str, str] = {}  # id -> reason and remedy
    next: str | None = None


class TaskCount(Response, frozen=True):
    """GET /v1/tasks/count: `count` tasks, or `more` than that."""

    count: int
    more: bool = False


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The outcome of a closed task, in msgpack.

    The outcome stream and POST /v1/tasks/outcomes answer with lists of it.
    """

    id: bytes
    state: str
    ended: Ended


build_decoders(globals())
