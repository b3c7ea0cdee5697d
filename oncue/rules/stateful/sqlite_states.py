"""SqliteStates: state store of the embedded runner, in `windows.db` (SQLite).

part    next offset to apply per partition of `oncue.matches`, and the newest time in it
state   one row per key of an operator (OperatorState)
item    one row per buffered event, so that a large window is not rewritten for each event

States and offsets are written in one transaction. Nothing is cached, so a million keys cost only
disk. A group of batches is folded over the states that it touches (`fold_batches`), and stored once
its firings are durable (`store`). Commits are not synced: after a crash of the machine the file is
at an older commit with its offsets, and the log has the records since.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from oncue.disk.sqlite_errors import is_damage
from oncue.errors import LogError, OncueError, Undecodable
from oncue.log.base import RecordBatch
from oncue.log.sqlite.database import explain
from oncue.protocol.codec import decode, encode
from oncue.rules.limiters.base import LimiterState
from oncue.rules.limiters.catalog import MEMBERS as LIMITERS
from oncue.rules.operators.base import OperatorState
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.operators.records import BufferedEvent, Match
from oncue.rules.stateful.changelog_states import ITEM, STATE, Change
from oncue.rules.stateful.fold import AHEAD_MS, MARGIN_MS, StateKey, by_clock
from oncue.rules.stateful.limits import all_state_keys
from oncue.rules.stateful.pending_changes import PendingChanges, event_key
from oncue.rules.stateful.record_group import MOST_QUEUES, Progress, Queue, RecordGroup, WindowSummary

APPLICATION_ID = 0x6F6E6377  # "oncw"
SCHEMA = 2
FORGET_ROWS = 2_000  # in one transaction
ASKED = 500  # keys in one query

TABLES = """
CREATE TABLE part(part INTEGER PRIMARY KEY, next INTEGER NOT NULL, newest_ms INTEGER NOT NULL);
CREATE TABLE state(
  id TEXT PRIMARY KEY, part INTEGER NOT NULL,
  rule TEXT NOT NULL, spec TEXT NOT NULL, key TEXT NOT NULL,
  applied INTEGER NOT NULL, held INTEGER NOT NULL,
  due_ms INTEGER NOT NULL, forget_ms INTEGER NOT NULL,
  state BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX state_due ON state(part, due_ms) WHERE due_ms > 0;
CREATE INDEX state_open ON state(part, rule, spec, key) WHERE held > 0;
CREATE INDEX state_forget ON state(part, forget_ms) WHERE forget_ms > 0;
CREATE TABLE item(
  id TEXT NOT NULL, event TEXT NOT NULL, place INTEGER NOT NULL, held BLOB NOT NULL,
  PRIMARY KEY(id, event)) WITHOUT ROWID;
"""
PUT = "INSERT OR REPLACE INTO state VALUES (?,?,?,?,?,?,?,?,?,?)"
GET = "SELECT id, state FROM state WHERE id IN (SELECT value FROM json_each(?))"
HAVE = """SELECT item.id, item.event FROM json_each(?) j JOIN item
 ON item.id = json_extract(j.value, '$[0]') AND item.event = json_extract(j.value, '$[1]')"""
DUE = """SELECT due_ms, rule, spec, key FROM state
 WHERE part = ? AND due_ms > 0 AND due_ms <= ? AND applied < ?
 ORDER BY due_ms, rule, spec, key LIMIT ?"""
OPEN = """SELECT key FROM state WHERE part = ? AND rule = ? AND spec = ? AND held > 0 AND applied < ?
 ORDER BY key LIMIT ?"""
# Ids of limiters' states begin with it; hexadecimal digits are less.
OF_LIMITER = "q"
QUEUE_INDEX = "CREATE INDEX IF NOT EXISTS item_queue ON item(id, place, event) WHERE id >= 'q'"
OLDEST = "SELECT held FROM item WHERE id = ? AND id >= 'q' ORDER BY place, event LIMIT 1 OFFSET ?"
QUEUES = """SELECT key, state FROM state INDEXED BY state_open
 WHERE part = ? AND rule = ? AND spec = ? AND held > 0 ORDER BY key LIMIT ?"""
LATER = "SELECT rule, spec, key, state FROM state WHERE part = ? AND max(due_ms, forget_ms) > ?"
NEXT_DUE = "SELECT min(due_ms) FROM state WHERE part = ? AND due_ms > 0"
FORGET = """DELETE FROM state WHERE id IN
 (SELECT id FROM state WHERE part = ? AND forget_ms > 0 AND forget_ms < ? LIMIT ?)"""

P = ParamSpec("P")
T = TypeVar("T")


def _explained(method: Callable[Concatenate[SqliteStates, P], T]) -> Callable[Concatenate[SqliteStates, P], T]:
    """Let a method raise LogError or DiskFull for what SQLite raises."""

    @wraps(method)
    def explained(store: SqliteStates, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(store, *args, **kwargs)
        except (sqlite3.Error, Undecodable) as e:
            raise store.explain(e) from e

    return explained


class SqliteStates:
    """State store in SQLite, used by one thread at a time.

    Raises LogError or DiskFull.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            self._prepare()
            rows = self._db.execute("SELECT part, next, newest_ms FROM part").fetchall()
        except sqlite3.Error as e:
            raise self.explain(e) from e
        self.parts: dict[int, Progress] = {part: Progress(*rest) for part, *rest in rows}

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA secure_delete=OFF")
        owner, version = (db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("application_id", "user_version"))
        if not owner and not version:
            marks = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA};"
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} {marks} COMMIT;")
        elif owner != APPLICATION_ID or version > SCHEMA:
            raise LogError(f"{self._path} is not of this oncue", remedy="upgrade oncue, or move the file away")
        elif version < SCHEMA:
            self._upgrade()
        db.execute(QUEUE_INDEX)

    def _upgrade(self) -> None:
        """Upgrade from version 1, in which a key had the same id in all partitions."""
        db = self._db
        rows = db.execute("SELECT id, part, rule, spec, key FROM state").fetchall()
        ids = [(_id(part, StateKey(*where)), old) for old, part, *where in rows]
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany("UPDATE state SET id = ? WHERE id = ?", ids)
            db.executemany("UPDATE item SET id = ? WHERE id = ?", ids)
            db.execute(f"PRAGMA user_version={SCHEMA}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def explain(self, e: Exception) -> OncueError:
        """Return the error for one of SQLite or of a stored state."""
        if is_damage(e) or isinstance(e, Undecodable):
            return LogError(
                f"the windows of rules ({self._path}) are damaged: {e}",
                remedy="stop oncue and move the file away: it is made again from the log (docs/rules.md, dedupe and batch)",
            )
        return explain(e, self._path)

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------ folding

    @_explained
    def fold_batches(self, batches: Sequence[RecordBatch]) -> RecordGroup:
        """Fold batches into a group.

        The file is unchanged: firings have to be durable first.
        """
        group = SqliteRecordGroup()
        for batch in batches:
            part = batch.partition
            states = group.parts.setdefault(part, SqliteChanges(self._db, part))
            group.add(batch, states, self.parts.get(part, Progress()), states.prefetch)
        return group

    @_explained
    def store(self, group: RecordGroup) -> None:
        """Write the group's changes and offsets in one transaction."""
        assert isinstance(group, SqliteRecordGroup)
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for states in group.parts.values():
                states.write()
            rows = [(part, following, newest) for part, (following, newest) in group.next.items()]
            db.executemany("INSERT OR REPLACE INTO part VALUES (?,?,?)", rows)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.parts |= group.next

    @_explained
    def follow_clock(self, now_ms: int) -> int:
        """Move states from the future to now; return their number.

        Done at the start, if the newest record has a later time than a new one would get.
        """
        moved = 0
        for part, (following, newest_ms) in list(self.parts.items()):
            if newest_ms <= now_ms + AHEAD_MS:
                continue
            changes = SqliteChanges(self._db, part)
            for rule, spec, key, raw in self._db.execute(LATER, (part, now_ms)).fetchall():
                state = by_clock(CATALOGUE.decode_state(raw), now_ms)
                if state is not None:
                    changes.changed[StateKey(rule, spec, key)] = state
            group = SqliteRecordGroup()
            group.parts[part], group.next[part] = changes, Progress(following, now_ms)
            self.store(group)
            moved += len(changes.changed)
        return moved

    @_explained
    def forget(self) -> int:
        """Delete states without effect; return their number.

        At most FORGET_ROWS per partition.
        """
        return sum(
            self._db.execute(FORGET, (part, newest_ms - MARGIN_MS, FORGET_ROWS)).rowcount
            for part, (_, newest_ms) in self.parts.items()
        )

    @_explained
    def drop(self, part: int) -> int:
        """Delete all states of a partition; return the number of events lost.

        They belong to another log.
        """
        lost: int = self._db.execute("SELECT coalesce(sum(held), 0) FROM state WHERE part = ?", (part,)).fetchone()[0]
        self._db.executescript(
            f"BEGIN; DELETE FROM item WHERE id IN (SELECT id FROM state WHERE part = {part:d});"
            f" DELETE FROM state WHERE part = {part:d}; DELETE FROM part WHERE part = {part:d}; COMMIT;"
        )
        self.parts.pop(part, None)
        return lost

    # ------------------------------------------------------------ to another host (handover.py)

    @_explained
    def entries(self, part: int) -> list[Change]:
        """Return all states of a partition as changelog entries."""
        states = self._db.execute("SELECT rule, spec, key, state FROM state WHERE part = ?", (part,))
        items = self._db.execute(
            "SELECT rule, spec, key, event, item.held FROM item JOIN state USING (id) WHERE part = ?", (part,)
        )
        found: list[Change] = [((ITEM, *key), value) for *key, value in items]
        return found + [((STATE, *key), value) for *key, value in states]

    # ------------------------------------------------------------ queries

    @_explained
    def next_due_ms(self, part: int) -> int:
        return int(self._db.execute(NEXT_DUE, (part,)).fetchone()[0] or 0)

    @_explained
    def open_specs(self) -> set[tuple[int, str, str]]:
        """Return (partition, rule, operator_id) of all open windows."""
        return set(self._db.execute("SELECT DISTINCT part, rule, spec FROM state WHERE held > 0"))

    @_explained
    def summary(self) -> dict[str, WindowSummary]:
        rows = self._db.execute(
            "SELECT rule, count(*), sum(held), coalesce(min(nullif(due_ms, 0)), 0) FROM state WHERE held > 0 GROUP BY rule"
        )
        return {rule: WindowSummary(*rest) for rule, *rest in rows}

    @_explained
    def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]:
        """Return the first queues of a rule's limiters."""
        found: list[Queue] = []
        for part, name in product(self.parts, limiters):
            rows = self._db.execute(QUEUES, (part, rule, name, MOST_QUEUES)).fetchall()
            states = [(StateKey(rule, name, key), CATALOGUE.decode_state(raw)) for key, raw in rows]
            found += [(where, state) for where, state in states if isinstance(state, LimiterState)]
        return found

    @_explained
    def states_of(
        self, part: int, wheres: Sequence[StateKey], source: str, id: str
    ) -> list[tuple[OperatorState | None, bool]]:
        """Return (state, True if its buffer has this event) of each key."""
        states = SqliteChanges(self._db, part)
        return [(states.get(where), states.is_buffered(where, source, id)) for where in wheres]


