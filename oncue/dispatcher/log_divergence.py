"""Compares what a data folder derived from the log with the log itself.

An older log, or an empty one, may be under a newer view: a backup was put back. The view would then
show tasks that the log does not have, and hide those that get the same offsets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from oncue.errors import OncueError
from oncue.log import Log, Partition, Record
from oncue.protocol.topics import EVENTS, TASKS_PREFIX
from oncue.view import View
from oncue.view.last_records import checksum

log = logging.getLogger("oncue.server")
READ_S = 30.0  # for the records to compare


class Divergence(msgspec.Struct, frozen=True):
    """Difference between a view and its log."""

    reason: str
    missing: dict[str, int]  # topic -> records that the view had applied and the log does not have


async def find_divergence(durable: Log, view: View) -> Divergence | None:
    """Return how the view differs from the log's records, or None.

    Raises LogError, ViewError.
    """
    positions = view.positions()
    topics = {topic for topic, _ in positions}
    begins, ends = await durable.begin_offsets(topics), await durable.end_offsets(topics)
    missing: dict[str, int] = {}
    # In a shared log, somebody may have deleted the topic of an endpoint that is gone.
    gone = {TASKS_PREFIX + e.id for e in await view.endpoints() if e.revoked} if durable.shared else set()
    for place, position in positions.items():
        if position > ends.get(place, position if place[0] in gone else 0):
            missing[place[0]] = missing.get(place[0], 0) + position - ends.get(place, 0)
    if missing:
        text = ", ".join(f"{count:,} of {topic}" for topic, count in sorted(missing.items()))
        return Divergence(f"the log ends before records that the view has: {text}", missing)
    known = await view.last_records()
    wanted = {place: mark for place, mark in known.items() if begins.get(place, 0) <= mark[0] < ends.get(place, 0)}
    found = await read_records(durable, {place: offset for place, (offset, _) in wanted.items()})
    for (topic, partition), record in found.items():
        if checksum(record) != wanted[topic, partition][1]:
            where = f"{topic}/{partition} at {wanted[topic, partition][0]}"
            return Divergence(f"the log has another record than the one that the view applied, in {where}", {})
    return None


async def read_records(durable: Log, offsets: Mapping[Partition, int]) -> dict[Partition, Record]:
    """Read one record in each of these partitions.

    Compacted, truncated and damaged ones are left out.
    """
    found: dict[Partition, Record] = {}
    topics = {topic for topic, _ in offsets}
    if not topics:
        return found
    # The other partitions of these topics start at their ends, so that they return nothing.
    ends = await durable.end_offsets(topics)
    reader = durable.read(topics, start=ends | dict(offsets))
    left = dict(offsets)
    try:
        async with asyncio.timeout(READ_S):
            while left:
                for batch in await reader.next(max_batches=1024):
                    place = (batch.topic, batch.partition)
                    if (offset := left.pop(place, None)) is not None and batch.offsets and batch.offsets[0] == offset:
                        found[place] = batch.records[0]
    except (TimeoutError, OncueError) as e:
        log.warning("%d records of the log could not be compared with the view: %s", len(left), e or "no answer")
    finally:
        await reader.close()
    return found


async def newest_event_us(durable: Log) -> int:
    """Return when the log's newest event was stored (unix µs); 0 without events."""
    begins, ends = await durable.begin_offsets([EVENTS]), await durable.end_offsets([EVENTS])
    last = {place: end - 1 for place, end in ends.items() if end > begins.get(place, 0)}
    return max((r.time_ms * 1000 for r in (await read_records(durable, last)).values()), default=0)
