"""What the HTTP API takes and gives (`/v1`), as Structs; its OpenAPI document is generated from them. Shared by the
dispatcher and the client. JSON names are the field names; ids are hex, times unix microseconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import Parameter, StoredRetryPolicy


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """Base: JSON objects, unknown fields ignored on reading by a client."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what callers send: a misspelt field is an error, not silence."""


class Page(Response, frozen=True):
    """A page of a list: `items`, and the `next` cursor to give back for more (none at the end)."""

    items: list[Any]
    next: str | None = None


class Problem(Response, frozen=True):
    """RFC 9457 problem response (application/problem+json)."""

    type: str  # "urn:oncue:error:<code>"
    title: str  # first line of the error's explanation
    status: int
    detail: str
    code: str
    remedy: str = ""
    details: dict[str, Any] = {}


# ---------------------------------------------------------------- tasks


class RetryPolicy(Request, frozen=True):
    """See messages.Retry; durations in ms."""

    max: int = 0
    backoff: str = "exponential"
    base_ms: int = 2_000
    cap_ms: int = 300_000
    on: list[str] = msgspec.field(default_factory=lambda: ["lost", "error"])

    def stored(self) -> StoredRetryPolicy:
        return msgspec.convert(msgspec.to_builtins(self) | {"on": tuple(self.on)}, _RetryCheck).stored()


class _RetryCheck(msgspec.Struct, frozen=True):
    max: int
    backoff: str
    base_ms: int
    cap_ms: int
    on: tuple[str, ...]

    def stored(self) -> StoredRetryPolicy:
        return StoredRetryPolicy(self.max, self.backoff, self.base_ms, self.cap_ms, self.on)  # type: ignore[arg-type]


class TaskRequest(Request, frozen=True):
    """POST /v1/tasks with JSON: one call. `args`/`kwargs` are JSON values."""

    function: str  # content hash, or friendly name, or name@version
    endpoint: str = "local"  # name or id
    args: list[Any] = msgspec.field(default_factory=list)
    kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    retry: RetryPolicy | None = None
    timeout_ms: int | None = None  # of one attempt; none: no limit
    expires_ms: int | None = None  # from now, until it has started; none: no limit
    key: str = ""  # idempotency key; also the Idempotency-Key header
    wait_ms: int = 0  # answer with the outcome if it is there by then


class BatchRequest(Request, frozen=True):
    """POST /v1/tasks/batch (JSON or msgpack): many calls of one function on one endpoint.

    `payloads` are payload bytes (payload.py; base64 in JSON); or `calls` are [args, kwargs] of JSON values. The ids follow
    from the caller's subject, `key` (16 bytes, a UUIDv7 minted by the client, hex) and the index: the same request again
    is the same tasks."""

    function: str
    endpoint: str = "local"
    key: str = ""  # hex; "": the server mints one
    payloads: list[bytes] = msgspec.field(default_factory=list)
    calls: list[tuple[list[Any], dict[str, Any]]] = msgspec.field(default_factory=list)
    retry: RetryPolicy | None = None
    timeout_ms: int | None = None
    expires_ms: int | None = None
    stream: str = ""  # the client's outcome stream that wants these outcomes (GET /v1/outcomes?stream=...)


class Accepted(Response, frozen=True):
    """202: durable. The tasks' ids are first, first + 1 ... (as 128-bit numbers), `count` of them."""

    first: str  # hex
    count: int
    position: str = ""  # for Oncue-Position


class TaskInfo(Response, frozen=True):
    id: str
    state: (
        str  # waiting, retrying, running, cancelling; succeeded, failed, lost, timed_out, cancelled, expired, refused
    )
    function: str
    name: str
    endpoint: str
    owner: str
    endpoint_id: str = ""  # its owner may have used the name anew
    rule: str = ""
    rule_version: int = 0
    event: tuple[str, str] | None = None  # (source, id)
    retry_of: str = ""
    attempt: int = 1
    accepted_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    due_us: int = 0
    expires_us: int = 0
    timeout_ms: int = 0
    mark_us: int = 0
    sent: bool = False  # it is open and at its endpoint: it runs, or waits there for a free worker
    why: str = ""  # why it waits, or what it failed of: one line
    value: Any = None  # result where it is plain data; else a note
    has_value: bool = False
    error: FailureInfo | None = None
    output: str = ""  # what it printed
    arguments: Any = None
    attempts: list[AttemptInfo] = []
    position: str = ""  # in the answer to POST: for Oncue-Position


