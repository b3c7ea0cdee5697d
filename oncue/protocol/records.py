"""What travels and what is stored: frozen msgspec Structs.

Stored records are msgpack arrays whose first field is the schema version `v`. Fields are only ever added at the end, with a
default: a newer server reads older records, and an older one ignores the fields it does not know. What a batch can carry
once, it carries once: the tasks of a frame share a `Call`, so no task pays for its function, owner, rule and policy.

Times are unix microseconds (`_us`), sizes bytes (`_bytes`), durations milliseconds (`_ms`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from oncue.protocol.codec import build_decoders

VERSION = 1

# Limits, enforced at the edge (API, triggers, agent).
INLINE_BYTES = 256 * 1024  # a larger payload travels as a blob
EVENT_BYTES = 1024 * 1024  # one event; 64 KiB is what CloudEvents asks intermediaries to forward
HEADERS_BYTES = 64 * 1024  # of a dead letter's record
OUTPUT_BYTES = 64 * 1024  # kept of what a task printed
TRACEBACK_BYTES = 32 * 1024
FUNCTION_BYTES = 64 * 1024 * 1024
NAME_CHARS = 200


class Stored(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=False):
    """Base of all records: arrays in msgpack, unknown trailing fields ignored."""


# ---------------------------------------------------------------- policies


class RetryStrategy(Stored, frozen=True):
    """When an attempt that ended badly is followed by another."""

    max: int = 0  # retries after the first attempt
    backoff: Literal["exponential", "constant"] = "exponential"
    base_ms: int = 2_000
    cap_ms: int = 300_000
    on: tuple[str, ...] = ("lost", "error")  # of: lost, error, timeout


class Call(Stored, frozen=True):
    """What the tasks of one frame share; echoed with their outcomes, so that an outcome stands alone."""

    v: int
    function: str  # content hash, hex
    endpoint: str  # endpoint id
    owner: str  # the person's subject
    name: str = ""  # the function's friendly name
    rule: str = ""
    rule_version: int = 0
    retry: RetryStrategy | None = None
    timeout_ms: int = 0  # 0: none
    expires_us: int = 0  # must start before; 0: never expires
    stream: str = ""  # the client's outcome stream that waits for these


# ---------------------------------------------------------------- tasks and their ends


class TaskRecord(Stored, frozen=True):
    id: bytes
    args: bytes  # a payload, see payload.py: (args, kwargs)
    event: tuple[str, str] | None = None  # (source, id) of the event that caused it
    retry_of: bytes = b""  # the task that a person retried with this one
    mark_us: int = 0  # when the cause happened (file closed): for the latency that users ask about


class TaskFrame(Stored, frozen=True):
    """A record of `oncue.tasks.<endpoint>`: tasks accepted together."""

    v: int
    call: Call
    accepted_us: int
    tasks: list[TaskRecord]


# How an attempt ended.
OK, ERROR, LOST, TIMEOUT, CANCELLED, EXPIRED, REFUSED = range(7)
STATUS_NAMES = ("ok", "error", "lost", "timeout", "cancelled", "expired", "refused")


class Ended(Stored, frozen=True):
    """One attempt of one task has ended."""

    id: bytes
    attempt: int  # from 1
    status: int  # index in STATUS_NAMES
    started_us: int = 0  # 0: it never started
    ended_us: int = 0
    value: bytes = b""  # ok: a payload; else: msgpack of Failure
    output: bytes = b""  # what the task printed (stdout and stderr as they came), capped
    event: tuple[str, str] | None = None
    retry_of: bytes = b""
    mark_us: int = 0


class ResultFrame(Stored, frozen=True):
    """A record of `oncue.results`: attempts that ended, from one endpoint (stamped by the bridge, not by the agent)."""

    v: int
    call: Call
    endpoint: str  # whose key the frame came with; "" when the server itself ended them (cancel, expiry, lost)
    accepted_us: int  # of their TaskFrame; 0: not known
    ended: list[Ended]
    epoch: int = 0  # of the owner that ended them itself; 0: an agent's word, which counts whoever passes it on


class Fence(Stored, tag="fence", frozen=True):
    """In oncue.results: behind this record, ends that an owner with a lower epoch made up itself do not count. They come
    from a server that has lost its partitions and does not know it yet. All servers read this in the same place of the
    same partition, and so leave out the same ends."""

    v: int
    server: str
    partitions: int  # of oncue.control
    epochs: tuple[tuple[int, int], ...]  # (partition of oncue.control, epoch)
    at_us: int = 0


class Failure(Stored, frozen=True):
    """Why an attempt did not give a value; data, never a pickle."""

    type: str  # "ValueError", "oncue.TaskLost" ...
    message: str
    traceback: str = ""  # the user's own lines
    remedy: str = ""


# ---------------------------------------------------------------- control


class Claim(Stored, tag="claim", frozen=True):
    """This server acts for the endpoints of this record's partition from here on; its offset + 1 is the epoch."""

    v: int
    server: str
    endpoints: tuple[str, ...] = ()  # named by servers of before the partitions were divided
    at_us: int = 0
    bridge: str = ""  # where agents reach it: tcp://host:port
    server_key: str = ""  # its CURVE public key, Z85
    url: str = ""  # of its API
    blobs: str = ""  # which folder of blobs it has


