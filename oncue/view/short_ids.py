"""Short forms of task ids, and the tasks that a short form means.

A short form is the first digits of an id, as git has it: `01932c4a7e10`. The ids of a batch differ
in their last four digits only, so theirs is the first and the last digits: `01932c4a7e10..0007`.
Both are found by the index of ids.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from oncue.errors import Invalid
from oncue.protocol.records import Call
from oncue.view.interning import CallCache

LEAST = 4  # digits at the beginning
SHOWN = 12  # digits at the beginning of a short form: the time in ms
INDEX = 4  # digits at the end: the index in a batch
SCANNED = 100_000  # ids that are compared with first and last digits; a batch has 65,536
SCANNED_OWNERS = 10_000  # ids whose owners are compared with the caller
_FORM = re.compile(r"([0-9a-f]*)(?:(?:\.{2,3}|…)([0-9a-f]+))?\Z")
_IN_RANGE = (
    "SELECT id FROM (SELECT id FROM task WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT ?)"
    " WHERE substr(lower(hex(id)), ?) = ?"
)
_CALL = "SELECT call FROM task WHERE id = ?"
_NEIGHBOURS = (
    "SELECT (SELECT max(id) FROM task WHERE id < ?), (SELECT min(id) FROM task WHERE id > ?),"
    " (SELECT count(*) FROM (SELECT 1 FROM task WHERE id BETWEEN ? AND ? LIMIT 2))"
)


def parse(text: str) -> tuple[str, str]:
    """Return the first and the last digits of an id. Raises Invalid."""
    found = _FORM.match(text.strip().lower().replace("-", "")) if len(text) <= 100 else None
    if found is None or len(found[1]) + len(found[2] or "") > 32:
        raise Invalid(
            f"{text[:100]!r} is not a task's id", remedy="an id has 32 hex digits; its first digits are enough"
        )
    if len(found[1]) < LEAST:
        raise Invalid(
            f"{text!r} is too short for a task's id", remedy=f"give at least the first {LEAST} digits of the id"
        )
    return found[1], found[2] or ""


def matching(db: sqlite3.Connection, text: str, owner: str, limit: int, calls: CallCache) -> list[bytes]:
    """Return ids that a short form means, at most `limit`, the latest first.

    With an owner, only those of that owner's tasks. Raises Invalid.
    """
    head, tail = parse(text)
    low, high = bytes.fromhex(head.ljust(32, "0")), bytes.fromhex(head.ljust(32, "f"))
    found: list[bytes] = []
    for read, (task_id,) in enumerate(db.execute(_IN_RANGE, (low, high, SCANNED, 33 - len(tail), tail))):
        if read == SCANNED_OWNERS:
            if found:
                break
            raise Invalid(f"{text!r} is too short: too many ids begin so", remedy="give more digits of the id")
        call = db.execute(_CALL, (task_id,)).fetchone()[0]
        if call is not None and _is_of(calls.get(db, call), owner):
            found.append(task_id)
            if len(found) == limit:
                break
    return found


def _is_of(call: Call, owner: str) -> bool:
    return not owner or call.owner == owner


def shortened(db: sqlite3.Connection, ids: Sequence[bytes]) -> list[str]:
    """Return the short form of each id, by which only this task is found now."""
    return [_shortened(db, task_id) for task_id in ids]


def _shortened(db: sqlite3.Connection, task_id: bytes) -> str:
    low, high = task_id[:14] + b"\0\0", task_id[:14] + b"\xff\xff"
    before, after, same = db.execute(_NEIGHBOURS, (low, high, low, high)).fetchone()
    text = task_id.hex()
    common = max(_common(text, other.hex()) if other else 0 for other in (before, after))
    # Two more than needed: others of the same time may come.
    head = text[: SHOWN if common < SHOWN else min(common + 2, 32 - INDEX)]
    return head if same < 2 else f"{head}..{text[-INDEX:]}"


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
