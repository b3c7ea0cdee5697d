"""Events, dead letters, claims and reports -> rows."""

from __future__ import annotations

import sqlite3

import msgspec

from oncue.log import Record
from oncue.log.base import partition_of
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.records import OUTPUT_BYTES, Claim, DeadLetter, Fence, Output, Resolution, ResultFrame, Usage

PARTITION_SHIFT = 40


def place(partition: int, offset: int) -> int:
    """One number for a record's place in its topic: the offset itself in the first partition."""
    return (partition << PARTITION_SHIFT) + offset


def partition_and_offset(number: int) -> tuple[int, int]:
    """Of a place."""
    return number >> PARTITION_SHIFT, number & ((1 << PARTITION_SHIFT) - 1)


def event(db: sqlite3.Connection, record: Record, partition: int, offset: int) -> None:
    """Raises Invalid and TooLarge."""
    e = cloudevents.from_record(record.value, record.headers)
    headers = encode(record.headers) if record.headers else None
    db.execute(
        "INSERT INTO event (place, type, source, id, at_ms, value, headers) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (place) DO NOTHING",
        (place(partition, offset), e.type, e.source, e.id, record.time_ms, record.value, headers),
    )


def dead(db: sqlite3.Connection, letter: DeadLetter, partition: int, offset: int) -> None:
    db.execute(
        "INSERT OR REPLACE INTO dead (id, at_us, owner, record) VALUES (?, ?, ?, ?)",
        (place(partition, offset), letter.at_us, letter.owner, encode(letter)),
    )
    where = (letter.topic, letter.partition, letter.offset)
    db.execute("DELETE FROM unburied WHERE (topic, partition, offset) = (?, ?, ?)", where)


def settled(db: sqlite3.Connection, record: Resolution, partition: int) -> None:
    """Letters that are forgotten already are passed over."""
    raw = encode(msgspec.structs.replace(record, letters=()))
    numbers = [(raw, place(partition, offset)) for offset in record.letters]
    db.executemany("UPDATE dead SET settled = ? WHERE id = ?", numbers)


def claim(db: sqlite3.Connection, record: Claim, partition: int, offset: int) -> None:
    """The newest counts."""
    db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?)", (partition, offset + 1, encode(record)))


def fence(db: sqlite3.Connection, record: Fence) -> None:
    db.executemany(
        "INSERT INTO fence VALUES (?, ?, ?) ON CONFLICT (partition) DO UPDATE SET partitions = excluded.partitions,"
        " epoch = max(epoch, excluded.epoch)",
        [(partition, record.partitions, epoch) for partition, epoch in record.epochs],
    )


def fenced(db: sqlite3.Connection, frame: ResultFrame) -> bool:
    """Whether an owner ended these that another had taken the place of."""
    if not frame.epoch:
        return False
    for partition, partitions, epoch in db.execute("SELECT partition, partitions, epoch FROM fence"):
        if partition == partition_of(frame.call.endpoint.encode(), partitions):
            return bool(frame.epoch < epoch)
    return False


def usage(db: sqlite3.Connection, report: Usage) -> None:
    db.execute(
        "INSERT INTO usage (endpoint, at_us, record) VALUES (?, ?, ?) ON CONFLICT (endpoint) DO UPDATE SET"
        " at_us = excluded.at_us, record = excluded.record WHERE excluded.at_us >= at_us",
        (report.endpoint, report.at_us, encode(report)),
    )


def output(db: sqlite3.Connection, report: Output, at_ms: int) -> None:
    """What an attempt printed so far: the first OUTPUT_BYTES; a newer attempt starts anew. A report that was lost leaves
    a gap, which is said."""
    row = db.execute("SELECT attempt, next, text FROM output WHERE id = ?", (report.task,)).fetchone()
    attempt, known, text = row or (0, 0, b"")
    if report.attempt < attempt:
        return
    if report.attempt > attempt:
        known, text = 0, b""
    end = report.offset_bytes + len(report.text)
    if end <= known and row is not None and report.attempt == attempt:
        return
    if report.offset_bytes > known:
        text += b"\n[%d bytes missing]\n" % (report.offset_bytes - known)
        known = report.offset_bytes
    text = (text + report.text[known - report.offset_bytes :])[:OUTPUT_BYTES]
    db.execute(
        "INSERT OR REPLACE INTO output (id, attempt, next, at_ms, text) VALUES (?, ?, ?, ?, ?)",
        (report.task, report.attempt, end, at_ms, text),
    )
