"""Messages between bridge and agent: Structs and bytes, no sockets.

    agent (DEALER, connects)                             bridge (ROUTER)
      Hello, Inventory...              ────────────►
                                       ◄────────────     Welcome(epoch), Redirect or Refuse
      Credit, Results, FetchPart ...   ────────────►
                                       ◄────────────     Dispatch, Ack, BlobPart, CancelTasks ...
      Heartbeat                        ◄───────────►     Heartbeat

A ZeroMQ message has one or two parts: the envelope, then a body of raw bytes. Each side numbers its
messages in a session from 0 (Hello, the first Welcome); Reset and Redirect have the number -1. A
repeated number is a duplicate and is dropped. A gap means that a message was lost: the agent then
sends Hello again, the bridge sends Reset to request that. Messages of other sessions are stale and
are dropped. So each message of a session is processed exactly once, and after the inventory at its
start both sides agree on the tasks that the agent holds.

Credit is the total number of tasks that the agent accepts since the start of the session: a total
can be repeated safely. Results carry the agent's journal numbers; Ack(seq) confirms that all
results up to seq are durable in the log.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from oncue.errors import Undecodable
from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.records import AttemptNumber, Ended, Failure, Micros, Natural, NodeShare, Short, Stored

PROTOCOL = 2  # version; the bridge refuses an agent with another one
BEAT_MS = 2_000  # longest pause between two messages of a side
SILENCE_MS = 8_000  # a side that sends nothing for so long counts as disconnected
ID_BYTES = 16
OTHER_AGENT = "other-agent"  # code of a refusal: the endpoint's agent runs elsewhere
PART_BYTES = 1 << 20

# Limits on what the other side may send. A frame beyond them is Undecodable.
INVENTORY_TASKS: Final = 100_000  # in one Inventory message
HELD_TASKS: Final = 1_000_000  # of one agent
RESULTS_AT_ONCE: Final = 65_536  # in one Results message
CANCELS_AT_ONCE: Final = 1_000_000  # in one CancelTasks message
BLOB_BYTES: Final = 1 << 40

Number = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
Seq = Annotated[int, msgspec.Meta(ge=-1, le=1 << 52)]  # of an agent's journal
Size = Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES)]
Nonce = Annotated[bytes, msgspec.Meta(max_length=64)]
CallBytes = Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


# ---------------------------------------------------------------- agent -> bridge


class Hello(Stored, tag="hello", frozen=True):
    """Opens a session."""

    protocol: int
    agent_version: Short
    python: Short
    host: Short
    pid: Natural
    boot: Nonce  # 8 random bytes, new at each start of the agent
    journal: Nonce  # 8 random bytes, new with each journal: a change means that one was lost
    workers: Natural
    held: Natural  # number of tasks in the Inventory messages that follow
    epoch: Annotated[int, msgspec.Meta(ge=0)] = 0  # highest epoch that the agent has accepted
    at_us: Micros = 0  # by the agent's clock; 0: an agent that does not say
    #: `boot` of the former process of this agent, which surely has ended; b"": not known. None: an
    #: agent that does not say.
    after: Nonce | None = None
    age_us: Micros = 0  # of a node's job; 0: not a node, or one that does not say


class Inventory(Stored, tag="inventory", frozen=True):
    """Tasks that the agent holds: queued, running, or ended and not acknowledged.

    Body: 20 bytes per task, id and attempt (big endian). As many messages as `held` tasks need.
    """

    last: bool


class Results(Stored, tag="results", frozen=True):
    """Ended attempts of one call. Body: msgpack of list[Ended]."""

    seq: Natural  # journal number
    count: Natural
    call: CallBytes  # msgpack of Call, unchanged from the Dispatch
    accepted_us: Micros
    granted: Natural  # see Credit
    node_share: NodeShare = 0.0  # see records.ResultFrame


class Credit(Stored, tag="credit", frozen=True):
    """Number of tasks that the agent accepts, counted from the session's start."""

    granted: Natural
    full: Short = ""  # why the agent takes no tasks; of agents that say so


class FetchPart(Stored, tag="want", frozen=True):
    """Requests a part of a blob or function body. Each request gets one BlobPart.

    Several requests may be open at once.
    """

    sha256: Short
    offset_bytes: Size = 0


class UploadPart(Stored, tag="put", frozen=True):
    """Uploads a part of a large result, in order. Body: at most PART_BYTES.

    A result that refers to a blob is sent only after UploadAck has confirmed that it is durable.
    """

    sha256: Short
    offset_bytes: Size
    size_bytes: Size  # of the whole blob


class ReportFrame(Stored, tag="report", frozen=True):
    """Progress of tasks. Body: msgpack of reports.Report. May be lost."""


class Bye(Stored, tag="bye", frozen=True):
    """The agent stops. Tasks that it holds stay in its journal."""

    why: Short = ""


# ---------------------------------------------------------------- bridge -> agent


class Welcome(Stored, tag="welcome", frozen=True):
    """Accepts Hello. Sent again in the session when `servers` change.

    Of a repeated Welcome only `servers` counts; older agents ignore it.
    """

    epoch: Number
    server: Short
    server_version: Short
    durable_seq: Seq = -1  # journal entries up to here are durable in the log
    # (address, CURVE key) of all servers
    servers: Annotated[tuple[tuple[Short, Short], ...], msgspec.Meta(max_length=10_000)] = ()
    at_us: Micros = 0  # by the server's clock; 0: a server that does not say
    by_function: bool = False  # the server limits the tasks at the agent by function: credit may be ample


class Redirect(Stored, tag="redirect", frozen=True):
    """Another server owns this endpoint: connect to that one.

    Without an address no server owns it yet: try again soon.
    """

    bridge: Short = ""
    server_key: Short = ""
    why: Short = ""


