"""Calls and texts that many rows share: stored once, named by a number."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from typing import NamedTuple

from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Call

KEPT = 10_000


class CallRef(NamedTuple):
    """The numbers of a call."""

    id: int
    endpoint: int
    function: int
    name: int
    owner: int
    rule: int | None


class Calls:
    """The writer's side. After a rollback it must `forget`: what it remembers may not be stored."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._refs: OrderedDict[bytes, CallRef] = OrderedDict()
        self._words: OrderedDict[str, int] = OrderedDict()

    def forget(self) -> None:
        self._refs.clear()
        self._words.clear()

    def ref(self, call: Call) -> CallRef:
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
        found = self._words.get(text)
        if found is None:
            found = self._number("SELECT id FROM word WHERE text = ?", "INSERT INTO word (text) VALUES (?)", text)
            self._words[text] = found
            if len(self._words) > KEPT:
                self._words.popitem(last=False)
        return found

    def _number(self, look: str, insert: str, what: bytes | str) -> int:
        row = self._db.execute(look, (what,)).fetchone()
        if row is None:
            self._db.execute(insert, (what,))
            row = self._db.execute("SELECT last_insert_rowid()").fetchone()
        number: int = row[0]
        return number


class KnownCalls:
    """The readers' side: numbers are never used again, so what was read once stays right. Shared by threads."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}

    def get(self, db: sqlite3.Connection, number: int) -> Call:
        found = self._calls.get(number)
        if found is None:
            raw = db.execute("SELECT raw FROM call WHERE id = ?", (number,)).fetchone()[0]
            if len(self._calls) >= KEPT:
                self._calls.clear()
            found = self._calls[number] = decode(Call, raw)
        return found
