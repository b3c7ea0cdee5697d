"""Records of the log: frozen msgspec Structs.

A record is a msgpack array whose first field is the schema version `v`. A field may only be added
at the end, with a default: a newer server reads older records, and an older server ignores the
fields that it does not know. The tasks of a frame share one `Call`, so that function, owner, rule
and retry policy are not repeated in each task.

Times are unix microseconds (`_us`), sizes bytes (`_bytes`), durations milliseconds (`_ms`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from oncue.protocol.codec import build_decoders
from oncue.protocol.run_options import RunOptions, TaskFiles

VERSION = 1

# Limits, enforced where data enters (API, triggers, agent).
INLINE_BYTES = 256 * 1024  # a larger payload is sent as a blob
EVENT_BYTES = 1024 * 1024  # of one event as it is sent; CloudEvents requires intermediaries to forward 64 KiB
STORED_EVENT_BYTES = 3 * EVENT_BYTES  # of its record: with attributes, data in Base64, escapes of JSON
HEADERS_BYTES = 64 * 1024  # of the record in a dead letter
OUTPUT_BYTES = 64 * 1024  # of a task's printed output; the rest is dropped
TRACEBACK_BYTES = 32 * 1024
FUNCTION_BYTES = 64 * 1024 * 1024
NAME_CHARS = 200
VALUE_BYTES = INLINE_BYTES + 1024  # of an outcome: the result's payload, or its Failure
FAILURE_CHARS = 64 * 1024  # of a failure's message
MRO_CLASSES = 16  # of an exception whose names are kept

# What agents and bridge send is checked as it is decoded. Numbers stay within SQLite's and JSON's.
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Micros = Natural
AttemptNumber = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
Short = Annotated[str, msgspec.Meta(max_length=1_000)]
ClassNames = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=2 * NAME_CHARS + 1)], ...], msgspec.Meta(max_length=MRO_CLASSES)
]
NodeShare = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
TaskId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Stored(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=False):
    """Base class of records: msgpack arrays; unknown trailing fields are ignored."""


# ---------------------------------------------------------------- policies

MAX_RETRIES = 1_000  # of a new task


class StoredRetryPolicy(Stored, frozen=True):
    """Retry policy of a task, as stored. Applied in task_lifecycle.py."""

    max: int = 0  # retries after the first attempt
    backoff: Literal["exponential", "constant"] = "exponential"
    base_ms: int = 2_000
    cap_ms: int = 300_000
    # ends that are retried: lost, error, timeout, exit:75, ValueError, mypkg.Retriable
    on: tuple[str, ...] = ("lost", "error")
    never: tuple[str, ...] = ()  # ends that are not, whatever `on` says
    max_age_ms: int = 0  # no attempt follows later than this after the task was accepted; 0: no limit


class Call(Stored, frozen=True):
    """Properties that all tasks of a frame share.

    Results repeat the call, so that a result can be read without its task.
    """

    v: int
    function: str  # content hash, hex
    endpoint: str  # endpoint id
    owner: str  # subject of the caller
    name: str = ""  # of the function, for people
    rule: str = ""
    rule_version: int = 0
    retry: StoredRetryPolicy | None = None
    timeout_ms: int = 0  # 0: none
    expires_us: int = 0  # latest start; 0: never expires
    stream: str = ""  # id of the client's outcome stream that receives the outcomes
    run: RunOptions | None = None  # of the call; over those of the function
    firing_tasks: int = 0  # that one firing of a rule with limiters makes; 0: the rule has none
    replay: str = ""  # name of the replay that made the task; "": its event did when it arrived
    priority: int = 0  # see priority.py


# ---------------------------------------------------------------- tasks and their attempts


class TaskRecord(Stored, frozen=True):
    """One task of a TaskFrame."""

    id: bytes
    args: bytes  # payload of (args, kwargs), see payload.py
    event: tuple[str, str] | None = None  # (source, id) of the event that fired the rule
    retry_of: bytes = b""  # id of the closed task that a person retried
    mark_us: int = 0  # when the cause happened (file closed), to measure end-to-end latency
    members: bytes = b""  # ids.event_digest of each further event of the window that fired


class TaskFrame(Stored, frozen=True):
    """Record of `oncue.tasks.<endpoint>`: tasks that were accepted together."""

    v: int
    call: Call
    accepted_us: int
    tasks: list[TaskRecord]


# Status of an attempt that ended.
OK, ERROR, LOST, TIMEOUT, CANCELLED, EXPIRED, REFUSED = range(7)
STATUS_NAMES = ("ok", "error", "lost", "timeout", "cancelled", "expired", "refused")


class Ended(Stored, frozen=True):
    """One ended attempt of a task."""

    id: bytes
    attempt: AttemptNumber  # from 1
    status: Annotated[int, msgspec.Meta(ge=0, le=6)]  # index in STATUS_NAMES
    started_us: Micros = 0  # 0: it never started
    ended_us: Micros = 0
    value: bytes = b""  # if OK, the result's payload; otherwise msgpack of Failure
    output: bytes = b""  # stdout and stderr, interleaved, cut at OUTPUT_BYTES
    event: tuple[str, str] | None = None
    retry_of: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    mark_us: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0
    cpu_us: Micros = 0  # of the task and its children; 0: not measured, as of short tasks
    peak_bytes: Natural = 0  # of memory; 0: not known


class ResultFrame(Stored, frozen=True):
    """Record of `oncue.results`: ended attempts of one endpoint."""

    v: int
    call: Call
    # The endpoint whose CURVE key sent the frame, set by the bridge; "" if the server itself ended
    # the attempts (cancelled, expired, lost).
    endpoint: str
    accepted_us: int  # of the TaskFrame; 0: not known
    ended: list[Ended]
    epoch: int = 0  # of the server that ended the attempts; 0: an agent ran them, see Fence
    node_share: NodeShare = 0.0  # of a node that each took while it ran; nodes of a wide one; 0: not told


class Fence(Stored, tag="fence", frozen=True):
    """Record of `oncue.results` that fences former owners.

    After it, results that a server with a lower epoch decided itself (cancelled, expired, lost) are
    ignored: that server has lost its partitions and does not know it yet. All servers read the
    fence at the same offset, so they ignore the same results.
    """

    v: int
    server: str
    partitions: int  # of oncue.control
    epochs: tuple[tuple[int, int], ...]  # (partition of oncue.control, epoch)
    at_us: int = 0


class Failure(Stored, frozen=True):
    """Error of an attempt, as text that any process can read.

    `exception` is for clients: see oncue.protocol.exceptions.
    """

    type: str  # "ValueError", "oncue.TaskLost" ...
    message: str
    traceback: str = ""  # frames of the user's code only
    remedy: str = ""
    exception: bytes = b""  # the exception as data; b"": not known, or oncue's own
    exit_code: Annotated[int, msgspec.Meta(ge=-1, le=255)] = -1  # of the program; -1: none
    files: TaskFiles = ()  # that the attempt has left
    folder: Annotated[str, msgspec.Meta(max_length=8_192)] = ""  # its sandbox, which was kept
    classes: ClassNames = ()  # of the exception and its bases, nearest first; (): of older workers


# ---------------------------------------------------------------- control


class Claim(Stored, tag="claim", frozen=True):
    """Record of `oncue.control`: this server now owns the record's partition.

    It serves the endpoints of that partition. Its epoch is the record's offset + 1.
    """

    v: int
    server: str
    endpoints: tuple[str, ...] = ()  # set only by servers from before partitions were divided
    at_us: int = 0
    bridge: str = ""  # address for agents: tcp://host:port
    server_key: str = ""  # CURVE public key, Z85
    url: str = ""  # of the API
    blobs: str = ""  # identity of its blob store


class Cancel(Stored, tag="cancel", frozen=True):
    """Record of `oncue.control`: a request to cancel tasks."""

    v: int
    endpoint: str
    tasks: tuple[bytes, ...]
    by: str = ""
    at_us: int = 0


Control = Claim | Cancel


# ---------------------------------------------------------------- events


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvents 1.0 event.

    `extensions` are the context attributes that the standard does not define; those of oncue start
    with `oncue`.
    """

    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None  # RFC 3339
    datacontenttype: str | None = None
    dataschema: str | None = None
    data: Any = None  # a JSON value, or bytes
    extensions: dict[str, str | int | bool] = msgspec.field(default_factory=dict)

    STANDARD: ClassVar[frozenset[str]] = frozenset(
        (
            "specversion",
            "id",
            "source",
            "type",
            "subject",
            "time",
            "datacontenttype",
            "dataschema",
            "data",
            "data_base64",
        )
    )