class Refuse(Stored, tag="refuse", frozen=True):
    """Rejects Hello."""

    code: str  # version, revoked, stale-epoch, other-agent
    message: str
    remedy: str = ""


class Dispatch(Stored, tag="dispatch", frozen=True):
    """Tasks of one call for the agent. Body: msgpack of list[TaskRecord]."""

    call: CallBytes  # msgpack of Call
    attempt: AttemptNumber
    count: Natural
    accepted_us: Micros


class BlobPart(Stored, tag="part", frozen=True):
    """A part of a blob or function body.

    Body: at most PART_BYTES from the offset on.

    `why` is set if the blob or function does not exist.
    """

    sha256: Short
    offset_bytes: Size
    size_bytes: Size  # of the whole
    why: str = ""


class UploadAck(Stored, tag="putack", frozen=True):
    """The next offset of an upload.

    If it equals the size, the blob is complete and durable.
    """

    sha256: Short
    offset_bytes: Size
    why: str = ""  # set if the server rejects the blob (too large, disk full)


class Ack(Stored, tag="ack", frozen=True):
    """Results up to journal number `seq` are durable in the log."""

    seq: Seq


class CancelTasks(Stored, tag="cancel", frozen=True):
    """Cancels tasks. Body: ids, 16 bytes each."""

    why: str = ""


class Recall(Stored, tag="recall", frozen=True):
    """Takes back tasks that wait for a worker. Body: ids, 16 bytes each.

    Each comes back as a cancelled attempt whose value is RECALLED. Tasks that wait for content go
    on. An agent's nodes know this message, agents do not get it.
    """

    running: bool = False  # also running tasks: they are ended; and those that wait for content


class Reset(Stored, tag="reset", frozen=True):
    """Requests a new session: the agent sends Hello again."""

    why: str
    above: Number = 0  # the new session's number must be higher than this


# ---------------------------------------------------------------- both


class Heartbeat(Stored, tag="beat", frozen=True):
    """Keeps the connection alive when there is nothing else to send."""

    at_us: int


FromAgent = Hello | Inventory | Results | Credit | FetchPart | UploadPart | ReportFrame | Bye | Heartbeat
FromBridge = (
    Welcome | Redirect | Refuse | Dispatch | BlobPart | UploadAck | Ack | CancelTasks | Recall | Reset | Heartbeat
)


class AgentEnvelope(Stored, frozen=True):
    """First part of a message from the agent."""

    session: Number  # chosen by the agent at Hello, increasing (unix µs); repeated by the bridge
    n: Number  # of the message in the session
    epoch: Number
    message: FromAgent


class BridgeEnvelope(Stored, frozen=True):
    """First part of a message from the bridge."""

    session: Number
    n: Number
    epoch: Number
    message: FromBridge


MessageParts = list[bytes]
#: Value of an attempt that came back because of Recall: it is no outcome.
RECALLED = msgspec.msgpack.encode(Failure("oncue.TaskRecalled", "the task was taken back, to run elsewhere"))
encode = msgspec.msgpack.Encoder().encode
E_ = TypeVar("E_", AgentEnvelope, BridgeEnvelope)
_from_agent = msgspec.msgpack.Decoder(AgentEnvelope)
_from_bridge = msgspec.msgpack.Decoder(BridgeEnvelope)
_ends = msgspec.msgpack.Decoder(Annotated[list[Ended], msgspec.Meta(max_length=RESULTS_AT_ONCE)])


def decode_from_agent(parts: MessageParts) -> tuple[AgentEnvelope, bytes]:
    """Return the envelope and the body (b"" if none). Raises Undecodable."""
    return _decode(_from_agent, parts)


def decode_from_bridge(parts: MessageParts) -> tuple[BridgeEnvelope, bytes]:
    """Return the envelope and the body (b"" if none). Raises Undecodable."""
    return _decode(_from_bridge, parts)


def _decode(decoder: msgspec.msgpack.Decoder[E_], parts: MessageParts) -> tuple[E_, bytes]:
    if not 1 <= len(parts) <= 2:
        raise Undecodable(f"a message of {len(parts)} parts")
    try:
        return decoder.decode(parts[0]), parts[1] if len(parts) == 2 else b""
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a message of this protocol: {_reason(e)}") from None


def _reason(e: Exception) -> str:
    return str(e)[:200]


def decode_ends(body: bytes) -> list[Ended]:
    """Decode the body of Results. Raises Undecodable."""
    try:
        return _ends.decode(body)
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a list of ended attempts: {_reason(e)}") from None


def pack_inventory(held: list[tuple[bytes, int]]) -> bytes:
    """Encode (task id, attempt) pairs as the body of Inventory."""
    return b"".join(task_id + attempt.to_bytes(4, "big") for task_id, attempt in held)


def unpack_ids(body: bytes) -> list[bytes]:
    """Decode the body of CancelTasks. Raises Undecodable."""
    if len(body) % ID_BYTES or len(body) > CANCELS_AT_ONCE * ID_BYTES:
        raise Undecodable(f"a list of task ids of {len(body)} bytes")
    return [body[i : i + ID_BYTES] for i in range(0, len(body), ID_BYTES)]


def unpack_inventory(body: bytes) -> list[tuple[bytes, int]]:
    """Decode the body of Inventory. Raises Undecodable."""
    step = ID_BYTES + 4
    if len(body) % step or len(body) > INVENTORY_TASKS * step:
        raise Undecodable(f"an inventory of {len(body)} bytes")
    return [
        (body[i : i + ID_BYTES], int.from_bytes(body[i + ID_BYTES : i + step], "big"))
        for i in range(0, len(body), step)
    ]
