"""Messages between an Evaluator and its process: 4 bytes of length, then msgpack."""

from __future__ import annotations

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import Headers, Stored

LENGTH_BYTES = 4
READY = b"ready\n"  # the process writes it once it can take questions
RULES_BYTES = 256 << 20  # memory of the rules that one process has compiled; then it is replaced

EVENT, WINDOW, EXPLAIN = "event", "window", "explain"
NO, FIRES, MATCHED, EXPLAINED, FAILED = "no", "fires", "matches", "explained", "failed"


class Question(Stored, frozen=True):
    """One rule and one event (or window), as stored in the log."""

    what: str  # EVENT, WINDOW or EXPLAIN
    value: bytes
    headers: Headers = ()
    label: str = ""  # the deployment of the rule, for its Match
    version: int = 0
    at_ms: int = 0
    mark_us: int = 0
    disabled_because: str = ""


class Envelope(Stored, frozen=True):
    """A question, with the rule if the process does not have it yet."""

    rule: int  # number of the rule in this process
    source: bytes  # pickle of Rule.source; b"": known
    cpu_s: float  # limit of the evaluation; the process dies when it is reached
    question: Question


class Answer(Stored, frozen=True):
    kind: str  # NO, FIRES, MATCHED, EXPLAINED or FAILED
    tasks: tuple[tuple[int, bytes, str], ...] = ()  # FIRES: (index of the run, arguments, affinity key)
    match: bytes = b""  # MATCHED: the Match, packed; EXPLAINED: the Explanation as JSON
    key: bytes = b""  # MATCHED: of the record
    stage: str = ""  # FAILED: of a dead letter
    reason: str = ""  # NO: why the condition could not be evaluated, if it could not
    remedy: str = ""
    cpu_s: float = 0.0
    rules_bytes: int = 0  # memory that the rules of this process may use


build_decoders(globals())
