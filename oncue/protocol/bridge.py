"""What bridge and agent say to each other. Pure: Structs and bytes, no sockets.

    agent (DEALER, dials out)                                bridge (ROUTER)
      Hello, Inventory...            ──────────────►
                                     ◄──────────────         Welcome(epoch), Redirect  or  Refuse
      Credit, Results, Want, ...     ──────────────►
                                     ◄──────────────         Dispatch, Ack, Part, CancelTasks, Welcome (other servers) ...
      Beat                           ◄─────────────►         Beat

A ZeroMQ message has one to three parts: the envelope, then raw bodies that nobody on the way needs to look into.
Each side numbers its messages of a session from 0 (Hello and the first Welcome; Reset and Redirect have none: -1). A number
seen before is a double and is dropped; a gap means that something was lost: the agent says Hello again, the bridge sends
Reset to ask for it. A message of another session is stale and is dropped. So a session is exact, and the inventory at its
start makes the two sides agree on who holds which task.

Credit is the total number of tasks that the agent is ready to have been sent since the session's start: a total can be
repeated without harm. Results carry the agent's spool numbers; Ack(seq) says that all up to seq are durable in the log.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from oncue.errors import Undecodable
from oncue.protocol.records import Call, Stored

PROTOCOL = 2  # both must speak the same; a difference is refused with a remedy
BEAT_MS = 2_000  # each side says something at least this often
SILENCE_MS = 8_000  # after this long without a word the other side is taken as gone
ID_BYTES = 16
PART_BYTES = 1 << 20


# ---------------------------------------------------------------- agent -> bridge


class Hello(Stored, tag="hello", frozen=True):
    protocol: int
    agent_version: str
    python: str
    host: str
    pid: int
    boot: bytes  # 8 random bytes a start of the agent
    journal: bytes  # 8 random bytes a journal (spool and job table): another one means that the old was lost
    workers: int
    held: int  # how many tasks the Inventory messages after this name, in all
    epoch: int = 0  # the highest the agent has obeyed


class Inventory(Stored, tag="inventory", frozen=True):
    """Body: the tasks that the agent holds (queued, running, or ended and not yet acked), 20 bytes each:
    id and attempt (big endian). Sent until `held` are named; none for held = 0."""

    last: bool


class Results(Stored, tag="results", frozen=True):
    """Body: msgpack list of messages.Ended. All of one call."""

    seq: int  # spool number
    count: int
    call: bytes  # msgpack of Call, as it came with the Dispatch
    accepted_us: int
    granted: int  # see Credit


class Credit(Stored, tag="credit", frozen=True):
    granted: int


class FetchPart(Stored, tag="want", frozen=True):
    """A part of a large payload or of a function's body, by its hash, from this offset on. Several may be asked at once;
    each is answered by one Part."""

    sha256: str
    offset_bytes: int = 0


class UploadPart(Stored, tag="put", frozen=True):
    """Body: a part of a large result, at most PART_BYTES, in order. A result that names a blob is sent only after its
    UploadAck said that the blob is durable."""

    sha256: str
    offset_bytes: int
    size_bytes: int  # of the whole blob


class ReportFrame(Stored, tag="report", frozen=True):
    """Body: msgpack of messages.Report. May be lost."""


class Bye(Stored, tag="bye", frozen=True):
    """The agent stops on purpose; what it still holds stays in its journal."""

    why: str = ""


# ---------------------------------------------------------------- bridge -> agent


class Welcome(Stored, tag="welcome", frozen=True):
    """The answer to Hello. Said again in the session when `servers` change, which is all that counts of it then; agents
    of before that was so take no notice."""

    epoch: int
    server: str
    server_version: str
    durable_seq: int = -1  # spool entries up to here are known to be durable
    servers: tuple[tuple[str, str], ...] = ()  # (address, CURVE key) of all that an agent may dial


class Redirect(Stored, tag="redirect", frozen=True):
    """Another server acts for this endpoint: dial that one. Without an address: nobody does yet; ask again soon."""

    bridge: str = ""
    server_key: str = ""
    why: str = ""


class Refuse(Stored, tag="refuse", frozen=True):
    code: str  # version, revoked, stale-epoch
    message: str
    remedy: str = ""


class Dispatch(Stored, tag="dispatch", frozen=True):
    """Body: msgpack list of messages.Task."""

    call: bytes  # msgpack of Call
    attempt: int
    count: int
    accepted_us: int


class BlobPart(Stored, tag="part", frozen=True):
    """Body: at most PART_BYTES from the offset. `why` is set when there is no such blob or function."""

    sha256: str
    offset_bytes: int
    size_bytes: int  # of the whole
    why: str = ""


class UploadAck(Stored, tag="putack", frozen=True):
    """The next offset that the server wants; equal to the size: all is there and durable."""

    sha256: str
    offset_bytes: int
    why: str = ""  # set: the server will not take it (too large, disk full)


class Ack(Stored, tag="ack", frozen=True):
    seq: int


class CancelTasks(Stored, tag="cancel", frozen=True):
    """Body: ids, 16 bytes each."""

    why: str = ""


class Reset(Stored, tag="reset", frozen=True):
    why: str


# ---------------------------------------------------------------- both


class Heartbeat(Stored, tag="beat", frozen=True):
    at_us: int


FromAgent = Hello | Inventory | Results | Credit | FetchPart | UploadPart | ReportFrame | Bye | Heartbeat
FromBridge = Welcome | Redirect | Refuse | Dispatch | BlobPart | UploadAck | Ack | CancelTasks | Reset | Heartbeat


class AgentEnvelope(Stored, frozen=True):
    session: int  # chosen by the agent at Hello, higher each time (unix µs); echoed by the bridge
    n: int
    epoch: int
    message: FromAgent


class BridgeEnvelope(Stored, frozen=True):
    session: int
    n: int
    epoch: int
    message: FromBridge


MessageParts = list[bytes]
encode = msgspec.msgpack.Encoder().encode
E_ = TypeVar("E_", AgentEnvelope, BridgeEnvelope)
_from_agent = msgspec.msgpack.Decoder(AgentEnvelope)
_from_bridge = msgspec.msgpack.Decoder(BridgeEnvelope)
_call = msgspec.msgpack.Decoder(Call)


def decode_from_agent(parts: MessageParts) -> tuple[AgentEnvelope, bytes]:
    """The envelope and the body (b"" if none). Raises Undecodable."""
    return _decode(_from_agent, parts)


def decode_from_bridge(parts: MessageParts) -> tuple[BridgeEnvelope, bytes]:
    """The envelope and the body (b"" if none). Raises Undecodable."""
    return _decode(_from_bridge, parts)


def _decode(decoder: msgspec.msgpack.Decoder[E_], parts: MessageParts) -> tuple[E_, bytes]:
    if not 1 <= len(parts) <= 2:
        raise Undecodable(f"a message of {len(parts)} parts")
    try:
        return decoder.decode(parts[0]), parts[1] if len(parts) == 2 else b""
    except msgspec.MsgspecError as e:
        raise Undecodable(f"not a message of this protocol: {e}") from None


def pack_inventory(held: list[tuple[bytes, int]]) -> bytes:
    return b"".join(task_id + attempt.to_bytes(4, "big") for task_id, attempt in held)


def unpack_inventory(body: bytes) -> list[tuple[bytes, int]]:
    """Raises Undecodable when it is not a whole number of entries."""
    step = ID_BYTES + 4
    if len(body) % step:
        raise Undecodable(f"an inventory of {len(body)} bytes")
    return [
        (body[i : i + ID_BYTES], int.from_bytes(body[i + ID_BYTES : i + step], "big"))
        for i in range(0, len(body), step)
    ]
