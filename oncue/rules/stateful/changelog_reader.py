"""ChangelogReader: reads states from `oncue.windows`.

For a server that may not run the stateful rules itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from oncue.clocks.process import now_ms
from oncue.errors import Invalid
from oncue.log.base import Log, partition_of
from oncue.log.partition import read_partition
from oncue.protocol.api import ExplainStep
from oncue.protocol.records import Event
from oncue.protocol.topics import WINDOWS
from oncue.rules.active_rules import ActiveRule
from oncue.rules.operators.chain import OperatorChain
from oncue.rules.operators.preview import OperatorPreview, preview
from oncue.rules.operators.records import Match
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
        operators = entry.rule.operators
        if operators is None:
            return OperatorPreview(True, "", ())
        (found,) = await self._previews(operators, [operators.match(entry.rule.name, "", 0, event, now_ms(), 0)])
        return found

    async def buffers(self, entry: ActiveRule, events: Sequence[Event]) -> list[bool]:
        """Return for each event if an operator or a limit of the rule holds it.

        True if it is not known. Reads the changelog once.
        """
        operators, matches = entry.rule.operators, dict[int, Match]()
        if operators is None:
            return [False] * len(events)
        for number, event in enumerate(events):
            with contextlib.suppress(Invalid):  # it lacks a field that a newer version of the rule needs
                matches[number] = operators.match(entry.rule.name, "", 0, event, now_ms(), 0)
        previews = await self._previews(operators, list(matches.values()))
        held = {number for number, found in zip(matches, previews, strict=True) if found.buffered}
        return [number in held for number in range(len(events))]

    async def _previews(self, operators: OperatorChain, matches: Sequence[Match]) -> list[OperatorPreview]:
        asked = [
            (match, part, all_state_keys(match), event_key(match.event.source, match.event.id))
            for match in matches
            for part in [partition_of(operators.partition_key(match), self._partitions)]
        ]
        wanted: dict[int, set[bytes]] = {}
        for _, part, wheres, key in asked:
            wanted.setdefault(part, set()).update(wanted_keys(wheres, key))
        try:
            async with asyncio.timeout(READ_S):
                newest = {part: await self._newest(part, keys) for part, keys in wanted.items()}
        except TimeoutError:
            why = f"the states of its windows could not be read in {READ_S:.0f} s"
            step = ExplainStep(condition=operators.describe(), holds=True, found=why, wanted="to know")
            return [OperatorPreview(True, why, (step,), buffered=True)] * len(matches)
        return [preview(operators, match, states_in(newest[part], wheres, key)) for match, part, wheres, key in asked]

    async def _newest(self, part: int, wanted: set[bytes]) -> dict[bytes, bytes]:
        """Return the newest records of these keys.

        Reads the whole changelog, which is compacted.
        """
        found: dict[bytes, bytes] = {}
        async with contextlib.aclosing(read_partition(self._log, WINDOWS, part)) as batches:
            async for batch in batches:
                found |= {r.key: r.value for r in batch.records if r.key in wanted}
        return found
