"""Limits on what one agent may send: sizes of results, rates of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import (
    ERROR,
    FAILURE_CHARS,
    OK,
    OUTPUT_BYTES,
    TRACEBACK_BYTES,
    VALUE_BYTES,
    Ended,
    Failure,
)

IN_FLIGHT_TASKS = 200_000  # of one agent, whatever credit it gives
HELLOS, HELLOS_PER_S = 30, 2  # at once; on average
NAME_CHARS = 1_000


class Drop(Protocol):
    """Counts and logs what an agent may not send (EffectRunner.drop)."""

    def __call__(self, endpoint: str, reason: str, why: str, count: int = 1) -> None: ...


def decode_results(body: bytes) -> tuple[list[Ended], bytes]:
    """Decode the body of Results; return its ends within limits, and their bytes.

    The bytes are b"" if they differ from `body`. Raises Undecodable.
    """
    ends = bridge.decode_ends(body)
    if len(body) > OUTPUT_BYTES and (cut := cut_ends(ends)):
        return cut, b""
    return ends, body


def cut_ends(ends: Sequence[Ended]) -> list[Ended]:
    """Return the ends within the limits on values and outputs; [] if they are already.

    A result that is too large becomes an error, a failure's text is shortened.
    """
    if all(len(e.value) <= VALUE_BYTES and len(e.output) <= OUTPUT_BYTES for e in ends):
        return []
    return [_cut(e) for e in ends]


def _cut(e: Ended) -> Ended:
    output = e.output[:OUTPUT_BYTES]
    if len(e.value) <= VALUE_BYTES:
        return msgspec.structs.replace(e, output=output)
    if e.status == OK:
        failure = Failure(
            "oncue.ResultTooLarge",
            f"the result has {len(e.value):,} bytes; an agent may send {VALUE_BYTES:,} of one, and the rest as a blob",
            remedy="update oncue where the agent runs: it stores large results as blobs",
        )
        return msgspec.structs.replace(e, status=ERROR, value=encode(failure), output=output)
    return msgspec.structs.replace(e, value=encode(_short_failure(e.value)), output=output)


def _short_failure(value: bytes) -> Failure:
    try:
        found = decode(Failure, value)
    except Undecodable:
        return Failure("oncue.Undecodable", f"the agent sent {len(value):,} bytes that are not a failure")
    half = TRACEBACK_BYTES // 2
    trace = found.traceback
    return Failure(
        found.type[:NAME_CHARS],
        found.message[:FAILURE_CHARS],
        trace if len(trace) <= TRACEBACK_BYTES else f"{trace[:half]}\n  [...]\n{trace[-half:]}",
        found.remedy[:FAILURE_CHARS],
        exit_code=found.exit_code,
        classes=found.classes,
    )
