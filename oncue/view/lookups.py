"""What is asked about all but tasks: functions, endpoints, deployments, switches, tokens, events, dead letters, reports."""

from __future__ import annotations

import sqlite3
from typing import Any, TypeVar

import msgspec

from oncue.errors import Invalid
from oncue.protocol import cloudevents
from oncue.protocol.codec import decode
from oncue.protocol.records import (
    Claim,
    DeadLetter,
    Deployment,
    EndpointRecord,
    Event,
    FunctionRecord,
    Resolution,
    RuleSwitch,
    TokenRecord,
    Usage,
)

T = TypeVar("T")
MOST = 1_000
_TOP = (1 << 63) - 1
_Headers = tuple[tuple[str, bytes], ...]


class EventRow(msgspec.Struct, frozen=True):
    """An event and its place in the log."""

    offset: int
    event: Event
    at_us: int


class DeadRow(msgspec.Struct, frozen=True):
    id: int
    letter: DeadLetter
    settled: Resolution | None = None  # None: nobody has dealt with it


class SkippedRow(msgspec.Struct, frozen=True):
    """A record of a kind that this version does not know."""

    topic: str
    partition: int
    offset: int
    kind: str


class ClaimRow(msgspec.Struct, frozen=True):
    """Who acts for the endpoints of a partition of oncue.control."""

    partition: int
    epoch: int
    claim: Claim


def _top(cursor: str) -> int:
    if not cursor:
        return _TOP
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise Invalid(f"cursor: {cursor!r} is not one", remedy="give back the `next` of the page before, as it was")
    return int(cursor)


def _limit(limit: int) -> int:
    return max(1, min(limit, MOST))


def _all(db: sqlite3.Connection, kind: type[T], text: str, *given: Any) -> list[T]:
    return [decode(kind, raw) for (raw,) in db.execute(text, given).fetchall()]


def _one(db: sqlite3.Connection, kind: type[T], text: str, *given: Any) -> T | None:
    row = db.execute(text, given).fetchone()
    return None if row is None else decode(kind, row[0])


# ---------------------------------------------------------------- functions


def function(db: sqlite3.Connection, name: str, owner: str = "") -> FunctionRecord | None:
    """By content hash, friendly name (its newest version) or name@version; with its body. With an owner, names are that
    owner's only, while a hash names the same content whoever registered it (the owner's own record first)."""
    found = _function_row(db, name, owner)
    if found is None:
        return None
    return msgspec.structs.replace(decode(FunctionRecord, found[0]), body=found[1])


def _function_row(db: sqlite3.Connection, name: str, owner: str) -> tuple[bytes, bytes] | None:
    select = "SELECT record, body FROM function WHERE"
    by_id = f"{select} id = ? ORDER BY owner = ? DESC, pos DESC LIMIT 1"
    found = db.execute(by_id, (name, owner)).fetchone() if len(name) == 64 else None
    mine = "AND owner = ?" if owner else ""
    who = (owner,) if owner else ()
    if found is None:
        found = db.execute(f"{select} name = ? {mine} ORDER BY version DESC, pos DESC LIMIT 1", (name, *who)).fetchone()
    base, at, version = name.rpartition("@")
    if found is None and at and version.isascii() and version.isdigit() and len(version) < 10:
        text = f"{select} name = ? AND version = ? {mine} ORDER BY pos DESC LIMIT 1"
        found = db.execute(text, (base, int(version), *who)).fetchone()
    row: tuple[bytes, bytes] | None = found
    return row


def functions(
    db: sqlite3.Connection, cursor: str = "", limit: int = 50, owner: str = ""
) -> tuple[list[FunctionRecord], str | None]:
    """All versions, newest first, without their bodies; and the next cursor."""
    mine = "AND owner = ?" if owner else ""
    text = f"SELECT pos, record FROM function WHERE pos < ? {mine} ORDER BY pos DESC LIMIT ?"
    found, more = _page(db, text, cursor, limit, *((owner,) if owner else ()))
    return [decode(FunctionRecord, raw) for _, raw in found], more


def _page(db: sqlite3.Connection, text: str, cursor: str, limit: int, *given: Any) -> tuple[list[Any], str | None]:
    """Rows whose first column is what the cursor counts, which the text tests with its first parameter."""
    limit = _limit(limit)
    found = db.execute(text, (_top(cursor), *given, limit + 1)).fetchall()
    more = len(found) > limit
    del found[limit:]
    return found, str(found[-1][0]) if more else None


# ---------------------------------------------------------------- endpoints, rules, tokens


def endpoints(db: sqlite3.Connection) -> list[EndpointRecord]:
    """All, also revoked ones, in the registry's order."""
    return _all(db, EndpointRecord, "SELECT record FROM endpoint ORDER BY pos")


def endpoint(db: sqlite3.Connection, name: str) -> EndpointRecord | None:
    """By id, or by name (the newest of that name that is not revoked; else the newest)."""
    found = _one(db, EndpointRecord, "SELECT record FROM endpoint WHERE id = ?", name)
    if found is not None:
        return found
    named = _all(db, EndpointRecord, "SELECT record FROM endpoint WHERE name = ? ORDER BY pos DESC", name)
    return next((e for e in named if not e.revoked), named[0] if named else None)


def endpoint_places(db: sqlite3.Connection, name: str) -> list[tuple[int, EndpointRecord]]:
    """Those of this name, in the registry's order, and where they stand in it."""
    found = db.execute("SELECT pos, record FROM endpoint WHERE name = ? ORDER BY pos", (name,)).fetchall()
    return [(pos, decode(EndpointRecord, raw)) for pos, raw in found]


