"""Stores the state of triggers in a shared log.

    trigger ──persist──► oncue.files ──load──► the trigger, on the server that runs it next

Another server resumes a trigger from it. The topic is compacted. The entries of one trigger are in
one partition.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from oncue.log import Log, Record
from oncue.log.base import partition_of
from oncue.log.partition import read_partition
from oncue.protocol.topics import FILES
from oncue.triggers.base import StateChunk

PARTITIONS = 8  # fixed: another number would move triggers to other partitions


class LogReplicatedState:
    """State of one trigger. Implements triggers.base.ReplicatedState."""

    def __init__(self, log: Log, name: str) -> None:
        self._log, self._prefix = log, name.encode() + b"\0"
        self._partition = partition_of(name.encode(), PARTITIONS)

    async def load(self, position: str) -> AsyncIterator[StateChunk]:
        """See ReplicatedState."""
        end = (await self._log.end_offsets([FILES])).get((FILES, self._partition), 0)
        identity, _, offset = position.rpartition(" ")
        begin = int(offset) if identity == self._log.identity and int(offset) <= end else 0
        yield self._chunk((), begin, begin)
        async with contextlib.aclosing(read_partition(self._log, FILES, self._partition, begin)) as batches:
            async for batch in batches:
                own = [(r.key[len(self._prefix) :], r.value) for r in batch.records if r.key.startswith(self._prefix)]
                yield self._chunk(own, batch.next_offset, begin)

    def _chunk(self, entries: Sequence[tuple[bytes, bytes]], offset: int, begin: int) -> StateChunk:
        return StateChunk(entries, f"{self._log.identity} {offset}", begin == 0)

    async def persist(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """See ReplicatedState."""
        records = [Record(value, key=self._prefix + key) for key, value in entries]
        await self._log.append(FILES, records, self._partition)
