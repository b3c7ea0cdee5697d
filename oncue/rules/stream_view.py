"""Rules with memory as a server sees them when stream workers run them: by their reports, and by their changelog."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Sequence

from oncue.log.base import Log, partition_of
from oncue.messages import MATCHES, WINDOWS, Event
from oncue.resources import ExplainStep
from oncue.rules.book import Entry
from oncue.rules.matches import spec_hash
from oncue.rules.outlook import Outlook, outlook
from oncue.rules.stream_report import Workers
from oncue.rules.window import Where
from oncue.rules.window_group import Summary
from oncue.rules.window_overlay import event_key
from oncue.rules.window_table import looked_up, wanted_keys

LOOK_S = 5.0


class StreamWindows:
    """In the place of a WindowHost, which runs them itself."""

    def __init__(self, log: Log, workers: Workers, partitions: int, left: Sequence[int] = ()) -> None:
        """`left`: partitions that this server could not hand over."""
        self._log, self.workers, self._partitions, self._left = log, workers, partitions, left

    async def run(self) -> None:
        await self.workers.run()

    async def close(self) -> None:
        """Nothing is open."""

    def wake(self) -> None:
        """The workers read the registry themselves."""

    def trouble(self, log_url: str) -> str:
        """Why rules with memory do not run now; "": they do."""
        having = self.workers.partitions()
        missing = sorted(set(range(self._partitions)) - having)
        if not missing:
            return ""
        if stuck := [number for number in missing if number in self._left]:
            return (
                f"rules with memory wait: the log has forgotten the first matches of the partitions {_list(stuck)}, and what a"
                ' server remembered of them is not here; start the server that ran them with rules_memory = "stream", or begin'
                f" anew: oncue stream --anew --log {shlex.quote(log_url)}"
            )
        if not having:
            command = f"oncue stream --log {shlex.quote(log_url)}"
            return f"rules with memory do not run: no stream worker is heard of; start one: {command}"
        return f"no stream worker has the partitions {_list(missing)} of {MATCHES} yet: that takes some seconds"

    async def summary(self) -> dict[str, Summary]:
        return self.workers.summary()

    async def outlook(self, entry: Entry, event: Event) -> Outlook:
        """By what the workers have stored. Raises Invalid: the event lacks a field."""
        rule, memory = entry.rule, entry.rule.memory
        if memory is None:
            return Outlook(True, "", ())
        match = memory.match(rule.name, "", 0, event, time.time_ns() // 1_000_000, 0)
        wheres = [Where(rule.name, spec_hash(stage.spec, match.needs), stage.key) for stage in match.stages]
        key = event_key(event.source, event.id)
        part = partition_of(memory.place(match), self._partitions)
        try:
            async with asyncio.timeout(LOOK_S):
                said = await self._newest(part, wanted_keys(wheres, key))
        except TimeoutError:
            why = f"a stream worker holds its windows; the changelog could not be read in {LOOK_S:.0f} s"
            return Outlook(True, why, (ExplainStep(condition=memory.text(), holds=True, found=why, wanted="to know"),))
        return outlook(memory, match, looked_up(said, wheres, key))

    async def _newest(self, part: int, wanted: set[bytes]) -> dict[bytes, bytes]:
        """What the changelog says last of these keys: it is read from its beginning, which compaction keeps short."""
        ends = await self._log.end_offsets([WINDOWS])
        found: dict[bytes, bytes] = {}
        end = ends.get((WINDOWS, part), 0)
        if (await self._log.begin_offsets([WINDOWS])).get((WINDOWS, part), 0) >= end:
            return found
        reader = self._log.read([WINDOWS], start={place: at for place, at in ends.items() if place[1] != part})
        try:
            while True:
                for batch in await reader.next():
                    if batch.partition != part:
                        continue
                    found |= {r.key: r.value for r in batch.records if r.key in wanted}
                    if batch.next_offset >= end:
                        return found
        finally:
            await reader.close()


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
