"""Effects: the agent's commands to sockets and workers, in order.

The state machine has no other way to touch either.
"""

from __future__ import annotations

import msgspec

from oncue.protocol.records import TaskRecord
from oncue.protocol.run_options import RunOptions


class Connect(msgspec.Struct, frozen=True):
    """Connect anew, to this server; if empty, to the next known one."""

    bridge: str = ""  # tcp://host:port
    server_key: str = ""  # CURVE, Z85


class RememberServers(msgspec.Struct, frozen=True):
    """Remember all servers that the agent may dial, as (address, key)."""

    servers: tuple[tuple[str, str], ...]


class SendMessage(msgspec.Struct, frozen=True, gc=False):
    """Send a message to the server."""

    parts: list[bytes]


class RunTasks(msgspec.Struct, frozen=True):
    """Run a chunk at a worker: one attempt of tasks of one call."""

    function: str  # content hash
    body: bytes
    timeout_ms: int
    attempt: int
    tasks: list[TaskRecord]
    options: RunOptions | None = None  # of the call


class CancelRunning(msgspec.Struct, frozen=True):
    """End tasks that were handed over with RunTasks."""

    ids: frozenset[bytes]


class LogLine(msgspec.Struct, frozen=True):
    """Write a change of state to the log, as one line."""

    text: str


Effect = Connect | RememberServers | SendMessage | RunTasks | CancelRunning | LogLine
