"""Interning: calls and texts that many rows share are stored once, with an id."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from typing import NamedTuple

from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Call

KEPT = 10_000


class CallRef(NamedTuple):
    """Ids of a call and of its texts."""

    id: int
    endpoint: int
    function: int
    name: int
    owner: int
    rule: int | None


class CallInterner:
    """Stores calls and texts under ids. Call `reset` after a rollback."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._refs: OrderedDict[bytes, CallRef] = OrderedDict()
        self._words: OrderedDict[str, int] = OrderedDict()

    def reset(self) -> None:
        """Clear the cache, whose rows may not be stored."""
        self._refs.clear()
        self._words.clear()

    def ref(self, call: Call) -> CallRef:
        """Return the ids of a call, stored if new."""
        raw = encode(call)
        found = self._refs.get(raw)
        if found is None:
            found = self._refs[raw] = self._store(raw, call)
            if len(self._refs) > KEPT:
                self._refs.popitem(last=False)
        return found

    def _store(self, raw: bytes, call: Call) -> CallRef:
        number = self._number("SELECT id FROM call WHERE raw = ?", "INSERT INTO call (raw) VALUES (?)", raw)
        return CallRef(
            number,
            self.word(call.endpoint),
            self.word(call.function),
            self.word(call.name),
            self.word(call.owner),
            self.word(call.rule) if call.rule else None,
        )

    def word(self, text: str) -> int:
        """Return the id of a text, stored if new."""
        found = self._words.get(text)
        if found is None:
            found = self._number("SELECT id FROM word WHERE text = ?", "INSERT INTO word (text) VALUES (?)", text)
            self._words[text] = found
            if len(self._words) > KEPT:
                self._words.popitem(last=False)
        return found

    def _number(self, select: str, insert: str, value: bytes | str) -> int:
        row = self._db.execute(select, (value,)).fetchone()
        if row is None:
            self._db.execute(insert, (value,))
            row = self._db.execute("SELECT last_insert_rowid()").fetchone()
        number: int = row[0]
        return number


class CallCache:
    """Cache of calls by id, shared by reader threads. Ids are never reused."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}

    def get(self, db: sqlite3.Connection, number: int) -> Call:
        """Return the call with this id."""
        found = self._calls.get(number)
        if found is None:
            raw = db.execute("SELECT raw FROM call WHERE id = ?", (number,)).fetchone()[0]
            if len(self._calls) >= KEPT:
                self._calls.clear()
            found = self._calls[number] = decode(Call, raw)
        return found
