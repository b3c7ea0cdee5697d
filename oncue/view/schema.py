"""Tables of the view, and opening its file.

The view is derived: a file that is damaged or has another schema is moved aside, and rebuilt from
the log.

A task is one row of `task`. Results that did not close it, which most tasks do not have, are in
`attempt`. The indexes of `task` are partial: a task only costs entries for what it is (open,
expiring, failed ...). Consecutive rows with the same call are one row of `span`, which has the
indexes by function, rule, endpoint and owner: these cost per frame, not per task.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
from pathlib import Path

from oncue.disk.space import is_nearly_full
from oncue.errors import DiskFull, OncueError

log = logging.getLogger("oncue.view")

SCHEMA = 3  # a view with another one is rebuilt
KINDS = 1  # incremented when a version adds a kind of record, which older ones skip

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE position (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;

-- texts that many rows share: endpoint ids, function hashes, names, owners, rules
CREATE TABLE word (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE);
CREATE TABLE call (id INTEGER PRIMARY KEY AUTOINCREMENT, raw BLOB NOT NULL UNIQUE);

CREATE TABLE task (
    n INTEGER PRIMARY KEY,                       -- order of arrival in this view
    id BLOB NOT NULL UNIQUE,
    call INTEGER,                                -- null: only a cancel or a start was seen
    endpoint INTEGER,
    -- offset of its record in its endpoint's topic * 65536 + index in the record
    seq INTEGER NOT NULL DEFAULT 0,
    known INTEGER NOT NULL DEFAULT 0,
    state INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 1,
    due_us INTEGER NOT NULL DEFAULT 0,
    expires_us INTEGER NOT NULL DEFAULT 0,
    accepted_us INTEGER NOT NULL DEFAULT 0,
    -- started_us, ended_us, value and output are those of the attempt that closed it
    started_us INTEGER NOT NULL DEFAULT 0,
    ended_us INTEGER NOT NULL DEFAULT 0,
    mark_us INTEGER NOT NULL DEFAULT 0,
    cancel_us INTEGER NOT NULL DEFAULT 0,
    running_attempt INTEGER NOT NULL DEFAULT 0,
    running_us INTEGER NOT NULL DEFAULT 0,
    cancel_by TEXT,
    event_source TEXT,
    event_id TEXT,
    retry_of BLOB,
    args BLOB,
    value BLOB,
    output BLOB
);
CREATE INDEX task_open ON task (endpoint, seq) WHERE state = 0 AND known = 1;
CREATE INDEX task_expiring ON task (expires_us) WHERE state = 0 AND expires_us > 0;
CREATE INDEX task_cancelling ON task (cancel_us) WHERE state = 0 AND cancel_us > 0;
CREATE INDEX task_odd ON task (state) WHERE state > 1;
CREATE INDEX task_caused ON task (event_source, event_id) WHERE event_id IS NOT NULL;

-- ends that did not close their task: retried, or superseded; `pos` is the index in
-- TaskState.attempts
CREATE TABLE attempt (
    id BLOB NOT NULL, pos INTEGER NOT NULL, n INTEGER NOT NULL, status INTEGER NOT NULL,
    started_us INTEGER NOT NULL, ended_us INTEGER NOT NULL,
    value BLOB NOT NULL, output BLOB NOT NULL, superseded INTEGER NOT NULL,
    PRIMARY KEY (id, pos)
) WITHOUT ROWID;

-- rows first ... last of `task` have this call; accepted_us is that of the newest
CREATE TABLE span (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL,
    call INTEGER NOT NULL, accepted_us INTEGER NOT NULL,
    endpoint INTEGER, function INTEGER, name INTEGER, owner INTEGER, rule INTEGER
);
CREATE INDEX span_call ON span (call);
CREATE INDEX span_accepted ON span (accepted_us, first);
CREATE INDEX span_endpoint ON span (endpoint);
CREATE INDEX span_function ON span (function);
CREATE INDEX span_name ON span (name);
CREATE INDEX span_owner ON span (owner);
CREATE INDEX span_rule ON span (rule) WHERE rule IS NOT NULL;

CREATE TABLE output (
    id BLOB PRIMARY KEY, attempt INTEGER NOT NULL, next INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    text BLOB NOT NULL
);
CREATE TABLE usage (
    endpoint TEXT PRIMARY KEY, at_us INTEGER NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
-- by partition of oncue.control: the newest claim, and the epoch below which owners' own ends
-- do not count
CREATE TABLE claim (partition INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, record BLOB NOT NULL);
CREATE TABLE fence (
    partition INTEGER PRIMARY KEY, partitions INTEGER NOT NULL, epoch INTEGER NOT NULL
);

CREATE TABLE event (
    n INTEGER PRIMARY KEY, place INTEGER NOT NULL UNIQUE,
    type TEXT NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
    at_ms INTEGER NOT NULL, value BLOB NOT NULL, headers BLOB
);
CREATE INDEX event_type ON event (type);
CREATE INDEX event_source ON event (source);

CREATE TABLE function (
    pos INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL,
    version INTEGER NOT NULL, id TEXT NOT NULL,
    key BLOB NOT NULL, record BLOB NOT NULL, body BLOB NOT NULL, UNIQUE (owner, name, id)
);
CREATE INDEX function_id ON function (id);
CREATE INDEX function_name ON function (name);
CREATE INDEX function_key ON function (key);
CREATE TABLE endpoint (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, pos INTEGER NOT NULL,
    key BLOB NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX endpoint_name ON endpoint (name);
CREATE TABLE deployment (
    label TEXT NOT NULL, pos INTEGER NOT NULL, key BLOB NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (label, pos)
) WITHOUT ROWID;
CREATE TABLE switch (
    rule TEXT PRIMARY KEY, pos INTEGER NOT NULL, key BLOB NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE token (
    id TEXT PRIMARY KEY, hash TEXT NOT NULL, pos INTEGER NOT NULL,
    key BLOB NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX token_hash ON token (hash);

CREATE TABLE dead (
    id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, owner TEXT NOT NULL, record BLOB NOT NULL,
    settled BLOB  -- the newest Resolution record; null: the letter is open
);
CREATE INDEX dead_open ON dead (id) WHERE settled IS NULL;
CREATE INDEX dead_owner ON dead (owner);
CREATE INDEX dead_owner_open ON dead (owner) WHERE settled IS NULL;
-- letters returned by apply() and not seen in oncue.dead yet: returned again after a crash
CREATE TABLE unburied (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, letter BLOB NOT NULL,
    PRIMARY KEY (topic, partition, offset)
) WITHOUT ROWID;
-- records of a kind that this version does not know
CREATE TABLE skipped (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    kind TEXT NOT NULL, kinds INTEGER NOT NULL,
    record BLOB NOT NULL, PRIMARY KEY (topic, partition, offset)
) WITHOUT ROWID;
"""

