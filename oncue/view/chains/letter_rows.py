"""Finds the dead letters of events."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from oncue.errors import Undecodable
from oncue.ids import DIGEST_BYTES, event_digest
from oncue.protocol.codec import decode
from oncue.protocol.records import DeadLetter
from oncue.protocol.topics import EVENTS
from oncue.view.bulk_sql import run
from oncue.view.record_rows import pack_position

PLACE = "\0place"  # in place of a source: events that a letter names by their offsets
_ADD = "INSERT OR IGNORE INTO letter_event (event, letter) {values}"
_DONE = "letter_events"
STEP = 500


def store(db: sqlite3.Connection, letter: DeadLetter, number: int) -> None:
    """Note the events of a dead letter."""
    run(db, _ADD, [(digest, number) for digest in _digests(letter)])


def add_missing(db: sqlite3.Connection) -> None:
    """Note the events of letters that earlier versions stored; once."""
    if db.execute("SELECT 1 FROM meta WHERE name = ?", (_DONE,)).fetchone() is not None:
        return
    last = -1
    while rows := db.execute("SELECT id, record FROM dead WHERE id > ? ORDER BY id LIMIT ?", (last, STEP)).fetchall():
        db.execute("BEGIN")
        try:
            for number, record in rows:
                with contextlib.suppress(Undecodable):  # lists say what is wrong with it
                    store(db, decode(DeadLetter, record), number)
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        last = rows[-1][0]
    db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (_DONE, "1"))


def place_digest(place: int) -> bytes:
    """Return the digest of an event that is named by its place (`pack_position`)."""
    return event_digest(PLACE, str(place))


def _digests(letter: DeadLetter) -> Iterator[bytes]:
    if letter.event is not None:
        yield event_digest(*letter.event)
    for at in range(0, len(letter.members), DIGEST_BYTES):
        yield letter.members[at : at + DIGEST_BYTES]
    if letter.topic == EVENTS:
        for offset in letter.offsets or (letter.offset,):
            yield place_digest(pack_position(letter.partition, offset))
