"""ChangelogReader: reads states from `oncue.windows`.

For a server that may not run the stateful rules itself.
"""

from __future__ import annotations

import asyncio
import contextlib

from oncue.clocks.process import now_ms
from oncue.log.base import Log, partition_of
from oncue.log.partition import read_partition
from oncue.protocol.api import ExplainStep
from oncue.protocol.records import Event
from oncue.protocol.topics import WINDOWS
from oncue.rules.active_rules import ActiveRule
from oncue.rules.operators.preview import OperatorPreview, preview
from oncue.rules.stateful.changelog_states import states_in, wanted_keys
from oncue.rules.stateful.limits import all_state_keys
from oncue.rules.stateful.pending_changes import event_key

READ_S = 5.0


class ChangelogReader:
    def __init__(self, log: Log, partitions: int) -> None:
        self._log, self._partitions = log, partitions

    async def preview(self, entry: ActiveRule, event: Event) -> OperatorPreview:
        """Preview the rule's operators for this event, now.

        Raises Invalid: the event lacks a field.
        """
        rule, operators = entry.rule, entry.rule.operators
        if operators is None:
            return OperatorPreview(True, "", ())
        match = operators.match(rule.name, "", 0, event, now_ms(), 0)
        wheres = all_state_keys(match)
        key = event_key(event.source, event.id)
        part = partition_of(operators.partition_key(match), self._partitions)
        try:
            async with asyncio.timeout(READ_S):
                newest = await self._newest(part, wanted_keys(wheres, key))
        except TimeoutError:
            why = f"the states of its windows could not be read in {READ_S:.0f} s"
            step = ExplainStep(condition=operators.describe(), holds=True, found=why, wanted="to know")
            return OperatorPreview(True, why, (step,), buffered=True)
        return preview(operators, match, states_in(newest, wheres, key))

    async def _newest(self, part: int, wanted: set[bytes]) -> dict[bytes, bytes]:
        """Return the newest records of these keys.

        Reads the whole changelog, which is compacted.
        """
        found: dict[bytes, bytes] = {}
        async with contextlib.aclosing(read_partition(self._log, WINDOWS, part)) as batches:
            async for batch in batches:
                found |= {r.key: r.value for r in batch.records if r.key in wanted}
        return found
