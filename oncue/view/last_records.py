"""Checksums of the last record that the view has applied in each partition.

With them a view notices that the log is not the one it was derived from: a backup was put back, and
other records now have the same offsets.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence

from oncue.log import Partition, Record, RecordBatch

_CHECKED_BYTES = 4096  # of a value: records that differ only later are not told apart


def checksum(record: Record) -> int:
    """Return a checksum of the record's time, key, length and first bytes."""
    head = b"%d %d " % (record.time_ms, len(record.value))
    return zlib.crc32(record.value[:_CHECKED_BYTES], zlib.crc32(head + record.key))


def last_records(batches: Sequence[RecordBatch]) -> list[tuple[str, int, int, int]]:
    """Return (topic, partition, offset, checksum) of each partition's last record."""
    last: dict[Partition, tuple[int, Record]] = {}
    for batch in batches:
        if batch.records:
            place = (batch.topic, batch.partition)
            if place not in last or batch.offsets[-1] > last[place][0]:
                last[place] = (batch.offsets[-1], batch.records[-1])
    return [(*place, offset, checksum(record)) for place, (offset, record) in last.items()]


def stored(db: sqlite3.Connection) -> dict[Partition, tuple[int, int]]:
    """Return (offset, checksum) of the last applied record of each partition."""
    rows = db.execute("SELECT topic, partition, offset, crc FROM last_record")
    return {(topic, partition): (offset, crc) for topic, partition, offset, crc in rows}
