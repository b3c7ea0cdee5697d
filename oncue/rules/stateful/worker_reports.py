"""Reports of stream workers in `oncue.stream`.

StreamWorkers is a server's view of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from oncue.clocks.process import now_ms
from oncue.errors import Undecodable
from oncue.log.base import Log, Topic
from oncue.protocol.codec import decode
from oncue.protocol.records import Stored
from oncue.protocol.topics import STREAM
from oncue.rules.stateful.record_group import WindowSummary

REPORT_S = 2.0
REASON_CHARS = 300
SOON_S = 0.2  # delay of a report after a firing, and between two reports
SILENT_S = 10.0  # then a worker counts as stopped
TOPIC = Topic(compact=True)


class RuleReport(Stored, frozen=True):
    """One rule in the partitions of one worker.

    Counters count since the worker's start.
    """

    rule: str
    windows: int
    events: int
    due_ms: int  # of the next window that closes by time; 0: none does
    fired: int
    suppressed: int
    failed: int
    reason: str = ""  # of the newest dead letter, or of events that were dropped
    shadow: int = 0
    empty: int = 0


class StreamReport(Stored, frozen=True):
    v: int
    worker: str  # host:pid, also the record's key
    at_us: int
    version: str
    partitions: tuple[int, ...]  # of `oncue.matches` that it has
    rules: tuple[RuleReport, ...]


class StreamWorkers:
    """The newest report of each worker, aged by the server's clock.

    `run` until cancelled.
    """

    def __init__(self, log: Log, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock_s = log, clock_s
        self._reports: dict[bytes, tuple[float, StreamReport]] = {}
        # rule -> (fired, suppressed), since this process began to read
        self.counted: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        """Read reports until cancelled. Raises LogError."""
        old = (await self._log.end_offsets([STREAM])).get((STREAM, 0), 0)
        reader = self._log.read([STREAM], start="earliest")
        try:
            async for batch in reader:
                for offset, record in zip(batch.offsets, batch.records, strict=True):
                    self.apply(record.key, record.value, offset < old, offset >= old or _young(record.time_ms))
        finally:
            await reader.close()

    def apply(self, key: bytes, value: bytes, before: bool = False, fresh: bool = True) -> None:
        """Apply one report.

        `before`: written before this process began; old ones are ignored.
        """
        if not value:  # the worker stopped cleanly
            self._reports.pop(key, None)
        elif fresh:
            try:
                report = decode(StreamReport, value)
            except Undecodable:
                return  # written by another version
            if not before:
                self._count(self._reports.get(key), report)
            self._reports[key] = (self._clock_s(), report)

    def _count(self, last: tuple[float, StreamReport] | None, report: StreamReport) -> None:
        old = {r.rule: r for r in last[1].rules} if last else {}
        for r in report.rules:
            was, (fired, suppressed) = old.get(r.rule), self.counted.get(r.rule, (0, 0))
            more = (r.fired - was.fired, r.suppressed - was.suppressed) if was else (r.fired, r.suppressed)
            self.counted[r.rule] = (fired + max(0, more[0]), suppressed + max(0, more[1]))

    def alive(self) -> list[StreamReport]:
        now = self._clock_s()
        return [report for at, report in self._reports.values() if now - at < SILENT_S]

    def partitions(self) -> set[int]:
        """Return the partitions that some worker has."""
        return {number for report in self.alive() for number in report.partitions}

    def rules(self) -> dict[str, RuleReport]:
        return summed(rule for report in self.alive() for rule in report.rules)

    def summary(self) -> dict[str, WindowSummary]:
        return {r.rule: WindowSummary(r.windows, r.events, r.due_ms) for r in self.rules().values() if r.windows}


def summed(reports: Iterable[RuleReport]) -> dict[str, RuleReport]:
    """Return rule -> sum over the workers' reports."""
    found: dict[str, RuleReport] = {}
    for r in reports:
        one = found.get(r.rule, RuleReport(r.rule, 0, 0, 0, 0, 0, 0))
        found[r.rule] = RuleReport(
            r.rule,
            one.windows + r.windows,
            one.events + r.events,
            min(filter(None, (one.due_ms, r.due_ms)), default=0),
            one.fired + r.fired,
            one.suppressed + r.suppressed,
            one.failed + r.failed,
            r.reason or one.reason,
            one.shadow + r.shadow,
            one.empty + r.empty,
        )
    return found


def _young(time_ms: int) -> bool:
    """Return True if a report is recent by its writer's clock.

    For reports that are older than this process.
    """
    return abs(now_ms() - time_ms) < SILENT_S * 1000
