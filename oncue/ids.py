"""Task ids, derived from the request: 16 bytes laid out as UUIDv7 (RFC 9562).

    48 bits   unix time in ms          4 bits version (7)
    12 bits   of the hash              2 bits variant
    46 bits   of the hash             16 bits index in the batch

The hash covers the caller and the request's idempotency key. So a request that is repeated after a
timeout yields the same ids, and a caller cannot occupy another caller's ids. Ids sort by time. The
ids of a batch are consecutive: SQLite inserts ordered rows many times faster than random ones.
"""

from __future__ import annotations

import hashlib
import os

from oncue.clocks.process import now_ms
from oncue.errors import Invalid

MAX_BATCH = 1 << 16  # the index has 16 bits
PREFIX = 14  # bytes that the ids of a batch have in common


def new_uuid7(ms: int | None = None) -> bytes:
    """Return a random UUIDv7: a client creates one per batch."""
    ms = now_ms() if ms is None else ms
    bits = int.from_bytes(os.urandom(10), "big")
    return _shape(ms, bits >> 68, bits & ((1 << 62) - 1))


def _shape(ms: int, a12: int, b62: int) -> bytes:
    n = ((ms & ((1 << 48) - 1)) << 80) | (0x7 << 76) | ((a12 & 0xFFF) << 64) | (0b10 << 62) | b62
    return n.to_bytes(16, "big")


def batch_ids(owner: str, key: bytes, count: int) -> list[bytes]:
    """Return the ids of a client's batch.

    They consist of the time of `key` (a UUIDv7), hash(owner, key) and the index. Raises ValueError
    if count exceeds MAX_BATCH or key does not have 16 bytes.
    """
    if len(key) != 16:
        raise ValueError("a batch key is a UUIDv7 of 16 bytes")
    return derived_ids(int.from_bytes(key[:6], "big"), owner.encode() + b"\0" + key, count)


def derived_ids(ms: int, seed: bytes, count: int = 1, first: int = 0) -> list[bytes]:
    """Return `count` consecutive ids, derived from a time in ms and a seed."""
    if not 0 < count <= MAX_BATCH - first:
        raise ValueError(f"a batch holds 1 to {MAX_BATCH} tasks, not {count}")
    bits = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big")
    base = int.from_bytes(_shape(ms, bits >> 52, (bits & ((1 << 46) - 1)) << 16), "big") + first
    return [(base + i).to_bytes(16, "big") for i in range(count)]


def nth_id(prefix: bytes, index: int) -> bytes:
    """Return the id at an index of the batch whose ids begin so."""
    return prefix + index.to_bytes(16 - PREFIX, "big")


DIGEST_BYTES = 8


def event_digest(source: str, event_id: str) -> bytes:
    """Return DIGEST_BYTES that stand for an event among those of a rule's windows."""
    return hashlib.blake2b(f"{source}\0{event_id}".encode(), digest_size=DIGEST_BYTES).digest()


def rule_task_ids(rule: str, replay: str, source: str, event_id: str, event_ms: int | None, count: int) -> list[bytes]:
    """Return the ids of the tasks of one event and one rule, one per function.

    The rule's version is not hashed, so that a redeploy does not fire an old event twice.
    `event_ms` is given only if one of our triggers stored that time before it published the event.
    Otherwise the time bits come from the hash too, so that a repeated event yields the same ids.
    """
    if not count:
        return []
    seed = "\0".join(("rule", rule, replay, source, event_id)).encode()
    if event_ms is None:
        event_ms = int.from_bytes(hashlib.blake2b(seed, digest_size=6, person=b"oncue-time").digest(), "big")
    return derived_ids(event_ms, seed, count)


def window_task_ids(seed: bytes, opened_ms: int, count: int) -> list[bytes]:
    """Return the ids of the tasks that a closed window makes a rule run.

    `seed` identifies the window. `opened_ms` is the time of its first event in the log, so that a
    repeated firing yields the same ids.
    """
    return derived_ids(opened_ms, seed, count) if count else []


def text(task_id: bytes) -> str:
    """Return the id as 32 hex digits, as in JSON and for people."""
    return task_id.hex()


def parse(text_id: str) -> bytes:
    """Parse an id; dashes are allowed. Raises ValueError."""
    raw = bytes.fromhex(text_id.replace("-", ""))
    if len(raw) != 16:
        raise ValueError(f"{text_id!r} is not a task id: it has {len(raw)} bytes, not 16")
    return raw


def parse_task_id(text: str) -> bytes:
    """Return the task id that a person wrote as 32 hex digits. Raises Invalid."""
    try:
        return parse(text)
    except ValueError:
        raise Invalid(f"{text!r} is not a task id", remedy="an id has 32 hex digits: oncue tasks list") from None
