"""Queries about everything but tasks: registry, events, dead letters, reports."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from oncue.protocol.codec import decode
from oncue.protocol.records import (
    Claim,
    DeadLetter,
    Deployment,
    EndpointRecord,
    FunctionRecord,
    Resolution,
    RuleSwitch,
    TokenRecord,
)
from oncue.protocol.reports import Usage
from oncue.view.event_lists import EventRow, cursor_row, event
from oncue.view.lists import take

T = TypeVar("T")
MAX_ROWS = 1_000
HASH_CHARS = 8  # of a content hash, that may stand for all 64
HISTORY, HISTORY_BYTES = 1_000, 16 * 1024 * 1024  # versions of a rule file, and of their texts


class DeadRow(msgspec.Struct, frozen=True):
    """A dead letter and its resolution."""

    id: int
    letter: DeadLetter
    settled: Resolution | None = None  # None: open


class SkippedRow(msgspec.Struct, frozen=True):
    """Record of a kind that this version does not know."""

    topic: str
    partition: int
    offset: int
    kind: str


class ClaimRow(msgspec.Struct, frozen=True):
    """Owner of a partition of oncue.control and its endpoints."""

    partition: int
    epoch: int
    claim: Claim


def _limit(limit: int) -> int:
    return max(1, min(limit, MAX_ROWS))


def _all(db: sqlite3.Connection, kind: type[T], text: str, *given: Any) -> list[T]:
    return [decode(kind, raw) for (raw,) in db.execute(text, given).fetchall()]


def _one(db: sqlite3.Connection, kind: type[T], text: str, *given: Any) -> T | None:
    row = db.execute(text, given).fetchone()
    return None if row is None else decode(kind, row[0])


# ---------------------------------------------------------------- functions


def function(db: sqlite3.Connection, name: str, owner: str = "", of_others: bool = False) -> FunctionRecord | None:
    """Find a function, with its body, by content hash, name or name@version.

    A name means its latest version, the first HASH_CHARS digits of a hash the only one. With an
    owner, only that owner's functions count; with `of_others`, a hash also matches the content of
    others (the owner's own record first).
    """
    found = _function_row(db, name, owner, of_others or not owner)
    if found is None:
        return None
    return msgspec.structs.replace(decode(FunctionRecord, found[0]), body=found[1])


def _function_row(db: sqlite3.Connection, name: str, owner: str, of_others: bool) -> tuple[bytes, bytes] | None:
    select = "SELECT record, body FROM function WHERE"
    by_id = f"{select} id = ? AND (? OR owner = ?) ORDER BY owner = ? DESC, pos DESC LIMIT 1"
    found = db.execute(by_id, (name, of_others, owner, owner)).fetchone() if len(name) == 64 else None
    by_owner = "AND owner = ?" if owner else ""
    given = (owner,) if owner else ()
    if found is None:
        found = db.execute(
            f"{select} name = ? {by_owner} ORDER BY version DESC, pos DESC LIMIT 1", (name, *given)
        ).fetchone()
    base, at, version = name.rpartition("@")
    if found is None and at and version.isascii() and version.isdigit() and len(version) < 10:
        text = f"{select} name = ? AND version = ? {by_owner} ORDER BY pos DESC LIMIT 1"
        found = db.execute(text, (base, int(version), *given)).fetchone()
    if found is None and HASH_CHARS <= len(name) < 64 and not set(name) - set("0123456789abcdef"):
        found = _by_hash(db, name, owner, of_others)
    row: tuple[bytes, bytes] | None = found
    return row


def _by_hash(db: sqlite3.Connection, start: str, owner: str, of_others: bool) -> tuple[bytes, bytes] | None:
    """Return the function whose content hash begins so, if there is one only."""
    where = "WHERE id BETWEEN ? AND ? AND (? OR owner = ?)"
    given = (start, start.ljust(64, "f"), of_others, owner)
    found = db.execute(f"SELECT DISTINCT id FROM function {where} LIMIT 2", given).fetchall()
    if len(found) != 1:
        return None
    text = f"SELECT record, body FROM function {where} ORDER BY owner = ? DESC, pos DESC LIMIT 1"
    row: tuple[bytes, bytes] = db.execute(text, (*given, owner)).fetchone()
    return row


def functions(
    db: sqlite3.Connection, cursor: str = "", limit: int = 50, owner: str = ""
) -> tuple[list[FunctionRecord], str | None]:
    """Return a page of functions, latest first, and the next cursor.

    All versions, without their bodies.
    """
    by_owner = "AND owner = ?" if owner else ""
    text = f"SELECT pos, record FROM function WHERE pos < ? {by_owner} ORDER BY pos DESC LIMIT ?"
    found, more = _page(db, text, cursor, limit, *((owner,) if owner else ()))
    return [decode(FunctionRecord, raw) for _, raw in found], more


def function_versions(db: sqlite3.Connection, name: str, owner: str) -> list[FunctionRecord]:
    """Return the versions of an owner's function, latest first, at most HISTORY."""
    text = "SELECT record FROM function WHERE name = ? AND owner = ? ORDER BY version DESC, pos DESC LIMIT ?"
    return _all(db, FunctionRecord, text, name, owner, HISTORY)


def function_count(db: sqlite3.Connection, owner: str) -> int:
    """Return how many functions an owner has, with all versions."""
    return int(db.execute("SELECT count(*) FROM function WHERE owner = ?", (owner,)).fetchone()[0])


def _page(db: sqlite3.Connection, text: str, cursor: str, limit: int, *given: Any) -> tuple[list[Any], str | None]:
    """Return a page and the next cursor.

    The cursor is a row's first column, which the statement compares with its first parameter.
    """
    limit = _limit(limit)
    found, more = take(db.execute(text, (cursor_row(cursor), *given, limit + 1)), limit)
    return found, str(found[-1][0]) if more else None


# ---------------------------------------------------------------- endpoints, rules, tokens


def endpoints(db: sqlite3.Connection) -> list[EndpointRecord]:
    """Return all endpoints, including revoked ones, in registry order."""
    return _all(db, EndpointRecord, "SELECT record FROM endpoint ORDER BY pos")


def endpoint(db: sqlite3.Connection, name: str) -> EndpointRecord | None:
    """Find an endpoint by id or name: the latest not revoked, else the latest."""
    found = _one(db, EndpointRecord, "SELECT record FROM endpoint WHERE id = ?", name)
    if found is not None:
        return found
    named = _all(db, EndpointRecord, "SELECT record FROM endpoint WHERE name = ? ORDER BY pos DESC", name)
    return next((e for e in named if not e.revoked), named[0] if named else None)


def endpoint_positions(db: sqlite3.Connection, name: str) -> list[tuple[int, EndpointRecord]]:
    """Return (position, record) of endpoints of this name, in registry order."""
    found = db.execute("SELECT pos, record FROM endpoint WHERE name = ? ORDER BY pos", (name,)).fetchall()
    return [(pos, decode(EndpointRecord, raw)) for pos, raw in found]


def deployment_positions(db: sqlite3.Connection, label: str) -> list[tuple[int, Deployment]]:
    """Return (position, record) of a label's versions, in registry order."""
    found = db.execute("SELECT pos, record FROM deployment WHERE label = ? ORDER BY pos", (label,)).fetchall()
    return [(pos, decode(Deployment, raw)) for pos, raw in found]


def deployments(db: sqlite3.Connection) -> list[Deployment]:
    """Return the active deployments: the latest of each label unless removed."""
    text = "SELECT record FROM deployment d WHERE pos = (SELECT max(pos) FROM deployment WHERE label = d.label) ORDER BY label"
    return [d for d in _all(db, Deployment, text) if not d.removed]


def deployment_history(db: sqlite3.Connection, label: str) -> list[Deployment]:
    """Return the versions of a label, latest first, at most HISTORY.

    Texts behind the first HISTORY_BYTES are left out.
    """
    text = "SELECT record FROM deployment WHERE label = ? ORDER BY pos DESC LIMIT ?"
    found, size = [], 0
    for (raw,) in db.execute(text, (label, HISTORY)):
        record = decode(Deployment, raw)
        size += len(record.text)
        found.append(record if size <= HISTORY_BYTES else msgspec.structs.replace(record, text=""))
    return found


def deployments_since(db: sqlite3.Connection, since_us: int) -> list[Deployment]:
    """Return the deployments that were in force at this time or later, oldest first.

    Of each label the versions since then, and the one before them.
    """
    text = "SELECT label, record FROM deployment ORDER BY label, pos DESC"
    found: list[Deployment] = []
    complete = ""  # label whose older versions are not wanted
    for label, raw in db.execute(text):
        if label != complete:
            record = decode(Deployment, raw)
            found.append(record)
            complete = label if record.at_us <= since_us else complete
    return sorted(found, key=lambda d: d.at_us)


def deployment_version(db: sqlite3.Connection, label: str, version: int) -> Deployment | None:
    """Return one version of a label."""
    prefix = f"deployment:{label}@".encode()
    # Early servers gave all versions of a label one key, without their numbers.
    text = "SELECT record FROM deployment WHERE label = ? AND (key = ? OR substr(key, 1, ?) != ?) ORDER BY pos DESC"
    rows = db.execute(text, (label, prefix + str(version).encode(), len(prefix), prefix))
    return next((d for (raw,) in rows if (d := decode(Deployment, raw)).version == version), None)


def newest_version(db: sqlite3.Connection, label: str) -> int:
    """Return the highest version of a label; 0 if it was never deployed."""
    prefix = f"deployment:{label}@".encode()
    keys = db.execute(
        "SELECT key FROM deployment WHERE label = ? AND substr(key, 1, ?) = ?", (label, len(prefix), prefix)
    )
    early = "SELECT record FROM deployment WHERE label = ? AND substr(key, 1, ?) != ?"
    versions = [int(key[len(prefix) :]) for (key,) in keys]
    return max([*versions, *(d.version for d in _all(db, Deployment, early, label, len(prefix), prefix))], default=0)


def switches(db: sqlite3.Connection) -> list[RuleSwitch]:
    """Return the latest switch of each rule."""
    return _all(db, RuleSwitch, "SELECT record FROM switch ORDER BY rule")


def tokens(db: sqlite3.Connection) -> list[TokenRecord]:
    return _all(db, TokenRecord, "SELECT record FROM token ORDER BY pos")


def token_by_hash(db: sqlite3.Connection, hash_hex: str) -> TokenRecord | None:
    return _one(db, TokenRecord, "SELECT record FROM token WHERE hash = ? ORDER BY pos DESC LIMIT 1", hash_hex)


class Newer(NamedTuple, Generic[T]):
    """Records of a table of the registry behind a position, in registry order."""

    records: list[T]
    position: int  # of the last record
    total: int  # how many records there are


def newer_endpoints(db: sqlite3.Connection, after: int) -> Newer[EndpointRecord]:
    return _newer(db, EndpointRecord, "endpoint", after)


def newer_tokens(db: sqlite3.Connection, after: int) -> Newer[TokenRecord]:
    return _newer(db, TokenRecord, "token", after)


def _newer(db: sqlite3.Connection, kind: type[T], table: str, after: int) -> Newer[T]:
    # One statement sees one state of the view.
    count = f"(SELECT count(*) FROM {table})"
    found = db.execute(f"SELECT pos, record, {count} FROM {table} WHERE pos > ? ORDER BY pos", (after,)).fetchall()
    if not found:
        return Newer([], after, db.execute(f"SELECT {count}").fetchone()[0])
    return Newer([decode(kind, raw) for _, raw, _ in found], found[-1][0], found[0][2])


# ---------------------------------------------------------------- events


def events_at(db: sqlite3.Connection, places: Sequence[int]) -> list[EventRow]:
    """Return the events at these positions that there are, in order."""
    return [row for place in places if (row := event(db, place)) is not None]


# ---------------------------------------------------------------- dead letters and skipped records


def dead(
    db: sqlite3.Connection, cursor: str = "", limit: int = 50, owner: str = "", settled: bool = False
) -> tuple[list[DeadRow], str | None]:
    """Return a page of dead letters, latest first, and the next cursor.

    Only open ones unless `settled`; with an owner, only those of that owner's rules.
    """
    found, more = _page(db, dead_text(owner, settled), cursor, limit, *((owner,) if owner else ()))
    return [_dead_row(*row) for row in found], more


def dead_text(owner: str, settled: bool) -> str:
    """Return the statement of `dead`."""
    index = "" if settled else "INDEXED BY dead_open"
    if owner:
        index = "INDEXED BY dead_owner" if settled else "INDEXED BY dead_owner_open"
    where = "id < ?" + (" AND owner = ?" if owner else "") + ("" if settled else " AND settled IS NULL")
    return f"SELECT id, record, settled FROM dead {index} WHERE {where} ORDER BY id DESC LIMIT ?"


def open_dead(db: sqlite3.Connection) -> int:
    """Count open dead letters."""
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
    """Return the reported output of the task's latest attempt."""
    row = db.execute("SELECT text FROM output WHERE id = ?", (task_id,)).fetchone()
    return row[0] if row else b""


def usage(db: sqlite3.Connection) -> dict[str, Usage]:
    """Return the latest usage report of each endpoint."""
    return {u.endpoint: u for u in _all(db, Usage, "SELECT record FROM usage")}


def claims(db: sqlite3.Connection) -> list[ClaimRow]:
    """Return the latest claim of each partition."""
    found = db.execute("SELECT partition, epoch, record FROM claim ORDER BY partition").fetchall()
    return [ClaimRow(partition, epoch, decode(Claim, record)) for partition, epoch, record in found]