# ---------------------------------------------------------------- registry, compacted by key


class Parameter(Stored, frozen=True):
    """One parameter of a function's signature."""

    name: str
    kind: Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
    required: bool = False


class FunctionRecord(Stored, tag="function", frozen=True):
    """Record of `oncue.registry`: a registered function."""

    v: int
    id: str  # content hash: SHA-256 of the body, hex
    name: str
    owner: str
    python: str  # "3.11"
    size_bytes: int
    body: bytes  # msgpack of functions.FunctionBody; b"": it is in the blob store as `id`
    signature: str = ""
    doc: str = ""
    file: str = ""
    version: int = 0  # of the name; counted by the view
    at_us: int = 0
    parameters: tuple[Parameter, ...] | None = None  # None: not known; calls are not checked


class EndpointRecord(Stored, tag="endpoint", frozen=True):
    """Record of `oncue.registry`: a registered endpoint."""

    v: int
    id: str
    name: str
    owner: str
    public_key: bytes  # CURVE, Z85
    at_us: int = 0
    revoked: bool = False
    lost_after_ms: int = 0  # after this time without a connection its attempts are lost; 0: never
    labels: dict[str, str] = {}
    token: str = ""  # id of the token that registered it; "": not known


class Deployment(Stored, tag="deployment", frozen=True):
    """Record of `oncue.registry`: a version of the rule file `label`, as a whole."""

    v: int
    label: str  # the file's name without its suffix, or the value of --label
    version: int
    owner: str
    text: str  # of the file
    functions: dict[str, str]  # "tomo.py:reconstruct" -> content hash
    at_us: int = 0
    note: str = ""
    removed: bool = False
    path: str = ""  # of the file; paths in the text are relative to its folder
    host: str = ""  # the machine of that path; "": not known
    by_admin: bool | None = None  # its owner had the scope admin then; None: of an older version
    since_us: dict[str, int] = {}  # rules on outcomes -> since when they are in force without a pause

    @property
    def origin(self) -> str:
        """Host and path of the rule file, for people."""
        return origin(self.host, self.path)


