"""The states of rules with memory in one SQLite file, `windows.db`: written together with the offsets that they stand for.

part    how far each partition of `oncue.matches` is applied, and the newest time in it
state   a row a key of an operator (window.py says what is in it)
item    the events of open windows, one a row: a large window is not written again for each event

Nothing is kept in memory, so that a million keys cost disk only. A group of batches is folded over what it touches
(`fold_batches`), and stored in one transaction once what fires is durable (`store`). A commit need not reach the disk at
once: after a crash of the machine the file is at an older commit, with the offsets of then, and the log has the rest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from oncue.errors import LogError, OncueError
from oncue.log.base import Batch, Record
from oncue.log.database import explain
from oncue.messages import decode, encode
from oncue.rules.matches import Closed, Held, Match, MatchesRecord, Tick, spec_hash
from oncue.rules.window import DedupeState, State, Where, due_ms, fold, forget_ms, held

APPLICATION_ID = 0x6F6E6377  # "oncw"
SCHEMA = 1
MARGIN_MS = 3_600_000  # a state is kept for so long after it tells nothing any more
FORGET_ROWS = 2_000  # in one transaction
ASKED = 500  # keys in one query

TABLES = """
CREATE TABLE part(part INTEGER PRIMARY KEY, next INTEGER NOT NULL, newest_ms INTEGER NOT NULL);
CREATE TABLE state(
  id TEXT PRIMARY KEY, part INTEGER NOT NULL, rule TEXT NOT NULL, spec TEXT NOT NULL, key TEXT NOT NULL,
  applied INTEGER NOT NULL, held INTEGER NOT NULL, due_ms INTEGER NOT NULL, forget_ms INTEGER NOT NULL,
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
DUE = """SELECT due_ms, rule, spec, key FROM state WHERE part = ? AND due_ms > 0 AND due_ms <= ? AND applied < ?
 ORDER BY due_ms, rule, spec, key LIMIT ?"""
OPEN = """SELECT key FROM state WHERE part = ? AND rule = ? AND spec = ? AND held > 0 AND applied < ? ORDER BY key LIMIT ?"""
NEXT_DUE = "SELECT min(due_ms) FROM state WHERE part = ? AND due_ms > 0"
FORGET = """DELETE FROM state WHERE id IN
 (SELECT id FROM state WHERE part = ? AND forget_ms > 0 AND forget_ms < ? LIMIT ?)"""


class Summary(NamedTuple):
    """Of a rule's open windows."""

    windows: int
    events: int
    due_ms: int  # of the next that closes by time; 0: none does


class Bad(NamedTuple):
    """A record that cannot be folded."""

    batch: Batch
    offset: int
    record: Record
    why: str


class Group:
    """What a group of batches changes, before it is stored."""

    def __init__(self) -> None:
        self.closed: list[tuple[Batch, int, Closed]] = []  # with the record that closed it
        self.bad: list[Bad] = []
        self.suppressed: dict[str, int] = {}  # rule -> events
        self.next: dict[int, tuple[int, int]] = {}  # partition -> (next offset, newest time)
        self.parts: dict[int, PartStates] = {}
        self.retiring = False  # a tick has closed windows of operators that are gone, not necessarily all

    def opened(self) -> set[tuple[str, str]]:
        """(rule, spec) of the windows that are open and have new events."""
        return {where[:2] for states in self.parts.values() for where in states.opened()}


class WindowStore:
    """Used by one thread at a time. Raises LogError or DiskFull."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            self._prepare()
            rows = self._db.execute("SELECT part, next, newest_ms FROM part").fetchall()
        except sqlite3.Error as e:
            raise self._explained(e) from e
        self.parts: dict[int, tuple[int, int]] = {part: (following, newest) for part, following, newest in rows}

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

    def _explained(self, e: Exception) -> OncueError:
        if "malformed" in str(e) or "not a database" in str(e):
            return LogError(
                f"the windows of rules ({self._path}) are damaged: {e}",
                remedy="stop oncue and move the file away: it is made again from the log (docs/rules.md, Memory)",
            )
        return explain(e, self._path)

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------ folding

    def fold_batches(self, batches: Sequence[Batch]) -> Group:
        """Nothing is changed yet: what fires has to be durable first."""
        group = Group()
        try:
            for batch in batches:
                self._fold_batch(batch, group)
        except sqlite3.Error as e:
            raise self._explained(e) from e
        return group

    def _fold_batch(self, batch: Batch, group: Group) -> None:
        part = batch.partition
        following, newest = group.next.get(part) or self.parts.get(part, (0, 0))
        states = group.parts.setdefault(part, PartStates(self._db, part))
        found: list[tuple[int, Record, MatchesRecord]] = []
        for offset, record in zip(batch.offsets, batch.records, strict=True):
            if offset < following:
                continue
            try:
                found.append((offset, record, decode(MatchesRecord, record.value)))  # type: ignore[arg-type]
            except OncueError as e:
                group.bad.append(Bad(batch, offset, record, e.message))
        states.prefetch(content for _, _, content in found if isinstance(content, Match))
        for offset, record, content in found:
            try:
                fired = fold(states, content, part, offset)
            except sqlite3.Error:
                raise
            except Exception as e:
                group.bad.append(Bad(batch, offset, record, f"{type(e).__name__}: {e}"))
                continue
            group.closed += [(batch, offset, closed) for closed in fired]
            if isinstance(content, Match | Tick):
                newest = max(newest, content.at_ms)
                group.retiring |= isinstance(content, Tick) and bool(content.retired)
        for rule, count in states.take_suppressed().items():
            group.suppressed[rule] = group.suppressed.get(rule, 0) + count
        group.next[part] = (max(following, batch.next_offset), newest)

    def store(self, group: Group) -> None:
        """All of it, and the offsets, or nothing."""
        db = self._db
        try:
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
        except sqlite3.Error as e:
            raise self._explained(e) from e
        self.parts |= group.next

    def forget(self) -> int:
        """States that tell nothing any more, some at a time. How many."""
        gone = 0
        try:
            for part, (_, newest_ms) in self.parts.items():
                gone += self._db.execute(FORGET, (part, newest_ms - MARGIN_MS, FORGET_ROWS)).rowcount
        except sqlite3.Error as e:
            raise self._explained(e) from e
        return gone

    def drop(self, part: int) -> int:
        """All states of a partition, whose records are not those of the log. How many events were held."""
        lost: int = self._db.execute("SELECT coalesce(sum(held), 0) FROM state WHERE part = ?", (part,)).fetchone()[0]
        self._db.executescript(
            f"BEGIN; DELETE FROM item WHERE id IN (SELECT id FROM state WHERE part = {part:d});"
            f" DELETE FROM state WHERE part = {part:d}; DELETE FROM part WHERE part = {part:d}; COMMIT;"
        )
        self.parts.pop(part, None)
        return lost

    # ------------------------------------------------------------ looking

    def next_due_ms(self, part: int) -> int:
        return int(self._db.execute(NEXT_DUE, (part,)).fetchone()[0] or 0)

    def open_specs(self) -> set[tuple[int, str, str]]:
        """(partition, rule, spec) of all open windows."""
        return set(self._db.execute("SELECT DISTINCT part, rule, spec FROM state WHERE held > 0"))

    def summary(self) -> dict[str, Summary]:
        rows = self._db.execute(
            "SELECT rule, count(*), sum(held), coalesce(min(nullif(due_ms, 0)), 0) FROM state WHERE held > 0 GROUP BY rule"
        )
        return {rule: Summary(*rest) for rule, *rest in rows}

    def look(self, wheres: Sequence[Where], source: str, id: str) -> list[tuple[State | None, bool]]:
        """The state of each key, and whether its open window has this event."""
        states = PartStates(self._db, 0)
        return [(states.get(where), states.holds(where, source, id)) for where in wheres]


class PartStates:
    """`States` of one partition: what is in the file, under what the group has changed."""

    def __init__(self, db: sqlite3.Connection, part: int) -> None:
        self._db, self._part = db, part
        self._read: dict[Where, State | None] = {}
        self._changed: dict[Where, State] = {}
        self._known: dict[tuple[str, str], bool] = {}  # (id, event): whether it is in the file
        self._released: set[Where] = set()
        self._fresh: dict[Where, dict[str, Held]] = {}
        self._suppressed: dict[str, int] = {}

    def prefetch(self, matches: Iterable[Match]) -> None:
        """What the matches will touch, in a few queries."""
        wheres: dict[Where, None] = {}
        events: dict[tuple[str, str], None] = {}
        for match in matches:
            for stage in match.stages:
                where = Where(match.rule, spec_hash(stage.spec, match.needs), stage.key)
                wheres[where] = None
                events[self._id(where), _event(match.event.source, match.event.id)] = None
        new = {self._id(w): w for w in wheres if w not in self._read}
        for part in _parts(list(new)):
            self._read |= dict.fromkeys(new[id] for id in part)
            for id, state in self._db.execute(GET, (msgspec.json.encode(part).decode(),)):
                self._read[new[id]] = decode(State, state)  # type: ignore[arg-type]
        for pairs in _parts([e for e in events if e not in self._known]):
            self._known |= dict.fromkeys(pairs, False)
            self._known |= dict.fromkeys(self._db.execute(HAVE, (msgspec.json.encode(pairs).decode(),)), True)

    # ------------------------------------------------------------ States

    def get(self, where: Where) -> State | None:
        if where in self._changed:
            return self._changed[where]
        if where not in self._read:
            row = self._db.execute("SELECT state FROM state WHERE id = ?", (self._id(where),)).fetchone()
            self._read[where] = decode(State, row[0]) if row else None  # type: ignore[arg-type]
        return self._read[where]

    def put(self, where: Where, state: State) -> None:
        before = self.get(where)
        if isinstance(state, DedupeState) and state.suppressed:
            more = state.suppressed - (before.suppressed if isinstance(before, DedupeState) else 0)
            self._suppressed[where.rule] = self._suppressed.get(where.rule, 0) + more
        self._changed[where] = state

    def holds(self, where: Where, source: str, id: str) -> bool:
        event = _event(source, id)
        if event in self._fresh.get(where, ()):
            return True
        if where in self._released:
            return False
        pair = (self._id(where), event)
        if pair not in self._known:
            row = self._db.execute("SELECT 1 FROM item WHERE id = ? AND event = ?", pair).fetchone()
            self._known[pair] = row is not None
        return self._known[pair]

    def hold(self, where: Where, held: Held) -> None:
        self._fresh.setdefault(where, {})[_event(held.source, held.id)] = held

    def release(self, where: Where) -> list[Held]:
        found: list[Held] = []
        if where not in self._released:
            rows = self._db.execute("SELECT held FROM item WHERE id = ? ORDER BY place", (self._id(where),))
            found = [decode(Held, row[0]) for row in rows]
            self._released.add(where)
        return found + sorted(self._fresh.pop(where, {}).values(), key=lambda h: h.place)

    def due(self, at_ms: int, before: int, most: int) -> list[Where]:
        rows = self._db.execute(DUE, (self._part, at_ms, before, most + len(self._changed)))
        found = [(due, Where(*key)) for due, *key in rows]
        found = [(due, where) for due, where in found if where not in self._changed]
        found += [(d, w) for w, s in self._changed.items() if 0 < (d := due_ms(s)) <= at_ms and s.applied < before]
        return [where for _, where in sorted(found)[:most]]

    def open(self, rule: str, spec: str, before: int, most: int) -> list[Where]:
        rows = self._db.execute(OPEN, (self._part, rule, spec, before, most + len(self._changed)))
        found = [where for row in rows if (where := Where(rule, spec, row[0])) not in self._changed]
        found += [w for w, s in self._changed.items() if w[:2] == (rule, spec) and held(s) and s.applied < before]
        return sorted(found)[:most]

    # ------------------------------------------------------------ the end of a group

    def take_suppressed(self) -> dict[str, int]:
        taken, self._suppressed = self._suppressed, {}
        return taken

    def opened(self) -> Iterator[Where]:
        return (where for where, state in self._changed.items() if held(state))

    def write(self) -> None:
        """Into the transaction that is open."""
        gone = [(self._id(where),) for where in self._released]
        self._db.executemany("DELETE FROM item WHERE id = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO item VALUES (?,?,?,?)", self._items())
        self._db.executemany(PUT, (self._row(where, state) for where, state in self._changed.items()))

    def _items(self) -> Iterator[tuple[Any, ...]]:
        for where, events in self._fresh.items():
            id = self._id(where)
            for event, kept in events.items():
                yield id, event, kept.place, encode(kept)

    def _row(self, where: Where, state: State) -> tuple[Any, ...]:
        facts = (state.applied, held(state), due_ms(state), forget_ms(state), encode(state))
        return (self._id(where), self._part, *where, *facts)

    def _id(self, where: Where) -> str:
        return blake2b("\0".join(where).encode(), digest_size=16).hexdigest()


def _event(source: str, id: str) -> str:
    return blake2b(f"{source}\0{id}".encode(), digest_size=16).hexdigest()


def _parts(keys: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(keys), ASKED):
        yield keys[start : start + ASKED]