class SqliteRecordGroup(RecordGroup):
    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[int, SqliteChanges] = {}


class SqliteChanges(PendingChanges):
    """Uncommitted changes over the states of one partition in the file."""

    def __init__(self, db: sqlite3.Connection, part: int) -> None:
        super().__init__()
        self._db, self._part = db, part
        self._read: dict[StateKey, OperatorState | None] = {}
        self._known: dict[tuple[str, str], bool] = {}  # (id, event) -> True if it is in the file

    def prefetch(self, matches: Iterable[Match]) -> None:
        """Load the states and events that the matches touch, in a few queries."""
        wheres: dict[StateKey, None] = {}
        events: dict[tuple[str, str], None] = {}
        for match in matches:
            for where in all_state_keys(match):
                wheres[where] = None
                events[self._id(where), event_key(match.event.source, match.event.id)] = None
        new = {self._id(w): w for w in wheres if w not in self._read}
        for part in _parts(list(new)):
            self._read |= dict.fromkeys(new[id] for id in part)
            for id, state in self._db.execute(GET, (msgspec.json.encode(part).decode(),)):
                self._read[new[id]] = CATALOGUE.decode_state(state)
        for pairs in _parts([e for e in events if e not in self._known]):
            self._known |= dict.fromkeys(pairs, False)
            self._known |= dict.fromkeys(self._db.execute(HAVE, (msgspec.json.encode(pairs).decode(),)), True)

    # ------------------------------------------------------------ what is stored

    def stored(self, where: StateKey) -> OperatorState | None:
        if where not in self._read:
            row = self._db.execute("SELECT state FROM state WHERE id = ?", (self._id(where),)).fetchone()
            self._read[where] = CATALOGUE.decode_state(row[0]) if row else None
        return self._read[where]

    def stored_event(self, where: StateKey, event: str) -> bool:
        pair = (self._id(where), event)
        if pair not in self._known:
            row = self._db.execute("SELECT 1 FROM item WHERE id = ? AND event = ?", pair).fetchone()
            self._known[pair] = row is not None
        return self._known[pair]

    def stored_buffer(self, where: StateKey) -> list[BufferedEvent]:
        rows = self._db.execute("SELECT held FROM item WHERE id = ? ORDER BY place, event", (self._id(where),))
        return [decode(BufferedEvent, row[0]) for row in rows]

    def stored_oldest(self, where: StateKey, after: int) -> BufferedEvent | None:
        row = self._db.execute(OLDEST, (self._id(where), after)).fetchone()
        return decode(BufferedEvent, row[0]) if row else None

    def stored_due(self, at_ms: int, before: int, most: int) -> list[tuple[int, StateKey]]:
        rows = self._db.execute(DUE, (self._part, at_ms, before, most))
        return [(due, StateKey(*key)) for due, *key in rows]

    def stored_open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        rows = self._db.execute(OPEN, (self._part, rule, spec, before, most))
        return [StateKey(rule, spec, row[0]) for row in rows]

    # ------------------------------------------------------------ the end of a group

    def write(self) -> None:
        """Write the changes in the open transaction."""
        released = [(self._id(where),) for where in self.released]
        self._db.executemany("DELETE FROM item WHERE id = ?", released)
        taken = [(self._id(where), event) for where, events in self.taken.items() for event in events]
        self._db.executemany("DELETE FROM item WHERE id = ? AND event = ?", taken)
        self._db.executemany("INSERT OR REPLACE INTO item VALUES (?,?,?,?)", self._items())
        self._db.executemany(PUT, (self._row(where, state) for where, state in self.changed.items()))

    def _items(self) -> Iterator[tuple[Any, ...]]:
        for where, events in self.fresh.items():
            id = self._id(where)
            for event, buffered in events.items():
                yield id, event, buffered.place, encode(buffered)

    def _row(self, where: StateKey, state: OperatorState) -> tuple[Any, ...]:
        facts = (state.applied, state.buffered(), state.due_ms(), state.forget_ms(), encode(state))
        return (self._id(where), self._part, *where, *facts)

    def _id(self, where: StateKey) -> str:
        return _id(self._part, where)


def _id(part: int, where: StateKey) -> str:
    """Return the id of a key in one partition.

    A change of the operators may move a rule's matches to other partitions with other offsets, so a
    key has a separate state in each.
    """
    digest = blake2b("\0".join((str(part), *where)).encode(), digest_size=16).hexdigest()
    return OF_LIMITER + digest if where.operator in LIMITERS else digest


def _parts(keys: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(keys), ASKED):
        yield keys[start : start + ASKED]
