"""What `oncue.windows` says of an event's keys, whoever runs the rules with memory."""

from __future__ import annotations

import asyncio
import contextlib
import time

from oncue.log.base import Log, partition_of
from oncue.log.partition import read_partition
from oncue.protocol.api import ExplainStep
from oncue.protocol.records import Event
from oncue.protocol.topics import WINDOWS
from oncue.rules.active_rules import ActiveRule
from oncue.rules.operators.preview import OperatorPreview, outlook
from oncue.rules.operators.records import spec_hash
from oncue.rules.stateful.changelog_states import looked_up, wanted_keys
from oncue.rules.stateful.fold import StateKey
from oncue.rules.stateful.pending_changes import event_key

LOOK_S = 5.0


class Changelog:
    def __init__(self, log: Log, partitions: int) -> None:
        self._log, self._partitions = log, partitions

    async def outlook(self, entry: ActiveRule, event: Event) -> OperatorPreview:
        """What dedupe and batch would do with this event now. Raises Invalid: the event lacks a field."""
        rule, memory = entry.rule, entry.rule.memory
        if memory is None:
            return OperatorPreview(True, "", ())
        match = memory.match(rule.name, "", 0, event, time.time_ns() // 1_000_000, 0)
        wheres = [StateKey(rule.name, spec_hash(stage.spec, match.needs), stage.key) for stage in match.stages]
        key = event_key(event.source, event.id)
        part = partition_of(memory.place(match), self._partitions)
        try:
            async with asyncio.timeout(LOOK_S):
                said = await self._newest(part, wanted_keys(wheres, key))
        except TimeoutError:
            why = f"the changelog of its windows could not be read in {LOOK_S:.0f} s"
            return OperatorPreview(
                True, why, (ExplainStep(condition=memory.text(), holds=True, found=why, wanted="to know"),)
            )
        return outlook(memory, match, looked_up(said, wheres, key))

    async def _newest(self, part: int, wanted: set[bytes]) -> dict[bytes, bytes]:
        """What the changelog says last of these keys: it is read from its beginning, which compaction keeps short."""
        found: dict[bytes, bytes] = {}
        async with contextlib.aclosing(read_partition(self._log, WINDOWS, part)) as batches:
            async for batch in batches:
                found |= {r.key: r.value for r in batch.records if r.key in wanted}
        return found