class AttemptInfo(Response, frozen=True):
    n: int
    status: str
    started_us: int
    ended_us: int
    superseded: bool = False
    error: FailureInfo | None = None


class FailureInfo(Response, frozen=True):
    type: str
    message: str
    traceback: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """As Python's tracebacks end: no colon without a message."""
        return f"{self.type}: {self.message}" if self.message else self.type


class TimelineEntry(Response, frozen=True):
    at_us: int
    what: str
    detail: str = ""


class CancelRequest(Request, frozen=True):
    tasks: list[str]
    waiting: bool = False  # only those that have not been sent to their endpoint


# ---------------------------------------------------------------- functions


class ParameterInfo(Request, frozen=True):
    """One parameter of a function, as a caller has to know it."""

    name: str
    kind: Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"] = (
        "positional_or_keyword"
    )
    required: bool = False


def parameter_infos(stored: Sequence[Parameter] | None) -> list[ParameterInfo] | None:
    if stored is None:
        return None
    return [ParameterInfo(name=p.name, kind=p.kind, required=p.required) for p in stored]


class FunctionRequest(Request, frozen=True):
    """POST /v1/functions: register by content; again is harmless. By `parameters` a deploy checks the `args` of rules; null:
    they are not known, and it does not."""

    name: str
    body: bytes  # msgpack of functions.FunctionBody (base64 in JSON)
    signature: str = ""  # for people
    doc: str = ""
    file: str = ""
    parameters: Annotated[list[ParameterInfo], msgspec.Meta(max_length=1_000)] | None = None


class FunctionInfo(Response, frozen=True):
    id: str
    name: str
    version: int
    owner: str
    python: str
    size_bytes: int
    signature: str = ""
    doc: str = ""
    file: str = ""
    at_us: int = 0
    source: str = ""
    parameters: list[ParameterInfo] | None = None  # null: not known


# ---------------------------------------------------------------- endpoints


class EndpointRequest(Request, frozen=True):
    """POST /v1/endpoints: register an agent's public key. Of an endpoint that is registered already, what is null or left
    out stays as it is."""

    name: str
    public_key: str  # Z85
    lost_after_ms: int | None = None  # away for longer, its running tasks are lost; 0: never
    labels: dict[str, str] | None = None  # in the place of those it had; {}: none


class EndpointInfo(Response, frozen=True):
    id: str
    name: str
    owner: str
    state: str  # connected, away, never, revoked
    since_us: int = 0
    workers: int = 0
    busy: int = 0
    queued: int = 0  # at the agent
    waiting: int = 0  # open tasks in all
    host: str = ""
    agent_version: str = ""
    python: str = ""
    labels: dict[str, str] = {}
    why: str = ""
    lost_after_ms: int = 0  # away for longer, its running tasks are lost; 0: never


class Registered(Response, frozen=True):
    """What an agent needs to dial in."""

    id: str
    name: str
    server_key: str  # CURVE public key, Z85
    bridge: str  # tcp://host:port


# ---------------------------------------------------------------- rules


class DeployRequest(Request, frozen=True):
    """POST /v1/rules: rule files, all or nothing. `functions` maps each "file.py:name" that they use to a content hash
    that is registered already. A label whose file came from another place is a conflict, unless with `replace`."""

    files: list[RuleFile]
    functions: dict[str, str] = msgspec.field(default_factory=dict)
    dry_run: bool = False
    note: str = ""
    replace: bool = False


class RuleFile(Request, frozen=True):
    label: str
    text: str
    path: str = ""  # absolute: what is relative in the file is relative to its folder
    host: str = ""  # the machine that the path is on


class Deployed(Response, frozen=True):
    label: str
    version: int
    changed: bool
    added: list[str] = []
    changed_rules: list[str] = []
    removed: list[str] = []
    diff: str = ""
    functions: list[FunctionChange] = []  # whose content is another than that in force
    replaces: str = ""  # where the file in force came from (host:path), if that is another place
    triggers: list[TriggerInfo] = []  # how they are now: those that have looked fire for whatever comes from now on
    waits: str = ""  # why its rules with memory do not run yet


class FunctionChange(Response, frozen=True):
    """What a rule file's function is bound to, before and after a deploy: content hashes, and versions of its name.
    "" and 0: it had none, has none any more, or is not registered yet."""

    function: str  # as written: tomo.py:reconstruct
    old: str = ""
    new: str = ""
    old_version: int = 0
    new_version: int = 0


