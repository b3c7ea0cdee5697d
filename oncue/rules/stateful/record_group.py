"""RecordGroup: batches of `oncue.matches`, folded and committed together."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from oncue.errors import OncueError
from oncue.log.base import Record, RecordBatch
from oncue.protocol.codec import decode
from oncue.rules.limiters.base import LimiterState
from oncue.rules.operators.records import ClosedWindow, Match, MatchesRecord, Tick
from oncue.rules.stateful.fold import StateKey, check_operators
from oncue.rules.stateful.limits import check_limiters, fold_record
from oncue.rules.stateful.pending_changes import PendingChanges


class Progress(NamedTuple):
    """Next offset to apply in a partition, and the newest time in it."""

    next: int = 0
    newest_ms: int = 0


class WindowSummary(NamedTuple):
    """Summary of a rule's open windows."""

    windows: int
    events: int
    due_ms: int  # when the next window closes by time; 0: none does


Queue = tuple[StateKey, LimiterState]  # firings of a key that wait for a limiter
MOST_QUEUES = 20  # that are shown of a limiter


class BadRecord(NamedTuple):
    """A record that cannot be folded."""

    batch: RecordBatch
    offset: int
    record: Record
    why: str


class RecordGroup:
    def __init__(self) -> None:
        # Closed windows, each with the batch and offset of the record that closed it.
        self.closed: list[tuple[RecordBatch, int, ClosedWindow]] = []
        self.bad: list[BadRecord] = []
        self.suppressed: dict[str, int] = {}  # rule -> events
        self.next: dict[int, Progress] = {}  # partition -> progress after the group
        # A tick has closed windows of removed operators, possibly not all of them.
        self.retiring = False
        self.opened: set[tuple[str, str]] = set()  # (rule, operator_id): windows with new events

    def add(
        self,
        batch: RecordBatch,
        states: PendingChanges,
        before: Progress,
        prefetch: Callable[[list[Match]], None] | None = None,
    ) -> None:
        """Fold a batch of the states' partition.

        Records that are applied already are skipped.
        """
        following, newest = self.next.get(batch.partition, before)
        found = self._decoded(batch, following)
        if prefetch is not None:
            prefetch([content for _, _, content in found if isinstance(content, Match)])
        for offset, record, content in found:
            try:
                fired = fold_record(states, content, batch.partition, offset)
            except sqlite3.Error:
                raise
            except Exception as e:
                self.bad.append(BadRecord(batch, offset, record, f"{type(e).__name__}: {e}"))
                continue
            self.closed += [(batch, offset, closed) for closed in fired]
            if isinstance(content, Match | Tick):
                newest = max(newest, content.at_ms)
                self.retiring |= isinstance(content, Tick) and bool(content.retired)
        for rule, count in states.drain_suppressed().items():
            self.suppressed[rule] = self.suppressed.get(rule, 0) + count
        self.opened |= {where[:2] for where in states.opened()}
        self.next[batch.partition] = Progress(max(following, batch.next_offset), newest)

    def _decoded(self, batch: RecordBatch, following: int) -> list[tuple[int, Record, MatchesRecord]]:
        found: list[tuple[int, Record, MatchesRecord]] = []
        for offset, record in zip(batch.offsets, batch.records, strict=True):
            if offset < following:
                continue
            try:
                content: MatchesRecord = decode(
                    MatchesRecord,  # type: ignore[arg-type]
                    record.value,
                )
                if isinstance(content, Match):
                    check_operators(content)
                    if content.limiters:
                        check_limiters(content)
                found.append((offset, record, content))
            except OncueError as e:
                self.bad.append(BadRecord(batch, offset, record, e.message))
        return found
