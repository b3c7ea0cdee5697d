"""What a lane wants done, in order: the only way in which the bridge's state machine touches the world."""

from __future__ import annotations

from enum import Enum

import msgspec

from oncue.protocol.records import Call, Ended


class ChannelPhase(Enum):
    AWAY = "away"  # nothing heard
    INVENTORY = "inventory"  # Hello came; the agent names what it holds
    READY = "connected"  # welcomed; tasks flow as far as its credit goes


class SendFrame(msgspec.Struct, frozen=True, gc=False):
    parts: list[bytes]


class StoreResults(msgspec.Struct, frozen=True):
    """Append `record` to oncue.results, then call `durable(token)`, or `not_stored(token)`; `ours`: the server's own ends,
    which nobody would say again: try until it is durable. `closing` are the ends that close their tasks; `told`: all of
    them are in it, so the view need not look."""

    record: bytes
    token: int
    call: Call
    closing: list[Ended]
    told: bool
    ours: bool = False


class LoadOpenTasks(msgspec.Struct, frozen=True):
    """Give `page(token, rows)` the open tasks with seq > after, at most `limit`, in order of seq, from a view that has
    all that was handed to the log by now."""

    token: int
    after: int
    limit: int


class CheckTasks(msgspec.Struct, frozen=True):
    """Give `checked(token, ids)` those of the ids that are tasks of this endpoint, as the caught-up view knows them."""

    token: int
    ids: list[bytes]


class EndWaitingTasks(msgspec.Struct, frozen=True):
    """These tasks wait and shall end (cancelled): look up call and attempt in the view, then append the end."""

    ids: list[bytes]


class ReadPart(msgspec.Struct, frozen=True, gc=False):
    """Answer with `part(...)`."""

    sha256: str
    offset_bytes: int


class WritePart(msgspec.Struct, frozen=True, gc=False):
    """Answer with `put_ack(...)`."""

    sha256: str
    offset_bytes: int
    size_bytes: int
    body: bytes


class ForwardReport(msgspec.Struct, frozen=True, gc=False):
    body: bytes  # msgpack of messages.Report, not looked into yet


class PhaseChanged(msgspec.Struct, frozen=True):
    """The agent's phase changed: for people and logs."""

    phase: ChannelPhase
    why: str


Effect = (
    SendFrame
    | StoreResults
    | LoadOpenTasks
    | CheckTasks
    | EndWaitingTasks
    | ReadPart
    | WritePart
    | ForwardReport
    | PhaseChanged
)
