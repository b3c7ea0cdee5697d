"""Copies what is readable of a damaged log into a new database.

    log.db (damaged) ──readable rows──► log.db.part ──rename──► log.db.sound ──► log.db
                     └──────────────────────────────────────► damaged-<time>/

A database with damaged pages must not be written: SQLite would take pages that are in use for free
ones. So a new one replaces it, and the damaged one is kept. A crash at any step repeats the rest.
Rows that are gone leave gaps. Readers tell them as dead letters.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from oncue.disk.durable_files import replace_file, sync_file, sync_folder
from oncue.disk.space import free_bytes
from oncue.disk.sqlite_errors import is_damage
from oncue.errors import LogError
from oncue.log.base import Topic
from oncue.log.sqlite import database, rows
from oncue.log.sqlite.rows import StoredRow

logger = logging.getLogger(__name__)

CHECKED_BYTES = 256 * 1024 * 1024  # about 0.5 s; larger files are checked by `oncue doctor --deep`
NOTE = "damage.json"  # what was found, until somebody deletes it
MANY = 1 << 40  # more records than any partition has


def structural_damage(path: Path) -> str:
    """Return what SQLite finds wrong with the structure of the file; "" if nothing."""
    with contextlib.closing(database.open_reader(path)) as db:
        try:
            found = [str(line) for (line,) in db.execute("PRAGMA quick_check(5)")]
        except sqlite3.DatabaseError as e:
            return str(e)
    return "" if found == ["ok"] else "; ".join(found).replace("\n", " ")


def finish(path: Path) -> None:
    """Put a finished copy in place, if a crash prevented that."""
    sound = path.with_name(path.name + ".sound")
    path.with_name(path.name + ".part").unlink(missing_ok=True)
    if not sound.exists():
        return
    kept = path.with_name("damaged-" + time.strftime("%Y%m%dT%H%M%S"))
    kept.mkdir(mode=0o700, exist_ok=True)
    for end in ("", "-wal", "-shm"):
        old = path.with_name(path.name + end)
        if old.exists() and not (kept / old.name).exists():
            os.link(old, kept / old.name)
    # The new database must not find the write-ahead log of the old one.
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    os.replace(sound, path)
    sync_folder(path.parent)


def salvage(path: Path, why: str) -> None:
    """Replace the database by a copy of what is readable.

    Raises LogError, sqlite3.Error, OSError.
    """
    logger.error("the log %s is damaged (%s): what is readable is copied into a new file", path, why)
    if free_bytes(path.parent) < path.stat().st_size + (16 << 20):
        raise LogError(
            f"the log {path} is damaged ({why}), and there is no space for a copy of what is readable",
            remedy=f"free {path.stat().st_size >> 20} MB there, or restore a backup: oncue restore DIR --force",
        )
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    new = database.connect(part)
    try:
        new.executescript("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        new.executescript(f"{database.TABLES} {database.TO_2}")
        new.execute("CREATE TABLE identity(id TEXT NOT NULL)")
        try:
            with contextlib.closing(database.open_reader(path)) as old:
                copied, unreadable = _copy(old, new)
        except sqlite3.DatabaseError as e:
            if not is_damage(e):
                raise
            raise LogError(
                f"the log {path} is damaged ({why}), and the table of its topics cannot be read: {e}",
                remedy="restore a backup: oncue restore DIR --force",
            ) from e
        new.executescript(f"PRAGMA application_id={database.APPLICATION_ID}; PRAGMA user_version={database.SCHEMA};")
    finally:
        new.close()
    os.chmod(part, 0o600)
    sync_file(part)
    note = {"at": time.time(), "reason": why, "batches": copied, "unreadable": unreadable[:100]}
    replace_file(path.with_name(NOTE), json.dumps(note).encode())
    os.replace(part, path.with_name(path.name + ".sound"))
    sync_folder(path.parent)
    finish(path)
    logger.error(
        "the log %s: %d batches were copied; %d stretches were not readable%s. The damaged file is kept beside it. A"
        " backup may have what is missing", path, copied, len(unreadable),
        "".join(f"; {text}" for text in unreadable[:10]),
    )  # fmt: skip


def _copy(old: sqlite3.Connection, new: sqlite3.Connection) -> tuple[int, list[str]]:
    """Return the number of copied batches, and what could not be read."""
    unreadable: list[str] = []
    try:
        new.execute("INSERT INTO identity VALUES (?)", (database.read_identity(old),))
    except (sqlite3.DatabaseError, TypeError) as e:  # opening makes another: the view is then built again
        unreadable.append(f"the id of the log: {e}")
    topics = [row for row in old.execute("SELECT id, name, settings, crc FROM topics") if _known(row)]
    new.executemany("INSERT INTO topics VALUES (?,?,?,?)", topics)
    names = {id: (name, msgspec.msgpack.decode(settings, type=Topic)) for id, name, settings, _ in topics}
    for row in _rows_of(old, "SELECT grp, topic, partition, next, crc FROM offsets", unreadable):
        if row[1] in names and rows.has_checksum(row):
            new.execute("INSERT OR IGNORE INTO offsets VALUES (?,?,?,?,?)", row)
        else:
            unreadable.append(f"the committed offset of a group: {row!r:.100}; its topic is read again")
    bounds = {}
    for row in _rows_of(old, "SELECT topic, partition, next, begin, crc FROM partitions", unreadable):
        if rows.has_checksum(row):
            bounds[row[:2]] = row
    copied = 0
    for id, (name, settings) in names.items():
        for number in range(settings.partitions):
            bound = bounds.get((id, number), (id, number, 0, -1, None))
            count, first = _copy_partition(old, new, (id, number, f"{name}/{number}"), settings.compact, unreadable)
            copied += count
            # Without its row, records below the first one count as truncated.
            row = (id, number, bound[2], first if bound[3] < 0 else bound[3])
            new.execute("INSERT INTO partitions VALUES (?,?,?,?,?)", (*row, rows.checksum_of(*row)))
    return copied, unreadable


def _known(row: tuple[int, str, bytes, int | None]) -> bool:
    if rows.has_checksum(row):
        return True
    raise LogError(
        f"the log is damaged: the name or the settings of a topic are lost ({row[:2]!r:.100})",
        remedy="restore a backup: oncue restore DIR --force",
    )


def _rows_of(old: sqlite3.Connection, sql: str, unreadable: list[str]) -> Iterator[tuple[int, ...]]:
    try:
        yield from old.execute(sql)
    except sqlite3.DatabaseError as e:
        unreadable.append(f"{sql.rpartition(' ')[2]}: {e}")


def _copy_partition(
    old: sqlite3.Connection, new: sqlite3.Connection, where: tuple[int, int, str], compact: bool, unreadable: list[str]
) -> tuple[int, int]:
    """Return the number of copied batches, and the first offset."""
    id, number, name = where
    copied, begin, at = 0, 0, 0
    while at < MANY:
        try:
            for row in old.execute(
                "SELECT * FROM batches WHERE topic = ? AND partition = ? AND first >= ? ORDER BY first",
                (id, number, at),
            ):
                if not _is_plausible(row, at, compact or not copied):
                    unreadable.append(f"a batch of {name} after {at}")
                    continue
                new.execute("INSERT OR IGNORE INTO batches VALUES (?,?,?,?,?,?,?,?)", row)
                begin = begin if copied else row[2]
                copied += 1
                at = row[2] + max(1, row[3])
            return copied, begin
        except sqlite3.DatabaseError as e:
            after = _next_readable(old, id, number, at)
            unreadable.append(f"{name} from {at} to {after - 1 if after < MANY else 'its end'}: {e}")
            at = after
    return copied, begin


def _is_plausible(row: StoredRow, at: int, gap_allowed: bool) -> bool:
    """Return True if the row may be copied; readers tell of a damaged value.

    A damaged row that does not follow the previous one may have another offset than it was written
    with.
    """
    if type(row[2]) is not int or type(row[3]) is not int or type(row[7]) is not bytes or row[2] < at:
        return False
    return rows.is_accounted_for(row) or (row[2] == at and 0 < row[3] < MANY and not gap_allowed)


def _next_readable(db: sqlite3.Connection, id: int, number: int, at: int) -> int:
    """Return the lowest offset after `at` that can be read; MANY if none can."""

    def readable(offset: int) -> bool:
        try:
            return (
                db.execute(
                    "SELECT length(blob) FROM batches WHERE topic = ? AND partition = ? AND first >= ? LIMIT 1",
                    (id, number, offset),
                ).fetchone()
                is not None
            )
        except sqlite3.DatabaseError:
            return False

    step = 1
    while not readable(at + step):
        step *= 2
        if at + step >= MANY:
            return MANY
    low, high = at + step // 2, at + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if readable(middle) else (middle, high)
    return high
