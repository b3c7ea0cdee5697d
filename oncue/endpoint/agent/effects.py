"""What the agent's state machine wants done, in order: the only way in which it touches sockets and workers."""

from __future__ import annotations

import msgspec

from oncue.protocol.records import TaskRecord


class Connect(msgspec.Struct, frozen=True):
    """Close the link, if there is one, and open another: to this server, or ("") to the next of those that are known."""

    bridge: str = ""  # tcp://host:port
    server_key: str = ""  # CURVE, Z85


class RememberServers(msgspec.Struct, frozen=True):
    """All servers that the agent may dial, (address, key) each: to be remembered."""

    servers: tuple[tuple[str, str], ...]


class SendMessage(msgspec.Struct, frozen=True, gc=False):
    parts: list[bytes]


class RunTasks(msgspec.Struct, frozen=True):
    """A chunk for a worker: one attempt of tasks of one call."""

    function: str  # content hash
    body: bytes
    timeout_ms: int
    attempt: int
    tasks: list[TaskRecord]


class CancelRunning(msgspec.Struct, frozen=True):
    """Tasks that were handed over with Run and shall end."""

    ids: frozenset[bytes]


class LogLine(msgspec.Struct, frozen=True):
    """A change of state: one line for the log."""

    text: str


Effect = Connect | RememberServers | SendMessage | RunTasks | CancelRunning | LogLine
