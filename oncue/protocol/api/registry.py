"""Bodies of `/v1/functions`, `/v1/endpoints` and `/v1/tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from oncue.protocol.api.base import Moment, Name, Request, Response, Text
from oncue.protocol.codec import build_decoders
from oncue.protocol.records import Parameter

# ---------------------------------------------------------------- functions


class ParameterInfo(Request, frozen=True):
    """One parameter of a function's signature."""

    name: str
    kind: Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"] = (
        "positional_or_keyword"
    )
    required: bool = False


def parameter_infos(parameters: Sequence[Parameter] | None) -> list[ParameterInfo] | None:
    """Return a record's parameters as an API body; None if they are not known."""
    if parameters is None:
        return None
    return [ParameterInfo(name=p.name, kind=p.kind, required=p.required) for p in parameters]


class FunctionRequest(Request, frozen=True):
    """POST /v1/functions: register a function by its content. Idempotent.

    A deploy checks the `args` of rules against `parameters`. If they are null, it does not.
    """

    name: str
    body: bytes  # msgpack of functions.FunctionBody (base64 in JSON)
    signature: str = ""  # for people
    doc: str = ""
    file: str = ""
    parameters: Annotated[list[ParameterInfo], msgspec.Meta(max_length=1_000)] | None = None


class PropertiesInfo(Response, frozen=True):
    """Properties of a function's tasks. Calls may state other resources."""

    fresh: bool = False  # each task in a process that has run nothing else
    memory_bytes: int = 0  # that a task may use; 0: no limit
    detached: bool = False  # child processes may outlive the task
    files: list[str] = []  # data files and compiled modules that travel with it
    resources: dict[str, int] = {}  # of a task, those that are stated
    sandbox: bool = False  # each task has a folder of its own
    outputs: list[str] = []  # globs of files that come back by reference


class FunctionInfo(Response, frozen=True):
    """A registered function."""

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
    properties: PropertiesInfo | None = None  # null: in lists

    at = Moment("at_us")


# ---------------------------------------------------------------- endpoints


class EndpointRequest(Request, frozen=True):
    """POST /v1/endpoints: register an agent's public key.

    If the endpoint is registered already, fields that are null or absent keep their values.
    """

    name: Name
    public_key: Name  # Z85
    lost_after_ms: int | None = None  # disconnected for so long, its attempts are lost; 0: never
    labels: Annotated[dict[Name, Name], msgspec.Meta(max_length=64)] | None = None  # replaces all; {}: none


class BlockInfo(Response, frozen=True):
    """One block of an endpoint: a batch job that holds workers."""

    id: str
    job: str  # the scheduler's id; "": not known
    state: str  # asked, pending, running, draining, ended
    nodes: int
    workers: int
    busy: int = 0
    reason: str = ""  # why it waits or has ended
    since_us: int = 0  # in this state
    ends_us: int = 0  # when its walltime ends; 0: it does not run

    since, ends = Moment("since_us"), Moment("ends_us")


class EndpointInfo(Response, frozen=True):
    """An endpoint, its connection and its load."""

    id: str
    name: str
    owner: str
    state: str  # connected, away, never, revoked
    since_us: int = 0
    workers: int = 0
    busy: int = 0
    queued: int = 0  # at the agent
    waiting: int = 0  # all open tasks
    host: str = ""
    agent_version: str = ""
    python: str = ""
    labels: dict[str, str] = {}
    why: str = ""
    lost_after_ms: int = 0  # without a connection for so long, its attempts are lost; 0: never
    scheduler: str = ""  # slurm, pbspro ...; "": workers of the agent's own machine
    waiting_for: str = ""  # why tasks at the agent wait for a worker
    node_hours: float = 0.0  # within the limit's period
    blocks: list[BlockInfo] = []
    idle: int = 0  # workers that have started and run nothing
    starting: int = 0  # workers that have not started yet
    nodes: int = 0  # of blocks, that are connected
    cores: int = 0  # of the agent's machine; with blocks, of their nodes
    load: float = 0.0  # of the agent's machine
    memory_bytes: int = 0  # as cores
    memory_used_bytes: int = 0  # by all processes there
    node_hours_limit: float = 0.0  # 0: none
    node_hours_period_s: int = 0
    breaker: str = ""  # why no more blocks are asked for after failures; "": they are
    submits_failed: int = 0  # in the endpoint's life

    since = Moment("since_us")


class Registered(Response, frozen=True):
    """A registered endpoint, and the address and key that its agent connects to."""

    id: str
    name: str
    server_key: str  # CURVE public key, Z85
    bridge: str  # tcp://host:port


# ---------------------------------------------------------------- tokens


class TokenRequest(Request, frozen=True):
    """POST /v1/tokens: create a token."""

    name: Text
    scopes: Annotated[list[Name], msgspec.Meta(max_length=10)] = msgspec.field(default_factory=lambda: ["user"])
    expires_s: int = 0  # 0: never
    subject: Name = ""  # "": the caller


class TokenInfo(Response, frozen=True):
    """An API token; its secret only in the response that created it."""

    id: str
    name: str
    subject: str
    scopes: list[str]
    expires_us: int = 0
    revoked: bool = False
    token: str = ""  # only in the response to POST
    parent: str = ""  # id of the token that made it; "": not known

    expires = Moment("expires_us")


class RevokedToken(Response, frozen=True):
    """The response to DELETE /v1/tokens/{id}: what can no longer be used."""

    tokens: list[TokenInfo]  # this one first, then those made by it, and by them
    endpoints: list[str]  # names of those that these tokens registered
    endpoints_revoked: bool = False  # False: they still work


build_decoders(globals())
