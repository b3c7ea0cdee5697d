"""Decodes fetch responses into record batches.

Leaves out transaction markers, aborted records and damaged batches.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence

import msgspec
from aiokafka import errors as k
from aiokafka.record.memory_records import MemoryRecords

from oncue.log.base import Record, RecordBatch
from oncue.protocol.records import STORED_EVENT_BYTES

HEAD = struct.Struct(
    ">qiibIhi"
)  # base offset, length, leader's epoch, magic, checksum, attributes, last offset's delta
AFTER_LENGTH = 12
CONTROL, TRANSACTIONAL = 0x20, 0x10
ABORT = 0


class DamagedBatch(msgspec.Struct, frozen=True):
    """A stored batch that cannot be decoded: its first bytes, and the reason."""

    first: int
    reason: str
    record: bytes


class Decoded(msgspec.Struct):
    """Batches with their stored sizes, damaged ones, and the next offset to fetch."""

    batches: list[tuple[RecordBatch, int]]
    damaged: list[DamagedBatch]
    reached: int


def decode(
    topic: str, partition: int, data: bytes, at: int, reached: int, aborted: Sequence[tuple[int, int]]
) -> Decoded:
    """Decode records from offset `at` on.

    `aborted`: (producer id, first offset) of aborted transactions; `reached`: end of the last
    fetch.
    """
    found = Decoded([], [], reached)
    starts = sorted(aborted or (), key=lambda a: a[1])
    aborting: set[int] = set()
    place, view = 0, memoryview(data)
    while place + HEAD.size <= len(data):
        base, length, _, magic, _, attributes, delta = HEAD.unpack_from(data, place)
        if place + AFTER_LENGTH + length > len(data):
            break  # cut off by the fetch size: the next fetch returns it
        blob = view[place : place + AFTER_LENGTH + length].tobytes()
        place += AFTER_LENGTH + length
        following = base + delta + 1 if magic >= 2 else base + 1
        if following <= found.reached:
            continue
        while starts and starts[0][1] <= base:
            aborting.add(starts.pop(0)[0])
        try:
            batch = MemoryRecords(blob).next_batch()
            if not batch.validate_crc():
                raise k.CorruptRecordException("the stored batch does not have its checksum")
            if magic >= 2 and attributes & CONTROL:
                if _marker_type(next(batch).key) == ABORT:
                    aborting.discard(batch.producer_id)
            elif not (magic >= 2 and attributes & TRANSACTIONAL and batch.producer_id in aborting):
                offsets, records = _records(batch, at)
                if offsets:
                    found.batches.append((RecordBatch(topic, partition, offsets, records), len(blob)))
        except (k.KafkaError, ValueError, LookupError, TypeError, OverflowError, AssertionError, StopIteration) as e:
            why = f"{e} ({len(blob)} bytes)" if str(e) else f"{type(e).__name__} ({len(blob)} bytes)"
            found.damaged.append(DamagedBatch(base, why, blob[:STORED_EVENT_BYTES]))
        found.reached = following
    _set_end(found, topic, partition, at, reached)
    return found


def _set_end(found: Decoded, topic: str, partition: int, at: int, before: int) -> None:
    """Move the end past offsets that hold no records, such as markers."""
    if found.reached <= max(at, before):
        return
    if found.batches:
        last, nbytes = found.batches[-1]
        if last.next_offset < found.reached:
            found.batches[-1] = (RecordBatch(topic, partition, last.offsets, last.records, found.reached), nbytes)
    else:
        found.batches.append((RecordBatch(topic, partition, (), (), found.reached), 64))


def _records(batch: object, at: int) -> tuple[Sequence[int], list[Record]]:
    offsets: list[int] = []
    records: list[Record] = []
    for r in batch:  # type: ignore[attr-defined]
        headers = tuple([(name, value or b"") for name, value in r.headers]) if r.headers else ()
        records.append(Record(r.value or b"", r.key or b"", headers, r.timestamp))
        offsets.append(r.offset)
    if not offsets:
        return (), []
    if offsets[0] < at:
        skip = bisect_left(offsets, at)
        offsets, records = offsets[skip:], records[skip:]
        if not offsets:
            return (), []
    if offsets[-1] - offsets[0] + 1 == len(offsets):
        return range(offsets[0], offsets[-1] + 1), records
    return offsets, records


def _marker_type(key: bytes) -> int:
    """Return the type of a transaction marker: 0 abort, 1 commit."""
    kind: int = struct.unpack_from(">hh", key)[1]
    return kind
