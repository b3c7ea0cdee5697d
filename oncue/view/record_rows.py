"""Stores events, dead letters, claims and reports as rows."""

from __future__ import annotations

import sqlite3

import msgspec

from oncue.log import Record
from oncue.log.base import partition_of
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.records import OUTPUT_BYTES, Claim, DeadLetter, Fence, Resolution, ResultFrame
from oncue.protocol.reports import Output, Usage
from oncue.text.progress import last_states

PARTITION_SHIFT = 40


def pack_position(partition: int, offset: int) -> int:
    """Encode partition and offset as one integer; in partition 0 it is the offset."""
    return (partition << PARTITION_SHIFT) + offset


def unpack_position(number: int) -> tuple[int, int]:
    """Decode `pack_position`: return partition and offset."""
    return number >> PARTITION_SHIFT, number & ((1 << PARTITION_SHIFT) - 1)


def store_event(db: sqlite3.Connection, record: Record, partition: int, offset: int) -> None:
    """Store an event. Raises Invalid, TooLarge."""
    e = cloudevents.from_record(record.value, record.headers)
    headers = encode(record.headers) if record.headers else None
    db.execute(
        "INSERT INTO event (place, type, source, id, at_ms, value, headers) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (place) DO NOTHING",
        (pack_position(partition, offset), e.type, e.source, e.id, record.time_ms, record.value, headers),
    )


def store_dead_letter(db: sqlite3.Connection, letter: DeadLetter, partition: int, offset: int) -> None:
    """Store a dead letter; it is then no longer pending (table `unburied`)."""
    db.execute(
        "INSERT OR REPLACE INTO dead (id, at_us, owner, record) VALUES (?, ?, ?, ?)",
        (pack_position(partition, offset), letter.at_us, letter.owner, encode(letter)),
    )
    where = (letter.topic, letter.partition, letter.offset)
    db.execute("DELETE FROM unburied WHERE (topic, partition, offset) = (?, ?, ?)", where)


def store_resolution(db: sqlite3.Connection, record: Resolution, partition: int) -> None:
    """Store a resolution with its dead letters; ignores deleted ones."""
    raw = encode(msgspec.structs.replace(record, letters=()))
    numbers = [(raw, pack_position(partition, offset)) for offset in record.letters]
    db.executemany("UPDATE dead SET settled = ? WHERE id = ?", numbers)


def store_claim(db: sqlite3.Connection, record: Claim, partition: int, offset: int) -> None:
    """Store a claim in place of the partition's previous one."""
    db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?)", (partition, offset + 1, encode(record)))


def store_fence(db: sqlite3.Connection, record: Fence) -> None:
    """Store the epochs of a fence."""
    db.executemany(
        "INSERT INTO fence VALUES (?, ?, ?) ON CONFLICT (partition) DO UPDATE SET partitions = excluded.partitions,"
        " epoch = max(epoch, excluded.epoch)",
        [(partition, record.partitions, epoch) for partition, epoch in record.epochs],
    )


def is_fenced(db: sqlite3.Connection, frame: ResultFrame) -> bool:
    """True if the results were decided by an owner that has been replaced."""
    if not frame.epoch:
        return False
    for partition, partitions, epoch in db.execute("SELECT partition, partitions, epoch FROM fence"):
        if partition == partition_of(frame.call.endpoint.encode(), partitions):
            return bool(frame.epoch < epoch)
    return False


def store_usage(db: sqlite3.Connection, report: Usage) -> None:
    """Store a usage report unless a later one is known."""
    db.execute(
        "INSERT INTO usage (endpoint, at_us, record) VALUES (?, ?, ?) ON CONFLICT (endpoint) DO UPDATE SET"
        " at_us = excluded.at_us, record = excluded.record WHERE excluded.at_us >= at_us",
        (report.endpoint, report.at_us, encode(report)),
    )


def append_output(db: sqlite3.Connection, report: Output, at_ms: int) -> None:
    """Append to a running attempt's output, of which OUTPUT_BYTES are kept.

    A later attempt replaces it. A lost report leaves a gap, marked in the text. Of a progress bar,
    the last state is kept.
    """
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
    text = last_states(text + report.text[known - report.offset_bytes :])[:OUTPUT_BYTES]
    db.execute(
        "INSERT OR REPLACE INTO output (id, attempt, next, at_ms, text) VALUES (?, ?, ?, ?, ?)",
        (report.task, report.attempt, end, at_ms, text),
    )