def origin(host: str, path: str) -> str:
    """Return host:path of a rule file, for people."""
    return f"{host}:{path}" if host and path else path or "an unknown place"


class RuleSwitch(Stored, tag="switch", frozen=True):
    """Record of `oncue.registry`: a person has enabled or disabled a rule.

    Or a server has paused it (`pauses`).
    """

    v: int
    rule: str
    enabled: bool
    by: str = ""
    why: str = ""
    at_us: int = 0
    pauses: str = ""  # hash of the rule's text that a server has paused; "": switched by a person


class TokenRecord(Stored, tag="token", frozen=True):
    """Record of `oncue.registry`: an API token."""

    v: int
    id: str
    hash: str  # SHA-256 of the token, hex; the token itself is not stored
    subject: str
    scopes: tuple[str, ...]
    expires_us: int = 0
    revoked: bool = False
    at_us: int = 0
    name: str = ""
    parent: str = ""  # id of the token that made it; "": none, or made by an older version


Registry = FunctionRecord | EndpointRecord | Deployment | RuleSwitch | TokenRecord


Headers = tuple[tuple[str, bytes], ...]


def headers_within_limit(headers: Headers) -> Headers:
    """Return the headers for a dead letter: all, or none above HEADERS_BYTES.

    A dead letter with larger headers would exceed the log's limit on a record.
    """
    return headers if sum(len(name) + len(value) for name, value in headers) <= HEADERS_BYTES else ()


class DeadLetter(Stored, frozen=True):
    """Record of `oncue.dead`: a record that was not processed, and the reason."""

    v: int
    stage: str  # of the processing: decode, match, args, dispatch ...
    reason: str
    at_us: int
    topic: str = ""
    partition: int = 0
    offset: int = 0
    rule: str = ""
    event: tuple[str, str] | None = None
    record: bytes = b""  # its value, cut at STORED_EVENT_BYTES
    remedy: str = ""
    owner: str = ""  # of the rule; "": no rule, visible to admins only
    headers: Headers = ()  # of the record; an event in binary mode has its attributes there
    offsets: tuple[int, ...] = ()  # of all records, if they are several or were not kept here
    members: bytes = b""  # of a window: ids.event_digest of each event but the first


class Resolution(Stored, tag="settled", frozen=True):
    """Record of `oncue.dead`: a person has retried or dismissed dead letters.

    It is appended to the partition of the letters. So retention deletes it after them, and a view
    that is rebuilt reads the letters first. The last resolution of a letter counts.
    """

    v: int
    letters: tuple[int, ...]  # offsets in this record's partition
    how: Literal["dismissed", "retried"]
    by: str = ""
    reason: str = ""
    at_us: int = 0


build_decoders(globals())
