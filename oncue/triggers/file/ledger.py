"""Ledger: the durable record of which state of which file has fired.

    store_pending(batch) ──► emit (elsewhere) ──► complete(batch)

With it no file is missed while oncue is down, and none fires twice. A batch's events are stored
before they are published; if the process dies in between, the same events are published again.

One SQLite file, one writer: the watcher's thread. The lock is exclusive and held, so that a second
oncue on the same folder is refused, and the write-ahead log needs no shared memory. Writes are not
synced one by one: they survive the process at once, and after a power cut the files' own facts give
the same event ids again. Only the end of the initial scan is synced: nothing else records which
files existed before.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from oncue.disk.durable_files import sync_folder
from oncue.errors import Conflict, LogError
from oncue.protocol.records import Event
from oncue.triggers.file.stability import FileKey, Fingerprint

#: Published; existed before the trigger; skipped by `ready`, or its event was refused.
FIRED, EXISTING, SKIPPED_FILE = range(3)
PART = 2_000  # rows in one part
KEEP_GONE = 1_000_000  # most files that are gone and still recorded
ANY_INODE = 0  # the row is another machine's, which may see another inode number
KEEP_GONE_US = 30 * 86_400 * 1_000_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (  -- the last handled state of each file
    folder TEXT NOT NULL, name TEXT NOT NULL,
    state INTEGER NOT NULL,          -- 0 fired, 1 existed, 2 skipped
    ino INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    gone_us INTEGER NOT NULL DEFAULT 0,  -- when a scan first missed it
    ctime_ns INTEGER NOT NULL DEFAULT 0,  -- 0: not known (of an older version, or of another machine)
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS gone ON files (gone_us) WHERE gone_us > 0;
CREATE TABLE IF NOT EXISTS pending (batch INTEGER PRIMARY KEY, body BLOB NOT NULL);  -- msgpack: rows, events
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_ADD = """
INSERT INTO files (folder, name, state, ino, size, mtime_ns, at_us, ctime_ns)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[6]'), json_extract(value, '$[7]') FROM json_each(?) WHERE true
ON CONFLICT (folder, name) DO """
_STORE = (
    _ADD
    + """UPDATE SET state = excluded.state, ino = excluded.ino, size = excluded.size, mtime_ns = excluded.mtime_ns,
       at_us = excluded.at_us, ctime_ns = excluded.ctime_ns, gone_us = 0"""
)
_STORE_UNKNOWN = _ADD + "NOTHING RETURNING folder, name"
_STORE_NEWER = _STORE + " WHERE excluded.at_us > files.at_us"
_THESE = """(folder, name) IN
(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"""
_ROW = "folder, name, state, ino, size, mtime_ns, at_us, ctime_ns"  # a FileRow
_STATE = "state, ino, size, mtime_ns, at_us, gone_us, ctime_ns"  # of a KnownFile: see _found
_FIND = f"SELECT {_STATE} FROM files WHERE folder = ? AND name = ?"
_FIND_MANY = f"""
SELECT folder, name, {_STATE} FROM json_each(?) AS wanted
JOIN files AS f ON f.folder = json_extract(wanted.value, '$[0]') AND f.name = json_extract(wanted.value, '$[1]')
"""


class FileRow(NamedTuple):
    """The ledger's row of one file."""

    folder: str
    name: str
    state: int
    ino: int
    size: int
    mtime_ns: int
    at_us: int
    ctime_ns: int = 0


class KnownFile(NamedTuple):
    """The ledger's entry of a file, as `find` and `listing` return it."""

    state: int
    seen: Fingerprint
    at_us: int
    gone_us: int
    ctime_ns: int = 0

    def is_same(self, seen: Fingerprint) -> bool:
        """Return True if this is the recorded state."""
        return self.seen == seen or (self.seen.ino == ANY_INODE and self.seen[1:] == seen[1:])


def known_file(row: FileRow) -> KnownFile:
    """Return the entry that the row becomes."""
    return KnownFile(row.state, Fingerprint(row.ino, row.size, row.mtime_ns), row.at_us, 0, row.ctime_ns)


class LedgerListener(Protocol):
    """Gets each change of the ledger, in order, in the ledger's thread."""

    def rows(self, rows: Sequence[FileRow]) -> None: ...

    def forgotten(self, keys: Sequence[FileKey]) -> None: ...

    def meta(self, values: Mapping[str, str]) -> None: ...


class PendingBatch(msgspec.Struct, frozen=True, array_like=True):
    """A batch that is being published."""

    rows: list[FileRow]
    events: list[Event]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PendingBatch).decode