# The last applied record of each partition: the log must still have the same one. Not in TABLES,
# because views of earlier versions lack it.
LAST_RECORDS = """
CREATE TABLE IF NOT EXISTS last_record (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID
"""

# What tasks have used, and where they ran. Views of earlier versions lack these, too.
USAGE = (
    "CREATE TABLE IF NOT EXISTS task_worker (id BLOB NOT NULL, n INTEGER NOT NULL, worker TEXT NOT NULL,"
    " PRIMARY KEY (id, n)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS task_usage (id BLOB NOT NULL, n INTEGER NOT NULL, cpu_us INTEGER NOT NULL,"
    " peak_bytes INTEGER NOT NULL, PRIMARY KEY (id, n)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rule_usage (hour INTEGER NOT NULL, rule TEXT NOT NULL, owner TEXT NOT NULL,"
    " attempts INTEGER NOT NULL, worker_us INTEGER NOT NULL, node_us INTEGER NOT NULL, cpu_us INTEGER NOT NULL,"
    " peak_bytes INTEGER NOT NULL, PRIMARY KEY (hour, rule, owner)) WITHOUT ROWID",
)

# Events of windows beside the first one, which the task names; `event`: ids.event_digest.
MEMBERS = (
    "CREATE TABLE IF NOT EXISTS member (event BLOB NOT NULL, task BLOB NOT NULL, PRIMARY KEY (event, task))"
    " WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS member_task ON member (task)",
)

# Dead letters by the events that they are about; `event`: ids.event_digest, or that of a place.
LETTER_EVENTS = (
    "CREATE TABLE IF NOT EXISTS letter_event (event BLOB NOT NULL, letter INTEGER NOT NULL,"
    " PRIMARY KEY (event, letter)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS letter_event_letter ON letter_event (letter)",
    "CREATE TRIGGER IF NOT EXISTS letter_deleted AFTER DELETE ON dead BEGIN"
    " DELETE FROM letter_event WHERE letter = old.id; END",
)