class Cancel(Stored, tag="cancel", frozen=True):
    """Somebody wants these tasks to end."""

    v: int
    endpoint: str
    tasks: tuple[bytes, ...]
    by: str = ""
    at_us: int = 0


Control = Claim | Cancel


# ---------------------------------------------------------------- reports: may be lost


class Started(Stored, tag="started", frozen=True):
    v: int
    endpoint: str
    tasks: tuple[tuple[bytes, int, int], ...]  # (task id, attempt, started_us), of tasks that run for over a second
    worker: str = ""


class Output(Stored, tag="output", frozen=True):
    """Lines that a running task has printed so far."""

    v: int
    endpoint: str
    task: bytes
    attempt: int
    offset_bytes: int
    text: bytes


class Usage(Stored, tag="usage", frozen=True):
    v: int
    endpoint: str
    at_us: int
    workers: int
    busy: int
    queued: int
    spooled: int
    host: str = ""
    load: float = 0.0
    memory_bytes: int = 0
    agent_version: str = ""
    python: str = ""


Report = Started | Output | Usage


# ---------------------------------------------------------------- events


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvents 1.0 event: something happened. `extensions` are the context attributes that the standard does not
    name; ours start with `oncue`."""

    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None  # RFC 3339
    datacontenttype: str | None = None
    dataschema: str | None = None
    data: Any = None  # JSON-able; bytes for binary data
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


# ---------------------------------------------------------------- registry: compacted by key


class Parameter(Stored, frozen=True):
    """One parameter of a function, as whoever calls it has to know it."""

    name: str
    kind: Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
    required: bool = False


class FunctionRecord(Stored, tag="function", frozen=True):
    v: int
    id: str  # content hash: SHA-256 of the body, hex
    name: str
    owner: str
    python: str  # "3.11"
    size_bytes: int
    body: bytes  # msgpack of functions.FunctionBody, or b"" when it is in the blob store under `id`
    signature: str = ""
    doc: str = ""
    file: str = ""
    version: int = 0  # of the friendly name; counted by the projection
    at_us: int = 0
    parameters: tuple[Parameter, ...] | None = None  # as its client saw them; None: not known, nothing is checked


class EndpointRecord(Stored, tag="endpoint", frozen=True):
    v: int
    id: str
    name: str
    owner: str
    public_key: bytes  # CURVE, Z85
    at_us: int = 0
    revoked: bool = False
    lost_after_ms: int = 0  # disconnected longer than this: its attempts are lost; 0: never
    labels: dict[str, str] = {}


class Deployment(Stored, tag="deployment", frozen=True):
    """One rule file, deployed as a whole: atomic, one record, label@version."""

    v: int
    label: str  # the file's name without its ending, or what --label says
    version: int
    owner: str
    text: str  # the file as it was
    functions: dict[str, str]  # "tomo.py:reconstruct" -> content hash
    at_us: int = 0
    note: str = ""
    removed: bool = False
    path: str = ""  # where the file was: what is relative in it is relative to its folder
    host: str = ""  # on which machine; "": not known

    @property
    def origin(self) -> str:
        """For people."""
        return origin(self.host, self.path)


def origin(host: str, path: str) -> str:
    """Where a rule file came from, as people write it."""
    return f"{host}:{path}" if host and path else path or "a place that nobody named"


class RuleSwitch(Stored, tag="switch", frozen=True):
    """A rule was enabled or disabled by hand."""

    v: int
    rule: str
    enabled: bool
    by: str = ""
    why: str = ""
    at_us: int = 0


class TokenRecord(Stored, tag="token", frozen=True):
    v: int
    id: str
    hash: str  # SHA-256 of the token, hex: the token itself is shown once
    subject: str
    scopes: tuple[str, ...]
    expires_us: int = 0
    revoked: bool = False
    at_us: int = 0
    name: str = ""


Registry = FunctionRecord | EndpointRecord | Deployment | RuleSwitch | TokenRecord


Headers = tuple[tuple[str, bytes], ...]


def kept_headers(headers: Headers) -> Headers:
    """Those that a dead letter keeps: all, or none of a record whose headers would make a letter that no log takes."""
    return headers if sum(len(name) + len(value) for name, value in headers) <= HEADERS_BYTES else ()


class DeadLetter(Stored, frozen=True):
    """What could not go on, with the reason that the code had."""

    v: int
    stage: str  # decode, match, args, dispatch ...
    reason: str
    at_us: int
    topic: str = ""
    partition: int = 0
    offset: int = 0
    rule: str = ""
    event: tuple[str, str] | None = None
    record: bytes = b""  # as it was, capped at EVENT_BYTES
    remedy: str = ""
    owner: str = ""  # whose rule it was; "": nobody's, only admins see it
    headers: Headers = ()  # of the record, see kept_headers: an event in binary mode has its attributes there


class Resolution(Stored, tag="settled", frozen=True):
    """Somebody has dealt with dead letters. In oncue.dead too, behind the letters and in their partition: so it is
    forgotten after them, and a view that is made again meets them in this order. The last one of a letter counts."""

    v: int
    letters: tuple[int, ...]  # their offsets in the partition that this record is in
    how: Literal["dismissed", "retried"]
    by: str = ""
    reason: str = ""
    at_us: int = 0


build_decoders(globals())