class RuleInfo(Response, frozen=True):
    name: str
    label: str
    version: int
    enabled: bool
    on: Any
    runs: list[str]
    endpoint: str
    state: str = "active"  # active, disabled, paused
    why: str = ""
    fired: int = 0  # tasks, since the servers started; an event that is told again makes none
    text: str = ""
    memory: str = ""  # "dedupe for 10m, batch of 100 events or 30s"; "": one event at a time
    suppressed: int = 0  # events that dedupe did not let pass, since the servers started
    windows: int = 0  # that are open
    waiting: int = 0  # events in them
    closes_us: int = 0  # when the next of them closes at the latest; 0: none does by time


class Explanation(Response, frozen=True):
    """Why a rule fires, or does not, for one event, as the rule is now: every condition in the order in which they are
    tested; and what it did when the event came."""

    rule: str
    event: str
    fires: bool
    why: str
    steps: list[ExplainStep] = []
    args: Any = None
    fired: list[Fired] = []  # the tasks that the event made; the rule may have been another one then


class Fired(Response, frozen=True):
    """A task that a rule made for an event."""

    task: str
    at_us: int
    version: int  # of the deployment


class ExplainStep(Response, frozen=True):
    condition: str
    holds: bool
    found: str
    wanted: str


class TriggerInfo(Response, frozen=True):
    name: str
    kind: str
    label: str
    state: str  # running; starting; looking (through what was there before); waiting (for its folder); failed;
    # elsewhere (on another server)
    detail: str = ""
    looked: bool = True  # whether it has told what was there before from what comes
    existing: int = 0  # files that were there before the trigger was, and fire only when they change
    emitted: int = 0
    skipped: int = 0
    last_us: int = 0
    last_skip: str = ""
    last_skip_us: int = 0
    server: str = ""  # the API of the server that runs it, where that is another than the one that was asked


class TriggerShown(TriggerInfo, frozen=True):
    """One trigger, with what became of the last files (at most 100 since the server started), oldest first."""

    decisions: list[TriggerDecision] = []


class TriggerDecision(Response, frozen=True):
    path: str  # relative to the watched folder, ".": of all; for a webhook: the event's id
    fired: bool
    why: str
    at_us: int


class TriggerFile(Response, frozen=True):
    """Why a file fired, or did not."""

    path: str  # relative to the watched folder
    #: fired; fires (its event is on the way); waits; old (there before the trigger was); passed over; not meant (by the
    #: options); missing; not seen (yet)
    state: str
    why: str
    at_us: int = 0  # when that was found


# ---------------------------------------------------------------- events, dead letters, tokens, health


class EventInfo(Response, frozen=True):
    offset: int
    event: dict[str, Any]  # CloudEvents JSON
    at_us: int
    fired: list[str] = []  # rules that it made run
    tasks: list[str] = []


class Emitted(Response, frozen=True):
    count: int
    id: str = ""  # the event's, where one was sent
    position: str = ""


class DeadInfo(Response, frozen=True):
    """What could not go on. It is `open` until somebody retries or dismisses it."""

    id: int
    stage: str
    reason: str
    at_us: int
    remedy: str = ""
    rule: str = ""
    event: tuple[str, str] | None = None
    topic: str = ""
    partition: int = 0
    offset: int = 0
    owner: str = ""  # whose rule it was; "": for admins
    state: str = "open"  # open, retried, dismissed
    settled_us: int = 0  # when it was retried or dismissed; by whom, and why
    settled_by: str = ""
    settled_why: str = ""


class DismissRequest(Request, frozen=True):
    """POST /v1/dead/dismiss: these letters (all or none of them), or all that are open now."""

    letters: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]], msgspec.Meta(max_length=10_000)] = (
        msgspec.field(default_factory=list)
    )
    all: bool = False
    reason: str = ""


class Dismissed(Response, frozen=True):
    """How many were open until now."""

    count: int
    position: str = ""


class TokenRequest(Request, frozen=True):
    name: str
    scopes: list[str] = msgspec.field(default_factory=lambda: ["user"])
    expires_s: int = 0
    subject: str = ""  # "": your own


class TokenInfo(Response, frozen=True):
    id: str
    name: str
    subject: str
    scopes: list[str]
    expires_us: int = 0
    revoked: bool = False
    token: str = ""  # only in the answer that made it


class Me(Response, frozen=True):
    subject: str
    scopes: list[str]
    server: str  # version
    server_id: str


class Health(Response, frozen=True):
    status: str  # ok, starting, degraded
    version: str
    checks: dict[str, str] = {}  # name -> "ok" or what is wrong; only "not ok" without a token
    triggers: dict[str, str] = {}  # those that do not run -> why; with a token only


build_decoders(globals())