# Indexes that views of earlier versions lack, too. An event's time rises: it is added at the end.
LATER_INDEXES = (
    "CREATE INDEX IF NOT EXISTS task_retried ON task (retry_of) WHERE retry_of IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS event_at ON event (at_ms)",
)
# Priority of tasks: by far the most have the normal one, 0, which costs no entry. Views of earlier
# versions lack the column; theirs are all normal.
PRIORITY_COLUMN = "ALTER TABLE task ADD COLUMN priority INTEGER NOT NULL DEFAULT 0"
PRIORITY_INDEX = (
    "CREATE INDEX IF NOT EXISTS task_priority ON task (endpoint, priority, seq)"
    " WHERE state = 0 AND known = 1 AND priority <> 0"
)
# Made when a chain of tasks is followed back for the first time: it costs half as much as the rows.
EVENT_KEYS = "CREATE INDEX IF NOT EXISTS event_key ON event (id, source)"
# Spans of rows below this one may be longer than spans.SPAN_US: earlier versions made them.
BOUNDED_SPANS = "INSERT OR IGNORE INTO meta VALUES ('bounded_spans', (SELECT ifnull(max(n), 0) + 1 FROM task))"


class ViewError(OncueError):
    """The server's view (its query database) could not be read or written.

    It is derived from the log: nothing is lost, and a damaged view is rebuilt at the next start.
    """

    code = "view"


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the view for its only writer; create it if needed. Raises ViewError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (why := _unusable(path)):
            log.warning("the view %s %s; it is moved aside and rebuilt from the log", path, why)
            move_aside(path)
        db = _connect(path)
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            _create(db)
        for text in (LAST_RECORDS, *USAGE, *MEMBERS, *LETTER_EVENTS, *LATER_INDEXES, BOUNDED_SPANS):
            db.execute(text)
        if not any(column[1] == "priority" for column in db.execute("PRAGMA table_info(task)").fetchall()):
            db.execute(PRIORITY_COLUMN)
        db.execute(PRIORITY_INDEX)
        return db
    except (sqlite3.Error, OSError) as e:
        if is_nearly_full(path.parent):
            raise DiskFull(f"the disk that holds the view {path} is full: {e}", remedy="free some space there") from e
        raise ViewError(
            f"the view {path} cannot be opened: {e}", remedy="check that folder's space and permissions"
        ) from e


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # lost changes are read from the log again
        db.execute("PRAGMA cache_size = -16384")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA busy_timeout = 10000")
    except BaseException:
        db.close()
        raise
    return db


def _create(db: sqlite3.Connection) -> None:
    """Create all tables in one transaction.

    A crash leaves user_version 0 and no table.
    """
    db.executescript(
        f"BEGIN; {TABLES} INSERT INTO meta VALUES ('tag', '{secrets.token_hex(4)}');"
        f" PRAGMA user_version = {SCHEMA}; COMMIT;"
    )


def _unusable(path: Path) -> str:
    """Return why the file cannot be used; "" if it can."""
    if _mark(path).exists():
        return "was found damaged"
    try:
        db = _connect(path)
    except sqlite3.DatabaseError as e:
        return f"is damaged ({e})"
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            return f"has schema {version}, this version has {SCHEMA}"
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if version == 0:
            return "is not a view" if tables else ""
        for table in ("meta", "position", "task", "call", "span"):
            db.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
        return ""
    except sqlite3.OperationalError as e:
        if "locked" in str(e):
            raise
        return f"is damaged ({e})"
    except sqlite3.DatabaseError as e:
        return f"is damaged ({e})"
    finally:
        db.close()


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def mark_damaged(path: Path) -> None:
    """Make the next open rebuild the view."""
    with contextlib.suppress(OSError):
        _mark(path).touch()


def move_aside(path: Path) -> None:
    """Rename the old file, to be inspected; only the last one is kept.

    The damage mark is removed last, so that a crash repeats this.
    """
    for end in ("-wal", "-shm", ""):
        part = path.with_name(path.name + end)
        if part.exists():
            os.replace(part, path.with_name(path.name + ".aside" + end))
    _mark(path).unlink(missing_ok=True)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute("PRAGMA busy_timeout = 10000")
    db.execute("PRAGMA temp_store = MEMORY")
    return db
