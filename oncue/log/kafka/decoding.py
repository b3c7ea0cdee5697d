"""What a fetch brought, as Batches: without the marks of transactions, aborted records, and batches that are damaged."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence

import msgspec
from aiokafka import errors as k
from aiokafka.record.memory_records import MemoryRecords

from oncue.log.base import Record, RecordBatch
from oncue.protocol.records import EVENT_BYTES

HEAD = struct.Struct(
    ">qiibIhi"
)  # base offset, length, leader's epoch, magic, checksum, attributes, last offset's delta
AFTER_LENGTH = 12
CONTROL, TRANSACTIONAL = 0x20, 0x10
ABORT = 0


class Damaged(msgspec.Struct, frozen=True):
    """A stored batch that cannot be read: what its bytes begin with, and why."""

    first: int
    reason: str
    record: bytes


class Decoded(msgspec.Struct):
    """Batches with their stored sizes, the damaged ones, and the offset up to which this tells all."""

    batches: list[tuple[RecordBatch, int]]
    damaged: list[Damaged]
    reached: int


def decode(
    topic: str, partition: int, data: bytes, at: int, reached: int, aborted: Sequence[tuple[int, int]]
) -> Decoded:
    """Records at `at` and behind. `aborted`: (producer, first offset) of transactions that came to nothing."""
    found = Decoded([], [], reached)
    waiting = sorted(aborted or (), key=lambda a: a[1])
    gone: set[int] = set()
    place, view = 0, memoryview(data)
    while place + HEAD.size <= len(data):
        base, length, _, magic, _, attributes, delta = HEAD.unpack_from(data, place)
        if place + AFTER_LENGTH + length > len(data):
            break  # cut off by the size of the fetch: it comes with the next
        blob = view[place : place + AFTER_LENGTH + length].tobytes()
        place += AFTER_LENGTH + length
        following = base + delta + 1 if magic >= 2 else base + 1
        if following <= found.reached:
            continue
        while waiting and waiting[0][1] <= base:
            gone.add(waiting.pop(0)[0])
        try:
            batch = MemoryRecords(blob).next_batch()
            if not batch.validate_crc():
                raise k.CorruptRecordException("the stored batch does not have its checksum")
            if magic >= 2 and attributes & CONTROL:
                if _mark(next(batch).key) == ABORT:
                    gone.discard(batch.producer_id)
            elif not (magic >= 2 and attributes & TRANSACTIONAL and batch.producer_id in gone):
                offsets, records = _records(batch, at)
                if offsets:
                    found.batches.append((RecordBatch(topic, partition, offsets, records), len(blob)))
        except (k.KafkaError, ValueError, LookupError, TypeError, OverflowError, AssertionError, StopIteration) as e:
            why = f"{e} ({len(blob)} bytes)" if str(e) else f"{type(e).__name__} ({len(blob)} bytes)"
            found.damaged.append(Damaged(base, why, blob[:EVENT_BYTES]))
        found.reached = following
    _tell_end(found, topic, partition, at, reached)
    return found


def _tell_end(found: Decoded, topic: str, partition: int, at: int, before: int) -> None:
    """Where the last offsets are no records, the reader's place is further than behind its last record."""
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


def _mark(key: bytes) -> int:
    """Of a transaction's end: 0 it was aborted, 1 committed."""
    kind: int = struct.unpack_from(">hh", key)[1]
    return kind
