"""RemoteRules: stateful rules that stream workers run, as seen by a server."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from oncue.log.base import Log
from oncue.protocol.records import Event
from oncue.protocol.topics import MATCHES
from oncue.rules.active_rules import ActiveRule
from oncue.rules.operators.preview import OperatorPreview
from oncue.rules.stateful.changelog_reader import ChangelogReader
from oncue.rules.stateful.record_group import Queue, WindowSummary
from oncue.rules.stateful.worker_reports import StreamWorkers


class RemoteRules:
    """Takes the place of a runner: reads the workers' reports and their changelog."""

    def __init__(self, log: Log, workers: StreamWorkers, partitions: int, left: Sequence[int] = ()) -> None:
        """`left`: partitions that this server could not hand over."""
        self.workers, self._partitions, self._left = workers, partitions, left
        self._changelog = ChangelogReader(log, partitions)

    async def run(self) -> None:
        await self.workers.run()

    async def close(self) -> None:
        """Nothing to close."""

    def wake(self) -> None:
        """The workers read the registry themselves."""

    def trouble(self, log_url: str) -> str:
        """Return why stateful rules do not run now; "": they do."""
        having = self.workers.partitions()
        missing = sorted(set(range(self._partitions)) - having)
        if not missing:
            return ""
        if stuck := [number for number in missing if number in self._left]:
            return (
                f"stateful rules wait: {expired_matches(stuck)}; start the server that ran them with"
                f' rules_memory = "stream", or begin anew: oncue stream --anew --log {shlex.quote(log_url)}'
            )
        if not having:
            command = f"oncue stream --log {shlex.quote(log_url)}"
            return f"stateful rules do not run: no stream worker reports; start one: {command}"
        return f"no stream worker has the partitions {_list(missing)} of {MATCHES} yet: that takes some seconds"

    async def summary(self) -> dict[str, WindowSummary]:
        return self.workers.summary()

    async def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]:
        """Return nothing: the workers do not report single keys."""
        return []

    async def preview(self, entry: ActiveRule, event: Event) -> OperatorPreview:
        """Return the preview by the states that the workers stored.

        Raises Invalid: a field is missing.
        """
        return await self._changelog.preview(entry, event)

    async def buffers(self, entry: ActiveRule, events: Sequence[Event]) -> list[bool]:
        """Return for each event if an operator or a limit of the rule holds it."""
        return await self._changelog.buffers(entry, events)


def expired_matches(numbers: Sequence[int]) -> str:
    return (
        f"the log has deleted the first matches of the partitions {_list(numbers)}, and the states that a server had of"
        " them are not here"
    )


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
