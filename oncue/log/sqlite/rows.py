"""Encoding of a record batch as a database row, and checksums of rows.

The blob is msgpack: the record itself if there is one, else a list of records.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from oncue.errors import Undecodable
from oncue.log.base import Record, RecordBatch

DEAD_LETTERED = -1  # in place of the checksum: the row is damaged, and has its dead letter
WHOLE = 1 << 32  # in a checksum: it covers all columns. Those of schema 1 cover the blob only

#: Columns of `batches`: topic, partition, first, count, time_ms, crc, offsets, blob.
StoredRow = tuple[int, int, int, int, int, int, bytes | None, bytes]

_numbers = struct.Struct("<5q").pack
_encode = msgspec.msgpack.Encoder().encode
_decode_one = msgspec.msgpack.Decoder(Record).decode
_decode_many = msgspec.msgpack.Decoder(tuple[Record, ...]).decode
_decode_offsets = msgspec.msgpack.Decoder(tuple[int, ...]).decode


def encode(records: Sequence[Record]) -> bytes:
    return _encode(records[0]) if len(records) == 1 else _encode(records)


def encode_offsets(offsets: Sequence[int]) -> bytes:
    return _encode(offsets)


def checksum(
    topic: int, partition: int, first: int, count: int, time_ms: int, offsets: bytes | None, blob: bytes
) -> int:
    """Return the checksum of a row's columns."""
    head = zlib.crc32(_numbers(topic, partition, first, count, time_ms))
    return WHOLE | zlib.crc32(blob, zlib.crc32(offsets, head) if offsets else head)


def checksum_of(*columns: object) -> int:
    """Return the checksum of a row of one of the small tables."""
    return zlib.crc32(repr(columns).encode())


def has_checksum(row: Sequence[object]) -> bool:
    """Return True if a row of a small table has its checksum as last column.

    Rows of schema 1 have none: None.
    """
    return row[-1] is None or row[-1] == checksum_of(*row[:-1])


def is_sound(row: StoredRow) -> bool:
    """Return True if the row has its checksum.

    In a damaged database, columns may have values of any type.
    """
    topic, partition, first, count, time_ms, crc, offsets, blob = row
    try:
        if crc < WHOLE:
            return crc == zlib.crc32(blob)
        return crc == checksum(topic, partition, first, count, time_ms, offsets, blob)
    except (struct.error, TypeError):
        return False


def is_accounted_for(row: StoredRow) -> bool:
    """Return True if the row is sound, or its damage has a dead letter."""
    return row[5] == DEAD_LETTERED or is_sound(row)


def decode(row: StoredRow) -> tuple[Sequence[int], list[Record]]:
    """Return offsets and records of a row. Raises Undecodable.

    The column `offsets` is NULL unless compaction left gaps.
    """
    _, _, first, count, _, _, offsets, blob = row
    if not is_sound(row):
        raise Undecodable(f"the stored batch does not have its checksum ({len(blob)} bytes)")
    try:
        records = [_decode_one(blob)] if count == 1 else list(_decode_many(blob))
        numbers = range(first, first + count) if offsets is None else _decode_offsets(offsets)
    except msgspec.MsgspecError as e:
        raise Undecodable(f"the stored batch is not records: {e}") from None
    if len(numbers) != len(records):
        raise Undecodable(f"the stored batch has {len(records)} records instead of {len(numbers)}")
    return numbers, records


def end_of(first: int, count: int, offsets: bytes | None) -> int:
    """Return the offset after the row's last record."""
    return first + count if offsets is None else _decode_offsets(offsets)[-1] + 1


def tail(batch: RecordBatch, at: int) -> RecordBatch:
    """Return the batch from offset `at` on; it must have such records."""
    if batch.offsets[0] >= at:
        return batch
    skip = bisect_left(batch.offsets, at)
    return RecordBatch(batch.topic, batch.partition, batch.offsets[skip:], batch.records[skip:])
