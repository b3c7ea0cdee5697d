"""What triggers remember, where the log is several servers': in `oncue.files`, compacted, a trigger in one partition.

trigger ──keep──► oncue.files ──load──► the trigger, on the server that runs it next
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from oncue.log import Log, Record
from oncue.log.base import partition_of
from oncue.log.partition import read_partition
from oncue.protocol.topics import FILES
from oncue.triggers.base import StateChunk

PARTITIONS = 8  # fixed: with it the place of each trigger would change


class LogReplicatedState:
    """A `Memory` (triggers/base.py)."""

    def __init__(self, log: Log, name: str) -> None:
        self._log, self._prefix = log, name.encode() + b"\0"
        self._partition = partition_of(name.encode(), PARTITIONS)

    async def load(self, position: str) -> AsyncIterator[StateChunk]:
        end = (await self._log.end_offsets([FILES])).get((FILES, self._partition), 0)
        identity, _, offset = position.rpartition(" ")
        begin = int(offset) if identity == self._log.identity and int(offset) <= end else 0
        yield self._kept((), begin, begin)
        async with contextlib.aclosing(read_partition(self._log, FILES, self._partition, begin)) as batches:
            async for batch in batches:
                mine = [(r.key[len(self._prefix) :], r.value) for r in batch.records if r.key.startswith(self._prefix)]
                yield self._kept(mine, batch.next_offset, begin)

    def _kept(self, entries: Sequence[tuple[bytes, bytes]], offset: int, begin: int) -> StateChunk:
        return StateChunk(entries, f"{self._log.identity} {offset}", begin == 0)

    async def persist(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        records = [Record(value, key=self._prefix + key) for key, value in entries]
        await self._log.append(FILES, records, self._partition)
