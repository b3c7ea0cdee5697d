"""EmbeddedRunner: runs stateful rules on the embedded log (contract: fold.py).

    oncue.matches ─batches─► fold (in the store's thread) ──► closed windows
          ▲                                                           │
          │                             TaskFrames, dead letters ◄────┘
          │                               └─► log.commit ──► states + offsets, one transaction
          └── Tick, when a window is due or its rule has changed

After a kill before the log's commit, the batches are delivered again and fire. After a kill between
that commit and the states' transaction, they are delivered again and give tasks with the same ids,
which the server recognises. After both nothing is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from oncue.clocks.process import now_ms
from oncue.errors import Invalid
from oncue.log.base import Log, Reader, RecordBatch, partition_of
from oncue.protocol.records import Deployment, Event
from oncue.protocol.topics import MATCHES
from oncue.rules.active_rules import ActiveRule, ActiveRules
from oncue.rules.evaluation.judge import RuleJudge
from oncue.rules.operators.preview import OperatorPreview, preview
from oncue.rules.stateful.firing import Firer, in_force, limits_in_force, retired
from oncue.rules.stateful.limits import all_state_keys
from oncue.rules.stateful.record_group import Queue, RecordGroup, WindowSummary
from oncue.rules.stateful.sqlite_states import FORGET_ROWS, SqliteStates
from oncue.rules.stateful.timers import Limits, Retired, Timers
from oncue.rules.task_frames import EndpointDirectory, commit

GROUP = "windows"
MAX_BATCHES = 16  # folded and stored together
FORGET_S, FORGET_MORE_S = 60.0, 1.0  # between two looks for states without effect; if there are more
T = TypeVar("T")
_log = logging.getLogger(__name__)


class EmbeddedRunner:
    """Runs stateful rules with states in SQLite.

    `run` until cancelled, `wake` when rules change. `history` returns an older deployment by label
    and version.
    """

    def __init__(
        self,
        log: Log,
        directory: EndpointDirectory,
        path: Path,
        active_rules: Callable[[], ActiveRules],
        *,
        before_batch: Callable[[], Awaitable[None]] | None = None,
        offload: Callable[[bytes], Awaitable[bytes]] | None = None,
        history: Callable[[str, int], Awaitable[Deployment | None]] | None = None,
        judge: RuleJudge | None = None,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._log, self._active_rules, self._path = log, active_rules, path
        self._before_batch, self._clock_ms = before_batch, clock_ms
        self._thread = ThreadPoolExecutor(1, "oncue-windows")
        self._store: SqliteStates | None = None
        self._partitions = 1  # known once it runs
        self._timers = Timers()
        self.firer = Firer(directory, active_rules, offload, history, judge)
        self._forget_at = 0.0

    def wake(self) -> None:
        """The rules have changed: close windows of removed operators."""
        self._timers.rules_changed.set()

    async def run(self) -> None:
        """Run until cancelled. Raises LogError or DiskFull; a new call resumes."""
        await self._start()
        reader = self._log.read([MATCHES], start=self._positions())
        try:
            self._timers.rules_changed.set()
            await self._go_on(reader)
        finally:
            await reader.close()

    async def close(self) -> None:
        """Close the store, after `run` has ended."""
        store, self._store = self._store, None
        if store is not None:
            await self._call(store.close)
        self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[..., T], *values: object) -> T:
        """Run in the store's thread.

        The call completes even when the caller is cancelled.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *values)

    # ------------------------------------------------------------ starting

    async def _start(self) -> None:
        if self._store is None:
            self._store = await self._call(SqliteStates, self._path)
        store = self._store
        begins, ends = await self._log.begin_offsets([MATCHES]), await self._log.end_offsets([MATCHES])
        self._partitions = len(ends)
        for part, (following, _) in list(store.parts.items()):
            key = (MATCHES, part)
            if following > ends.get(key, 0):
                lost = await self._call(store.drop, part)
                _log.error(
                    "%s belongs to another log: %d events in open windows of partition %d are dropped",
                    self._path,
                    lost,
                    part,
                )
            elif following < begins.get(key, 0):
                missed = begins[key] - following
                _log.error("%d matches of partition %d were deleted from the log before they were read", missed, part)
        if moved := await self._call(store.follow_clock, self._clock_ms()):
            _log.warning("the clock was ahead before, or is behind now: %d windows and keys begin now", moved)
        self._timers.restart({part: await self._call(store.next_due_ms, part) for part in store.parts})

    def positions(self) -> dict[tuple[str, int], int]:
        """Return up to which offsets matches are folded, and what fired is durable."""
        return self._positions() if self._store is not None else {}

    def _positions(self) -> dict[tuple[str, int], int]:
        assert self._store is not None
        return {(MATCHES, part): following for part, (following, _) in self._store.parts.items()}

    # ------------------------------------------------------------ going on

    async def _go_on(self, reader: Reader) -> None:
        reading = asyncio.ensure_future(reader.next(max_batches=MAX_BATCHES))
        try:
            while True:
                woken = asyncio.ensure_future(self._timers.rules_changed.wait())
                try:
                    next_due_s = self._timers.next_due_s(self._clock_ms())
                    await asyncio.wait({reading, woken}, timeout=next_due_s, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    woken.cancel()
                if reading.done():
                    batches = reading.result()
                    reading = asyncio.ensure_future(reader.next(max_batches=MAX_BATCHES))
                    await self.step(batches)
                await self.tick()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def tick(self) -> None:
        """Append a Tick to each partition that needs one.

        It has a due window, or an open window of a removed operator.
        """
        now_ms = self._clock_ms()
        retired, limits = await self._changed() if self._timers.rules_changed.is_set() else ({}, {})
        await self._timers.append(self._log, now_ms, retired, limits)

    async def _changed(self) -> tuple[Retired, Limits]:
        self._timers.rules_changed.clear()
        if self._before_batch is not None:
            await self._before_batch()
        assert self._store is not None
        specs = await self._call(self._store.open_specs)
        return retired(self._active_rules(), specs), limits_in_force(self._active_rules(), specs)

    async def step(self, batches: Sequence[RecordBatch]) -> None:
        """Fold the batches, commit the firings, then store the states."""
        if self._before_batch is not None:
            await self._before_batch()
        store = self._store
        assert store is not None
        group = await self._call(store.fold_batches, batches)
        fired = await self.firer.fire(group)
        if fired.appends:  # the offset is stored with the states, not as the group's in the log
            await commit(self._log, GROUP, (), fired.appends)
        await self._call(store.store, group)
        self.firer.count(group, fired)
        await self._update_timers(store, group)

    async def _update_timers(self, store: SqliteStates, group: RecordGroup) -> None:
        for part, (following, _) in group.next.items():
            self._timers.applied(part, following, await self._call(store.next_due_ms, part))
        active_rules = self._active_rules()
        if group.retiring or any(not in_force(active_rules, rule, spec) for rule, spec in group.opened):
            self._timers.rules_changed.set()
        if time.monotonic() >= self._forget_at:
            forgot_all = await self._call(store.forget) < FORGET_ROWS
            self._forget_at = time.monotonic() + (FORGET_S if forgot_all else FORGET_MORE_S)

    # ------------------------------------------------------------ queries

    async def preview(self, entry: ActiveRule, event: Event) -> OperatorPreview:
        """Preview the rule's operators for this event, now.

        Raises Invalid: the event lacks a field.
        """
        rule, store = entry.rule, self._store
        operators = rule.operators
        if operators is None or store is None:
            return OperatorPreview(True, "", ())
        match = operators.match(rule.name, "", 0, event, self._clock_ms(), 0)
        part = partition_of(operators.partition_key(match), self._partitions)
        found = await self._call(store.states_of, part, all_state_keys(match), event.source, event.id)
        return preview(operators, match, found)

    async def buffers(self, entry: ActiveRule, events: Sequence[Event]) -> list[bool]:
        """Return for each event if an operator or a limit of the rule holds it."""
        held = [False] * len(events)
        for number, event in enumerate(events):
            with contextlib.suppress(Invalid):  # it lacks a field that a newer version of the rule needs
                held[number] = (await self.preview(entry, event)).buffered
        return held

    async def summary(self) -> dict[str, WindowSummary]:
        """Return rule -> summary, of rules with open windows."""
        store = self._store
        return {} if store is None else await self._call(store.summary)

    async def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]:
        """Return the first firings that wait, of a rule's limiters."""
        store = self._store
        return [] if store is None else await self._call(store.queues, rule, limiters)