_json = msgspec.json.Encoder().encode


class Ledger:
    """Methods raise sqlite3.Error (full disk ...); a failed call stores nothing."""

    def __init__(self, path: Path, listener: LedgerListener | None = None) -> None:
        """Open the file.

        Raises Conflict if another process has it open, LogError if it is damaged.
        """
        self._path, self._listener = path, listener
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=False)
        try:
            self._db.executescript(
                "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
                "PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY;" + _SCHEMA
            )
            self._add_ctime()
        except sqlite3.OperationalError as e:
            self._db.close()
            if "locked" not in str(e):
                raise
            raise Conflict(
                f"the ledger {path} is in use by another process",
                remedy="only one oncue at a time may watch with this data folder: stop the other one",
            ) from None
        except sqlite3.DatabaseError as e:
            self._db.close()
            raise LogError(
                f"the ledger {path} is damaged: {e}",
                remedy="move it away: the trigger then starts anew, and the files in its folder count as existing",
            ) from None

    def _add_ctime(self) -> None:
        """Add the column that ledgers of older versions lack."""
        if not any(column[1] == "ctime_ns" for column in self._db.execute("PRAGMA table_info(files)")):
            self._db.execute("ALTER TABLE files ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0")

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------ batches

    def store_pending(self, batch: int, pending: PendingBatch) -> None:
        self._db.execute("INSERT INTO pending VALUES (?, ?)", (batch, _encode(pending)))

    def complete(self, batch: int, rows: Sequence[FileRow]) -> None:
        """Record a published batch.

        In `rows`, events that were refused have the state SKIPPED_FILE.
        """
        with self._transaction():
            self._db.execute("DELETE FROM pending WHERE batch = ?", (batch,))
            self._db.execute(_STORE, (_text(rows),))
        if self._listener:
            self._listener.rows(rows)

    def pending(self) -> list[tuple[int, PendingBatch]]:
        """Return the batches that an earlier process did not complete, oldest first."""
        rows = self._db.execute("SELECT batch, body FROM pending ORDER BY batch").fetchall()
        return [(batch, _decode(body)) for batch, body in rows]

    # ------------------------------------------------------------ files

    def store(self, rows: Sequence[FileRow]) -> None:
        if rows:
            self._db.execute(_STORE, (_text(rows),))
            if self._listener:
                self._listener.rows(rows)

    def store_unknown(self, rows: Sequence[FileRow]) -> int:
        """Store the rows of files not recorded yet; return their number."""
        stored = set(self._db.execute(_STORE_UNKNOWN, (_text(rows),)).fetchall()) if rows else set()
        if stored and self._listener:
            self._listener.rows([row for row in rows if row[:2] in stored])
        return len(stored)

    def find(self, keys: Sequence[FileKey]) -> dict[FileKey, KnownFile]:
        """Return the entries of these files; unknown files have none."""
        if len(keys) == 1:
            one = self._db.execute(_FIND, keys[0]).fetchone()
            return {keys[0]: _found(*one)} if one else {}
        return {(f, n): _found(*rest) for f, n, *rest in self._db.execute(_FIND_MANY, (_text(keys),)).fetchall()}

    def index_inodes(self) -> None:
        """Make `same_content` fast."""
        self._db.execute("CREATE INDEX IF NOT EXISTS inodes ON files (ino)")

    def same_content(self, seen: Fingerprint, key: FileKey) -> tuple[FileKey, KnownFile] | None:
        """Return a file under another name that fired, or existed, with this fingerprint."""
        found = self._db.execute(
            f"SELECT folder, name, {_STATE} FROM files"
            " WHERE ino = ? AND size = ? AND mtime_ns = ? AND state != ? AND (folder, name) != (?, ?) LIMIT 1",
            (*seen, SKIPPED_FILE, *key),
        ).fetchone()
        return ((found[0], found[1]), _found(*found[2:])) if found else None

    def listing(self, folder: str) -> dict[str, KnownFile]:
        """Return the entries of one folder, by name."""
        rows = self._db.execute(f"SELECT name, {_STATE} FROM files WHERE folder = ?", (folder,)).fetchall()
        return {name: _found(*rest) for name, *rest in rows}

    def page(self, after: FileKey | None, count: int) -> list[FileRow]:
        """Return the next rows of files that are not gone, ordered by key."""
        found = self._db.execute(
            f"SELECT {_ROW} FROM files"
            f" WHERE gone_us = 0 {'AND (folder, name) > (?, ?)' if after else ''} ORDER BY folder, name LIMIT ?",
            (*(after or ()), count),
        )
        return [FileRow(*row) for row in found.fetchall()]

    def forget(self, keys: Sequence[FileKey]) -> None:
        """Delete these rows: the next scan finds the files as new ones."""
        self._db.execute(f"DELETE FROM files WHERE {_THESE}", (_text(keys),))
        if self._listener:
            self._listener.forgotten(keys)

    def folders(self) -> list[str]:
        return [f for (f,) in self._db.execute("SELECT DISTINCT folder FROM files WHERE gone_us = 0").fetchall()]

    def mark_gone(self, keys: Iterable[FileKey], at_us: int) -> None:
        """Mark files that a scan missed.

        They stay recorded: an unmounted disk may come back with them.
        """
        self._db.execute(f"UPDATE files SET gone_us = ? WHERE gone_us = 0 AND {_THESE}", (at_us, _text(list(keys))))

    def mark_folder_gone(self, folder: str, at_us: int) -> None:
        self._db.execute("UPDATE files SET gone_us = ? WHERE folder = ? AND gone_us = 0", (at_us, folder))

    def mark_present(self, keys: Iterable[FileKey]) -> None:
        """Clear the mark of files that are back, unchanged."""
        self._db.execute(f"UPDATE files SET gone_us = 0 WHERE {_THESE}", (_text(list(keys)),))

    def prune(self, now_us: int, keep: int = KEEP_GONE) -> None:
        """Delete files gone for KEEP_GONE_US, and the oldest beyond `keep`."""
        limit = self._db.execute(
            "SELECT gone_us FROM files WHERE gone_us > 0 ORDER BY gone_us DESC LIMIT 1 OFFSET ?", (keep,)
        ).fetchone()
        before = max(now_us - KEEP_GONE_US, limit[0] if limit else 0)
        keys = self._db.execute(
            "DELETE FROM files WHERE gone_us > 0 AND gone_us <= ? RETURNING folder, name", (before,)
        ).fetchall()
        if keys and self._listener:
            self._listener.forgotten(keys)

    def count(self, state: int | None = None) -> int:
        """Return the number of files recorded (in this state)."""
        which = "" if state is None else "WHERE state = ?"
        return int(self._db.execute(f"SELECT count(*) FROM files {which}", (state,) * bool(which)).fetchone()[0])

    # ------------------------------------------------------------ replication

    def merge(self, rows: Sequence[FileRow], forgotten: Sequence[FileKey], meta: Mapping[str, str]) -> None:
        """Store the newer of these rows, without a call to the listener.

        `meta` must be the newest.
        """
        with self._transaction():
            self._db.execute(_STORE_NEWER, (_text(rows),))
            self._db.execute(f"DELETE FROM files WHERE {_THESE}", (_text(forgotten),))
            self._set_meta(meta)

    def all_rows(self) -> Iterator[list[FileRow]]:
        """Iterate over all rows, in parts."""
        found = self._db.execute(f"SELECT {_ROW} FROM files")
        while part := found.fetchmany(PART):
            yield [FileRow(*row) for row in part]

    # ------------------------------------------------------------ meta

    def meta(self, key: str) -> str:
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(found[0]) if found else ""

    def set_meta(self, **values: str) -> None:
        self._set_meta(values)
        if self._listener:
            self._listener.meta(values)

    def _set_meta(self, values: Mapping[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def commit_meta(self, **values: str) -> None:
        """Set these and sync all that was stored so far: it survives a power cut."""
        # In WAL mode: fsync of the whole log at the end of a transaction.
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            with self._transaction():
                self.set_meta(**values)
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")
        for folder in (self._path.parent, self._path.parent.parent):  # they may be new
            sync_folder(folder)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def forget_fired_since(path: Path, since_us: int) -> int:
    """Delete the rows of files that fired since then; return their number.

    The ledger must not be open. A file without a row is new to the next scan.
    Raises sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=1.0)) as db:
        return db.execute("DELETE FROM files WHERE state = ? AND at_us >= ?", (FIRED, since_us)).rowcount


def _found(state: int, ino: int, size: int, mtime_ns: int, at_us: int, gone_us: int, ctime_ns: int) -> KnownFile:
    return KnownFile(state, Fingerprint(ino, size, mtime_ns), at_us, gone_us, ctime_ns)


def _text(rows: Sequence[object]) -> str:
    return _json(rows).decode()
