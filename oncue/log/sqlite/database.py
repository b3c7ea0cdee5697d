"""Database of the embedded log: schema, connections, errors in plain words.

batches     one row per batch: topic, partition, first offset, count, latest time, checksum, blob
topics      names, ids and settings
partitions  next offset, needed once the last rows are deleted; first kept offset
offsets     committed offsets of groups
identity    random id of this log, kept by copies of it
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from pathlib import Path

from oncue.disk.space import free_bytes, is_read_only
from oncue.disk.sqlite_errors import is_damage, is_disk_full
from oncue.errors import DiskFull, LogError, OncueError

APPLICATION_ID = 0x6F6E6375  # "oncu"
SCHEMA = 2  # 2: checksums of all rows, first kept offsets
PAGE_BYTES = 4096
SUSPECT = "suspect"  # beside log.db: SQLite found damage while the log was open
WAL_BYTES = 8 * 1024 * 1024  # written between two checkpoints; then the file is overwritten

# WITHOUT ROWID: one b-tree instead of a table and an index. The blob is the last column, so that a
# scan of the others does not load the overflow pages of large blobs.
TABLES = """
CREATE TABLE batches(
  topic INTEGER NOT NULL, partition INTEGER NOT NULL,
  first INTEGER NOT NULL, count INTEGER NOT NULL,
  time_ms INTEGER NOT NULL, crc INTEGER NOT NULL, offsets BLOB, blob BLOB NOT NULL,
  PRIMARY KEY(topic, partition, first)) WITHOUT ROWID;
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, settings BLOB NOT NULL);
CREATE TABLE partitions(
  topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY(topic, partition)) WITHOUT ROWID;
CREATE TABLE offsets(
  grp TEXT NOT NULL, topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY(grp, topic, partition)) WITHOUT ROWID;
CREATE TABLE filler(zeros BLOB);
"""
# From schema 1 to 2. Rows of before have no checksum.
TO_2 = """
ALTER TABLE topics ADD COLUMN crc INTEGER;
ALTER TABLE partitions ADD COLUMN begin INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN crc INTEGER;
ALTER TABLE offsets ADD COLUMN crc INTEGER;
UPDATE partitions SET begin = coalesce((SELECT b.first FROM batches b
  WHERE b.topic = partitions.topic AND b.partition = partitions.partition ORDER BY b.first LIMIT 1), next);
"""
BUSY_S = 30  # until a statement that finds the file locked gives up
#: Columns of the tables of few rows; the last is the checksum of the others.
SMALL_TABLES = {
    "topics": "id, name, settings, crc",
    "partitions": "topic, partition, next, begin, crc",
    "offsets": "grp, topic, partition, next, crc",
}


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the only connection that writes. Raises LogError, DiskFull."""
    db: sqlite3.Connection | None = None
    try:
        db = connect(path)
        _prepare(db, path)
        return db
    except BaseException as e:
        if db is not None:
            db.close()
        if isinstance(e, sqlite3.Error | OSError):
            raise explain(e, path) from e
        raise


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has to come before the first table
    if db.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise LogError(f"SQLite cannot keep a write-ahead log for {path}", remedy="put the data folder on a local disk")
    db.execute("PRAGMA synchronous=FULL")  # in WAL mode: fsync of the log at each commit
    db.execute("PRAGMA checkpoint_fullfsync=1")  # macOS: flush the drive
    db.execute("PRAGMA wal_autocheckpoint=0")  # the writer does it between commits
    db.execute("PRAGMA secure_delete=OFF")  # Debian's default zeroes each freed page
    db.execute("PRAGMA cache_size=-16384")
    _migrate(db, path)
    # A log of an earlier version has none yet. Earlier versions ignore the table.
    db.execute("CREATE TABLE IF NOT EXISTS identity(id TEXT NOT NULL)")
    db.execute("INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)", (secrets.token_hex(8),))
    _widen_wal(db, path)


