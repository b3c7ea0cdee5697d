"""Effects: I/O that an EndpointChannel asks for.

The channel itself does no I/O. After each call, `BridgeSocket.run_effects` runs the effects in
order: it sends frames, and EffectRunner does the rest and calls the channel back with the answer.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from oncue.protocol.records import Call, Ended


class ChannelPhase(Enum):
    """State of the connection to an endpoint's agent. Values are shown in the API."""

    AWAY = "away"  # no session
    INVENTORY = "inventory"  # Hello received; the agent lists the tasks that it holds
    READY = "connected"  # Welcome sent; tasks are sent as far as the agent's credit allows


class SendFrame(msgspec.Struct, frozen=True, gc=False):
    """Send a message to the agent."""

    parts: list[bytes]


class StoreResults(msgspec.Struct, frozen=True):
    """Append `record` to oncue.results.

    Then call `on_stored(token)` or `on_store_failed(token)`.

    `by_server`: the server decided these ends. No agent would send them again, so the append is
    repeated until it is durable.
    """

    record: bytes
    token: int
    call: Call
    closing: list[Ended]  # ends that close their tasks
    closing_complete: bool  # False: only the view knows which ends close a task
    by_server: bool = False


class LoadOpenTasks(msgspec.Struct, frozen=True):
    """Call `on_page(token, rows)` with a page of open tasks.

    These are the open tasks of a priority with seq > after, in order of seq, at most `limit`. The
    view must have applied all that was handed to the log before.
    """

    token: int
    after: int
    limit: int
    priority: int = 0


class CheckTasks(msgspec.Struct, frozen=True):
    """Call `on_checked(token, calls)` with calls of tasks of this endpoint.

    Other ids are left out. The view must have applied all that was handed to the log before.
    """

    token: int
    ids: list[bytes]


class EndWaitingTasks(msgspec.Struct, frozen=True):
    """End these waiting tasks as cancelled. The view has their call and attempt."""

    ids: list[bytes]


class ReadPart(msgspec.Struct, frozen=True, gc=False):
    """Read a part of a blob or function, and answer with `send_part`."""

    sha256: str
    offset_bytes: int


class WritePart(msgspec.Struct, frozen=True, gc=False):
    """Write a part of a blob, and answer with `send_part`."""

    sha256: str
    offset_bytes: int
    size_bytes: int
    body: bytes


class ForwardReport(msgspec.Struct, frozen=True, gc=False):
    """Append an agent's report to oncue.reports."""

    body: bytes  # msgpack of reports.Report, not decoded yet


class Dropped(msgspec.Struct, frozen=True):
    """Count, and log now and then, what the agent may not send, or not so much of it."""

    reason: str
    why: str
    count: int = 1


class PhaseChanged(msgspec.Struct, frozen=True):
    """Show and log the new phase."""

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
    | Dropped
    | PhaseChanged
)
