"""Reading one partition from an offset to its current end."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from oncue.log.base import Log, RecordBatch


async def read_partition(log: Log, topic: str, number: int, begin: int = 0) -> AsyncGenerator[RecordBatch]:
    """Yield batches up to the current end. Raises LogError."""
    ends = await log.end_offsets([topic])
    end = ends.get((topic, number), 0)
    if max(begin, (await log.begin_offsets([topic])).get((topic, number), 0)) >= end:
        return
    # Start the other partitions at their ends, so that they return nothing.
    start = {place: at for place, at in ends.items() if place[1] != number} | {(topic, number): begin}
    reader = log.read([topic], start=start)
    try:
        while True:
            for batch in await reader.next():
                if batch.partition != number:
                    continue
                yield batch
                if batch.next_offset >= end:
                    return
    finally:
        await reader.close()