def deployment_places(db: sqlite3.Connection, label: str) -> list[tuple[int, Deployment]]:
    """All of a label, in the registry's order, and where they stand in it."""
    found = db.execute("SELECT pos, record FROM deployment WHERE label = ? ORDER BY pos", (label,)).fetchall()
    return [(pos, decode(Deployment, raw)) for pos, raw in found]


def deployments(db: sqlite3.Connection) -> list[Deployment]:
    """What is in force: the newest of each label, unless it was removed."""
    text = "SELECT record FROM deployment d WHERE pos = (SELECT max(pos) FROM deployment WHERE label = d.label) ORDER BY label"
    return [d for d in _all(db, Deployment, text) if not d.removed]


def deployment_history(db: sqlite3.Connection, label: str) -> list[Deployment]:
    """All of a label, newest first."""
    return _all(db, Deployment, "SELECT record FROM deployment WHERE label = ? ORDER BY pos DESC", label)


def switches(db: sqlite3.Connection) -> list[RuleSwitch]:
    """The newest of each rule."""
    return _all(db, RuleSwitch, "SELECT record FROM switch ORDER BY rule")


def tokens(db: sqlite3.Connection) -> list[TokenRecord]:
    return _all(db, TokenRecord, "SELECT record FROM token ORDER BY pos")


def token_by_hash(db: sqlite3.Connection, hash_hex: str) -> TokenRecord | None:
    return _one(db, TokenRecord, "SELECT record FROM token WHERE hash = ? ORDER BY pos DESC LIMIT 1", hash_hex)


# ---------------------------------------------------------------- events


def events(
    db: sqlite3.Connection, type: str = "", source: str = "", cursor: str = "", limit: int = 50
) -> tuple[list[EventRow], str | None]:
    """Newest first, and the next cursor."""
    given = [text for text in (source, type) if text]
    where = "n < ?" + (" AND source = ?" if source else "") + (" AND type = ?" if type else "")
    index = "INDEXED BY event_source" if source else "INDEXED BY event_type" if type else ""
    text = f"SELECT n, place, at_ms, value, headers FROM event {index} WHERE {where} ORDER BY n DESC LIMIT ?"
    found, more = _page(db, text, cursor, limit, *given)
    return [_event_row(*row[1:]) for row in found], more


def event(db: sqlite3.Connection, offset: int) -> EventRow | None:
    """By its offset in oncue.events (facts.place, where that has several partitions)."""
    row = db.execute("SELECT place, at_ms, value, headers FROM event WHERE place = ?", (offset,)).fetchone()
    return None if row is None else _event_row(*row)


def _event_row(place: int, at_ms: int, value: bytes, headers: bytes | None) -> EventRow:
    return EventRow(place, cloudevents.from_record(value, decode(_Headers, headers) if headers else ()), at_ms * 1000)


# ---------------------------------------------------------------- dead letters and skipped records


def dead(
    db: sqlite3.Connection, cursor: str = "", limit: int = 50, owner: str = "", settled: bool = False
) -> tuple[list[DeadRow], str | None]:
    """Those that are open (and those that are settled, too), newest first, and the next cursor. With an owner, those of
    that owner's rules."""
    found, more = _page(db, dead_text(owner, settled), cursor, limit, *((owner,) if owner else ()))
    return [_dead_row(*row) for row in found], more


def dead_text(owner: str, settled: bool) -> str:
    index = "" if settled else "INDEXED BY dead_open"
    if owner:
        index = "INDEXED BY dead_owner" if settled else "INDEXED BY dead_owner_open"
    where = "id < ?" + (" AND owner = ?" if owner else "") + ("" if settled else " AND settled IS NULL")
    return f"SELECT id, record, settled FROM dead {index} WHERE {where} ORDER BY id DESC LIMIT ?"


def open_dead(db: sqlite3.Connection) -> int:
    """How many are open."""
    return int(db.execute("SELECT COUNT(*) FROM dead INDEXED BY dead_open WHERE settled IS NULL").fetchone()[0])


def dead_letter(db: sqlite3.Connection, number: int) -> DeadRow | None:
    row = db.execute("SELECT id, record, settled FROM dead WHERE id = ?", (number,)).fetchone()
    return None if row is None else _dead_row(*row)


def _dead_row(number: int, letter: bytes, settled: bytes | None) -> DeadRow:
    return DeadRow(number, decode(DeadLetter, letter), decode(Resolution, settled) if settled else None)


def skipped(db: sqlite3.Connection) -> list[SkippedRow]:
    found = db.execute("SELECT topic, partition, offset, kind FROM skipped ORDER BY topic, partition, offset")
    return [SkippedRow(*row) for row in found.fetchall()]


# ---------------------------------------------------------------- reports and claims


def output(db: sqlite3.Connection, task_id: bytes) -> bytes:
    """What the task's newest attempt has printed so far, as far as it was reported."""
    row = db.execute("SELECT text FROM output WHERE id = ?", (task_id,)).fetchone()
    return row[0] if row else b""


def usage(db: sqlite3.Connection) -> dict[str, Usage]:
    """The newest report of each endpoint."""
    return {u.endpoint: u for u in _all(db, Usage, "SELECT record FROM usage")}


def claims(db: sqlite3.Connection) -> list[ClaimRow]:
    """The newest claim of each partition."""
    found = db.execute("SELECT partition, epoch, record FROM claim ORDER BY partition").fetchall()
    return [ClaimRow(partition, epoch, decode(Claim, record)) for partition, epoch, record in found]