def read_identity(db: sqlite3.Connection) -> str:
    """Return the log's id, made when the log was."""
    return str(db.execute("SELECT id FROM identity").fetchone()[0])


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection."""
    db = connect(path)
    db.execute("PRAGMA query_only=1")
    return db


def connect(path: Path) -> sqlite3.Connection:
    # No implicit transactions. One thread at a time uses it, though not the one that opened it.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    # In a damaged row, a blob may look like text: it must not raise.
    db.text_factory = lambda text: text.decode(errors="surrogateescape")
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    owner, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if version == 0 and owner == 0:
        db.executescript(
            f"BEGIN IMMEDIATE; {TABLES} {TO_2}"
            f" PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA}; COMMIT;"
        )
    elif owner != APPLICATION_ID:
        raise LogError(f"{path} is not a log of oncue", remedy="give another data folder (ONCUE_DATA)")
    elif version > SCHEMA:
        raise LogError(
            f"{path} was written by a newer oncue (schema {version}, this one knows {SCHEMA})",
            remedy="upgrade oncue on this machine",
        )
    elif version == 1:
        db.executescript(f"BEGIN IMMEDIATE; {TO_2} PRAGMA user_version={SCHEMA}; COMMIT;")


def _widen_wal(db: sqlite3.Connection, path: Path) -> None:
    """Grow the write-ahead log to its full size.

    After one large write and a checkpoint, commits overwrite a file of constant length, which
    makes fsync faster.
    """
    db.execute("DELETE FROM filler")  # left by an interrupted start
    if free_bytes(path.parent) < 10 * WAL_BYTES:
        return
    try:
        db.execute("INSERT INTO filler VALUES (zeroblob(?))", (WAL_BYTES,))
        db.execute("DELETE FROM filler")
    except sqlite3.OperationalError:
        return  # no space: this only affects speed
    db.execute("PRAGMA busy_timeout=0")  # a backup that reads meanwhile is not waited for
    db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    db.execute(f"PRAGMA busy_timeout={BUSY_S * 1_000}")


def explain_damage(error: BaseException, path: Path) -> OncueError:
    """Translate an error of an open log. After damage the next start checks it."""
    if is_damage(error):
        with contextlib.suppress(OSError):
            path.with_name(SUSPECT).touch()
    return explain(error, path)


def explain(error: BaseException, path: Path) -> OncueError:
    """Translate an error of SQLite into an OncueError with a remedy."""
    if isinstance(error, OncueError):
        return error
    if is_disk_full(error, path.parent):
        return DiskFull(
            f"the disk that holds {path.parent} is full",
            remedy="free some space there: oncue goes on by itself; or shorten the retention of topics",
            folder=str(path.parent),
        )
    name = getattr(error, "sqlite_errorname", "") or ""
    if name and is_read_only(path.parent):
        return LogError(
            f"the disk that holds {path.parent} is read-only: {error}",
            remedy="check the disk (dmesg), make it writable (mount -o remount,rw), then restart oncue",
            folder=str(path.parent),
        )
    if is_damage(error):
        return LogError(
            f"the log {path} is damaged: {error}",
            remedy="restart oncue: it copies what is readable into a new file; a backup has more: oncue restore DIR",
            folder=str(path.parent),
        )
    if name in ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM") or isinstance(error, PermissionError):
        return LogError(
            f"the log {path} cannot be opened for writing: {error}",
            remedy="check owner and permissions of the data folder",
        )
    if name == "SQLITE_TOOBIG" or isinstance(error, (TypeError, ValueError, OverflowError)):
        return LogError(
            f"records that cannot be stored: {error}",
            remedy="values and keys are bytes, and one append is below 900 MB; send larger payloads as blobs",
        )
    return LogError(
        f"the log {path} failed: {error}", remedy="check the disk (dmesg: it may be read-only now), then restart oncue"
    )
