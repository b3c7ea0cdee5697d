"""Copies an embedded log into a second database, row by row: only what is new.

A server may write the log meanwhile: the copy is one state of it. It is one transaction, so a
killed copy leaves the former state.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from oncue.backup.manifest import LogEntry
from oncue.errors import Conflict, LogError
from oncue.log.base import Topic
from oncue.log.sqlite import database, rows

Progress = Callable[[str, int, int], None]  # (what, done, of)
ENDS = """
SELECT t.name, p.partition, max(p.next, coalesce((SELECT b.first + b.count FROM src.batches b
  WHERE b.topic = p.topic AND b.partition = p.partition ORDER BY b.first DESC LIMIT 1), 0))
FROM src.partitions p JOIN src.topics t ON t.id = p.topic"""


def copy_log(
    source: Path, target: Path, progress: Progress, before_commit: Callable[[], None] | None = None
) -> LogEntry:
    """Bring the copy to the log's present state.

    `before_commit` is called when all that is in the copy was written at the source.
    Raises Conflict if the copy is of another log, LogError if a row is damaged, sqlite3.Error.
    """
    fresh = not target.exists()
    db = database.connect(target)
    try:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("ATTACH ? AS src", (str(source),))
        if (version := db.execute("PRAGMA src.user_version").fetchone()[0]) != database.SCHEMA:
            raise LogError(
                f"{source} has schema {version}, not {database.SCHEMA}",
                remedy="start this version of oncue once before",
            )
        with _transaction(db):
            identity = db.execute("SELECT id FROM src.identity").fetchone()[0]
            if fresh or not db.execute("SELECT count(*) FROM main.sqlite_schema").fetchone()[0]:
                _create(db, identity)
            _check_same(db, identity, target)
            entry = LogEntry(f"sqlite {identity}", {f"{t}/{p}": end for t, p, end in db.execute(ENDS)})
            _copy(db, progress)
            if before_commit is not None:
                before_commit()
        db.execute("DETACH src")
        return entry
    finally:
        db.close()


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN")  # IMMEDIATE would lock the server's log too, and the server could append nothing
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _create(db: sqlite3.Connection, identity: str) -> None:
    for statement in f"{database.TABLES}{database.TO_2}".split(";"):  # executescript would commit
        db.execute(statement)
    db.execute("CREATE TABLE main.identity(id TEXT NOT NULL)")
    db.execute("INSERT INTO main.identity VALUES (?)", (identity,))
    db.execute(f"PRAGMA main.application_id={database.APPLICATION_ID}")
    db.execute(f"PRAGMA main.user_version={database.SCHEMA}")


def _check_same(db: sqlite3.Connection, identity: str, target: Path) -> None:
    """Raise Conflict unless the log goes on from the state that was copied last."""
    own = db.execute("SELECT id FROM main.identity").fetchone()[0]
    other = own != identity
    last = "SELECT topic, partition, max(first) FROM main.batches GROUP BY topic, partition"
    for topic, partition, first in [] if other else db.execute(last).fetchall():
        key = (topic, partition, first)
        where = "WHERE topic = ? AND partition = ? AND first = ?"
        mine = db.execute(f"SELECT crc FROM main.batches {where}", key).fetchone()
        live = db.execute(f"SELECT crc FROM src.batches {where}", key).fetchone()
        begin = db.execute("SELECT begin FROM src.partitions WHERE topic = ? AND partition = ?", key[:2]).fetchone()
        truncated = live is None and begin is not None and begin[0] > first
        same = truncated or live in (mine, (rows.DEAD_LETTERED,))
        other = other or not (same or _is_compact(db, topic))
    if other:
        raise Conflict(
            f"{target} is a copy of another log, or of a later state of this one",
            remedy="give another folder: this backup may be the only one of those records",
        )


def _is_compact(db: sqlite3.Connection, topic: int) -> bool:
    row = db.execute("SELECT settings FROM src.topics WHERE id = ?", (topic,)).fetchone()
    return row is not None and bool(msgspec.msgpack.decode(row[0], type=Topic).compact)


def _copy(db: sqlite3.Connection, progress: Progress) -> None:
    for table, columns in database.SMALL_TABLES.items():
        db.execute(f"DELETE FROM main.{table}")
        db.execute(f"INSERT INTO main.{table}({columns}) SELECT {columns} FROM src.{table}")
    parts = db.execute("SELECT topic, partition, begin FROM src.partitions").fetchall()
    for done, (topic, partition, begin) in enumerate(parts):
        progress("log", done, len(parts))
        key = (topic, partition)
        where = "topic = ?1 AND partition = ?2"
        db.execute(f"DELETE FROM main.batches WHERE {where} AND first < ?3", (*key, begin))
        last = -1
        if _is_compact(db, topic):  # rows of any age may have changed
            db.execute(
                f"DELETE FROM main.batches WHERE {where} AND NOT EXISTS (SELECT 1 FROM src.batches s WHERE"
                " s.topic = ?1 AND s.partition = ?2 AND s.first = main.batches.first AND s.crc = main.batches.crc)", key
            )  # fmt: skip
            new = "first NOT IN (SELECT first FROM main.batches WHERE topic = ?1 AND partition = ?2)"
        else:
            newest = f"SELECT coalesce(max(first), -1) FROM main.batches WHERE {where}"
            last = db.execute(newest, key).fetchone()[0]
            new = f"first > {last:d}"
        db.execute(f"INSERT INTO main.batches SELECT * FROM src.batches WHERE {where} AND {new}", key)
        _check_rows(db, key, last)
    progress("log", len(parts), len(parts))


def _check_rows(db: sqlite3.Connection, key: tuple[int, int], after: int) -> None:
    """Raise LogError if a copied row is damaged, unless its dead letter is there."""
    found = db.execute("SELECT * FROM main.batches WHERE topic = ? AND partition = ? AND first > ?", (*key, after))
    for row in found:
        if not rows.is_accounted_for(row):
            name = db.execute("SELECT name FROM main.topics WHERE id = ?", key[:1]).fetchone()[0]
            raise LogError(
                f"the log is damaged: the batch at {row[2]} of {name}/{key[1]} does not have its checksum;"
                " the former backup is still good",
                remedy="restart the server: it tells what is lost, and goes on; then make the backup again",
            )
