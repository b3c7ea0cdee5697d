"""Checks a whole log for damage: structure, checksums, gaps. Changes nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from oncue.log.base import Topic
from oncue.log.sqlite import rows
from oncue.log.sqlite.database import SMALL_TABLES, open_reader
from oncue.log.sqlite.salvage import structural_damage

MOST = 20  # problems that are told


def problems(path: Path) -> list[str]:
    """Return what is wrong with the log at this path, at most MOST problems.

    A server may use it meanwhile. Raises sqlite3.Error if the file cannot be opened.
    """
    if why := structural_damage(path):
        return [why]
    found: list[str] = []
    with contextlib.closing(open_reader(path)) as db:
        if db.execute("PRAGMA user_version").fetchone()[0] < 2:
            return []  # of an earlier version: it has few checksums
        for problem in _problems(db):
            found.append(problem)
            if len(found) >= MOST:
                break
    return found


def _problems(db: sqlite3.Connection) -> Iterator[str]:
    for table, columns in SMALL_TABLES.items():
        for row in db.execute(f"SELECT {columns} FROM {table}"):
            if not rows.has_checksum(row):
                yield f"a row of the table {table} does not have its checksum"
    for id, name, settings in db.execute("SELECT id, name, settings FROM topics").fetchall():
        compact = msgspec.msgpack.decode(settings, type=Topic).compact
        bounds = "SELECT partition, next, begin FROM partitions WHERE topic = ?"
        for number, following, begin in db.execute(bounds, (id,)).fetchall():
            yield from _partition_problems(db, (id, number), f"{name}/{number}", begin, 0 if compact else following)


def _partition_problems(
    db: sqlite3.Connection, key: tuple[int, int], name: str, begin: int, following: int
) -> Iterator[str]:
    """Yield damaged and missing rows; `following`: next offset, 0 if gaps are allowed."""
    at = begin
    for row in db.execute("SELECT * FROM batches WHERE topic = ? AND partition = ? ORDER BY first", key):
        first, count = row[2], row[3]
        if not rows.is_accounted_for(row):
            yield f"{name}: the batch at {first} does not have its checksum"
        if following and first > at:
            yield f"{name}: the records at {at} to {first - 1} are missing"
        at = first + count
    if at < following:
        yield f"{name}: the records at {at} to {following - 1} are missing"
