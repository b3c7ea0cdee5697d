"""SQLite file of a history, with the progress of reading each list."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlite_utils import Database
from sqlite_utils.db import Table as StoredTable

from oncue.errors import Conflict, Invalid, OncueError
from oncue.history.rows import Row, time_us
from oncue.history.schema import SCHEMA, TABLES, Table

PROGRESS = "export_progress"
TIMEOUT_S = 60.0  # wait for another writer of the file


class HistoryError(OncueError):
    """A history file could not be read or written. The server has what was in it."""

    code = "history"


class Progress(msgspec.Struct, kw_only=True):
    """Progress of reading a list of the server.

    Everything until `done_us` is in the file. A list is read newest first. An interval that
    was begun has a cursor of its next page.
    """

    done_us: int = 0
    since_us: int = 0  # the interval that was begun
    top_us: int = 0  # newest item seen in it
    cursor: str = ""
    server: str = ""  # which gave the cursor; "": no interval was begun


class HistoryFile:
    """A history in a SQLite file."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises Invalid, HistoryError."""
        self.path = path
        try:
            _create_private(path)
            self._connection = sqlite3.connect(path, timeout=TIMEOUT_S)
            self._db = Database(self._connection)
            self._prepare()
        except (sqlite3.Error, OSError) as e:
            raise HistoryError(f"{path} cannot be opened: {e}", remedy="name another file, or delete this one") from e

    def close(self) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA:
            return
        tables = set(self._db.table_names())
        if version == 0 and tables and PROGRESS not in tables:
            raise Invalid(f"{self.path} is a database of something else", remedy="name another file")
        if version != 0:
            raise Invalid(
                f"{self.path} has schema {version}, this version of oncue writes {SCHEMA}",
                remedy="export to a new file",
            )
        # Each step may be repeated, and the version is set by the last one: a crash does no harm.
        self._table(PROGRESS).create({"list": str, "state": str}, pk="list", if_not_exists=True)
        for name, table in TABLES.items():
            self._create(name, table)
        self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _create(self, name: str, table: Table) -> None:
        made = self._table(name)
        made.create(
            dict(table.columns),
            pk=table.key[0] if len(table.key) == 1 else table.key,
            foreign_keys=[(column, other, key) for column, (other, key) in table.references.items()],
            if_not_exists=True,
            strict=True,
        )
        for column in table.indexes:
            made.create_index([column], if_not_exists=True)
        if table.searched:
            made.enable_fts(table.searched, create_triggers=True, tokenize="unicode61", replace=True)

    def _table(self, name: str) -> StoredTable:
        found = self._db[name]
        assert isinstance(found, StoredTable)
        return found

    # ------------------------------------------------------------ writing

    def write(self, rows: dict[str, list[Row]], name: str, progress: Progress) -> None:
        """Store a page: its rows, and how far the list was read, in one transaction.

        Raises HistoryError.
        """
        try:
            with self._db.atomic():
                for table, found in rows.items():
                    self.store(table, found)
                text = msgspec.json.encode(progress).decode()
                self._table(PROGRESS).upsert({"list": name, "state": text}, pk="list")
        except (sqlite3.Error, OSError) as e:
            raise HistoryError(
                f"{self.path} cannot be written: {e}", remedy="make room, or close what uses it; then export again"
            ) from e

    def store(self, table: str, rows: Sequence[Row]) -> None:
        if rows:
            if table == "tasks":
                self._name_rules({row["rule"] for row in rows if row["rule"]})
            key = TABLES[table].key
            self._table(table).upsert_all(rows, pk=key[0] if len(key) == 1 else key)

    def progress(self, name: str) -> Progress:
        row = self._connection.execute(f"SELECT state FROM {PROGRESS} WHERE list = ?", (name,)).fetchone()
        return msgspec.json.decode(row[0], type=Progress) if row else Progress()

    def mark_forgotten(self, task: str) -> None:
        """Note that the server does not have a task any more that was open."""
        with self._db.atomic():
            self._connection.execute("UPDATE tasks SET forgotten = 1 WHERE id = ?", (task,))

    def replace_rules(self, rules: Sequence[Row]) -> None:
        """Store the rules that are deployed; the others of the file are removed ones."""
        with self._db.atomic():
            self._connection.execute("UPDATE rules SET state = 'removed'")
            self.store("rules", rules)

    def _name_rules(self, names: Iterable[str]) -> None:
        """Give rules that tasks name, and that are not deployed any more, a row."""
        given = [(name,) for name in names]
        self._connection.executemany("INSERT OR IGNORE INTO rules (name, state) VALUES (?, 'removed')", given)

    # ------------------------------------------------------------ reading

    def open_tasks(self, most: int) -> list[str]:
        """Return up to `most` tasks that were open when they were read."""
        text = "SELECT id FROM tasks WHERE closed = 0 AND forgotten = 0 LIMIT ?"
        return [task for (task,) in self._connection.execute(text, (most,))]

    def oldest_open_us(self) -> int:
        """Return when the oldest task was accepted that was open, 0 if none was."""
        text = "SELECT min(accepted_at) FROM tasks WHERE closed = 0 AND forgotten = 0"
        found = self._connection.execute(text).fetchone()[0]
        return time_us(found) if found else 0

    def events_of(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Return the offsets of events by source and id; the first of those told twice."""
        found: dict[tuple[str, str], int] = {}
        text = "SELECT min(offset) FROM events WHERE id = ? AND source = ?"
        for source, event_id in set(keys):
            offset = self._connection.execute(text, (event_id, source)).fetchone()[0]
            if offset is not None:
                found[source, event_id] = offset
        return found

    def check_same_log(self, rows: Sequence[Row]) -> None:
        """Raise Conflict if the file has another event at the offset of one of these."""
        for row in rows:
            text = "SELECT source, id FROM events WHERE offset = ?"
            stored = self._connection.execute(text, (row["offset"],)).fetchone()
            if stored is not None and stored != (row["source"], row["id"]):
                raise Conflict(
                    f"{self.path} is the history of another server: event {row['offset']} is"
                    f" {stored[1]!r} of {stored[0]} there, and {row['id']!r} of {row['source']} here",
                    remedy="export to another file",
                )

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        count: dict[str, Any] = {n: self._connection.execute(f"SELECT count(*) FROM {n}").fetchone()[0] for n in TABLES}
        return count


def _create_private(path: Path) -> None:
    """Create the file with mode 600: it has arguments, values and texts of users."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
