"""ServerRunner: KafkaRunner inside one of several servers that share a log.

The acting server runs all partitions. States are in the log, so the next acting server resumes with
all of them even if the former one was killed or paused, and even where the log has deleted the
records of `oncue.matches`.

    oncue.matches ──reader──► KafkaRunner ──► tasks, dead letters, oncue.windows
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Sequence
from typing import Any

from oncue.errors import LogError, OncueError, Undecodable
from oncue.log.base import Log, Reader
from oncue.protocol.records import Event
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.active_rules import ActiveRule
from oncue.rules.operators.preview import OperatorPreview
from oncue.rules.stateful.changelog_reader import ChangelogReader
from oncue.rules.stateful.changelog_states import ChangelogStates
from oncue.rules.stateful.handover import mark_for_servers, read_states
from oncue.rules.stateful.kafka_runner import KafkaRunner, PartitionFence
from oncue.rules.stateful.record_group import Queue, WindowSummary
from oncue.rules.stateful.remote import expired_matches
from oncue.rules.task_frames import EndpointDirectory

STEP = 500  # matches: folding them takes the server's loop some 15 ms
_log = logging.getLogger(__name__)


class ServerRunner:
    """Runs stateful rules while this server acts for them.

    Arguments are those of KafkaRunner.
    """

    def __init__(
        self,
        log: Log,
        fence: PartitionFence,
        directory: EndpointDirectory,
        server: str,
        partitions: int,
        log_url: str,
        **more: Any,
    ) -> None:
        self._log, self._fence, self._partitions, self._log_url = log, fence, partitions, log_url
        self._runner = KafkaRunner(log, fence, directory, worker=server, for_servers=True, step=STEP, **more)
        self._changelog = ChangelogReader(log, partitions)
        self.trouble = ""  # why it cannot run; "": it can

    def wake(self) -> None:
        self._runner.wake()

    async def run(self) -> None:
        """Run until cancelled; a new call resumes.

        Raises LogError; NotOwner: another process has the partitions.
        """
        runner = self._runner
        runner.claim_lost.clear()
        try:
            await self._claim()
            reader = self._log.read([MATCHES], start={(MATCHES, n): at for n, at in runner.positions().items()})
            parts = [
                asyncio.create_task(part) for part in (self._feed(reader), runner.run(), self._fail_on_lost_claim())
            ]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in parts:
                    if part.done():
                        part.result()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
                await reader.close()
        finally:
            await runner.close()

    async def _claim(self) -> None:
        runner = self._runner
        if self.trouble:  # do not fence a process that repairs it
            await self._checked_states()
        await runner.claim(range(self._partitions))
        found = await self._checked_states()
        for number, table in found.items():
            await mark_for_servers(self._log, number, table)
            runner.restored(number, table)
        await runner.check()
        _log.info("this server runs stateful rules, in %d partitions", len(runner.ready()))

    async def _checked_states(self) -> dict[int, ChangelogStates]:
        """Read the states.

        Raises LogError, Undecodable: `trouble` says why they cannot be used.
        """
        try:
            found = await read_states(self._log)
        except Undecodable as e:
            raise self._unusable(e) from None
        await self._check(found)
        return found

    def _unusable(self, error: OncueError) -> OncueError:
        self.trouble = f"stateful rules wait: {error.message}; {error.remedy}"
        return error

    async def _check(self, found: dict[int, ChangelogStates]) -> None:
        """Raises LogError: states and matches do not belong together."""
        begins, ends = await self._log.begin_offsets([MATCHES]), await self._log.end_offsets([MATCHES])
        self.trouble = ""
        if left := [n for n, table in found.items() if not table.started and begins.get((MATCHES, n), 0)]:
            anew = (
                f"start the server that ran them, or begin anew: oncue stream --anew --log {shlex.quote(self._log_url)}"
            )
            raise self._unusable(LogError(expired_matches(left), remedy=anew))
        for number, table in found.items():
            end, begin = ends.get((MATCHES, number), 0), begins.get((MATCHES, number), 0)
            if table.progress.next > end:
                why = f"the states of partition {number} belong to another {MATCHES}: they are ahead of its end"
                remedy = f"stop servers and stream workers, and delete the topic {WINDOWS}: it is made again"
                raise self._unusable(LogError(why, remedy=remedy))
            missed = begin - table.progress.next
            if missed > 1:  # one: the marker of the last transaction
                _log.error("%d matches of partition %d were deleted from the log before they were read", missed, number)

    async def _feed(self, reader: Reader) -> None:
        async for batch in reader:
            for offset, record in zip(batch.offsets, batch.records, strict=True):
                await self._runner.enqueue(batch.partition, offset, record)

    async def _fail_on_lost_claim(self) -> None:
        await self._runner.claim_lost.wait()
        raise LogError("another process has claimed partitions of stateful rules")

    async def close(self) -> None:
        """Nothing to close after `run` has ended."""

    # ------------------------------------------------------------ queries

    async def summary(self) -> dict[str, WindowSummary]:
        """Return rule -> summary; empty while another server runs the rules."""
        return self._runner.summary()

    async def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]:
        """Return the first firings that wait; none while another server runs the rules."""
        return self._runner.queues(rule, limiters)

    async def preview(self, entry: ActiveRule, event: Event) -> OperatorPreview:
        """Return the preview by stored states, whichever server runs the rules.

        Raises Invalid.
        """
        return await self._changelog.preview(entry, event)

    async def buffers(self, entry: ActiveRule, events: Sequence[Event]) -> list[bool]:
        """Return for each event if an operator or a limit of the rule holds it."""
        return await self._changelog.buffers(entry, events)
