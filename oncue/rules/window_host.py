"""The host of rules with memory on the embedded log: window.py says what is asked of it.

    oncue.matches ──batches──► fold (store, in its thread) ──► closed windows ──► TaskFrames, dead letters ──► log.commit
          ▲                                                                                                       │
          └── Tick, when a window is due or its rule has changed                 states + offsets, one transaction ◄┘

Killed before the log's commit: the batches come again, and fire. Killed after it: they come again, and the same tasks are
made with the same ids, which the server knows. Killed after the states are stored: nothing is left to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from oncue.ids import now_us, window_task_ids
from oncue.log.base import Batch, Log, Reader, Record
from oncue.messages import EVENT_BYTES, MATCHES, VERSION, DeadLetter, Deployment, Event, encode
from oncue.rules.book import Entry, Library, RuleBook
from oncue.rules.firing import Directory, Frames, Refusal, commit
from oncue.rules.matches import Closed, Tick, spec_hash
from oncue.rules.outlook import Outlook, outlook
from oncue.rules.rows import Rows
from oncue.rules.window import Where, window_id_seed
from oncue.rules.window_store import Group, Summary, WindowStore

GROUP = "windows"
MAX_BATCHES = 16  # folded and stored together
FORGET_S = 60.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


class WindowHost:
    """`run` until cancelled; `wake` when the rules have changed. `history` finds an older deployment by label and version."""

    def __init__(
        self,
        log: Log,
        directory: Directory,
        path: Path,
        book: Callable[[], RuleBook],
        *,
        before_batch: Callable[[], Awaitable[None]] | None = None,
        offload: Callable[[bytes], Awaitable[bytes]] | None = None,
        history: Callable[[str, int], Awaitable[Deployment | None]] | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._log, self._directory, self._book, self._path = log, directory, book, path
        self._before_batch, self._offload, self._history, self._clock_ms = before_batch, offload, history, clock_ms
        self._thread = ThreadPoolExecutor(1, "oncue-windows")
        self._store: WindowStore | None = None
        self._woken = asyncio.Event()
        self._due_ms: dict[int, int] = {}  # partition -> when the next of its windows closes
        self._ticked: dict[int, int] = {}  # partition -> offset of a tick that was not applied yet
        self._old: tuple[tuple[str, int], RuleBook] = (("", 0), RuleBook())  # the older deployment that was used last
        self._look_after = False  # that tick: windows of changed rules wait for one
        self._forget_at = 0.0
        self.fired = self.dead = 0  # windows and dead letters, since the start

    def wake(self) -> None:
        """The rules have changed: windows of operators that are gone close."""
        self._woken.set()

    async def run(self) -> None:
        """Raises LogError or DiskFull; run it again, it goes on where it was."""
        await self._start()
        reader = self._log.read([MATCHES], start=self._positions())
        try:
            self._woken.set()
            await self._go_on(reader)
        finally:
            await reader.close()

    async def close(self) -> None:
        """When `run` has ended."""
        store, self._store = self._store, None
        if store is not None:
            await self._call(store.close)
        self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[..., T], *values: object) -> T:
        """In the one thread that uses the store, to its end: also when the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *values)

    # ------------------------------------------------------------ starting

    async def _start(self) -> None:
        if self._store is None:
            self._store = await self._call(WindowStore, self._path)
        store = self._store
        begins, ends = await self._log.begin_offsets([MATCHES]), await self._log.end_offsets([MATCHES])
        for part, (following, _) in list(store.parts.items()):
            key = (MATCHES, part)
            if following > ends.get(key, 0):
                lost = await self._call(store.drop, part)
                _log.error(
                    "%s is not of this log: %d events in open windows of partition %d are dropped",
                    self._path,
                    lost,
                    part,
                )
            elif following < begins.get(key, 0):
                missed = begins[key] - following
                _log.error("%d matches of partition %d were forgotten by the log before they were read", missed, part)
        self._due_ms = {part: await self._call(store.next_due_ms, part) for part in store.parts}
        self._ticked = {}

    def _positions(self) -> dict[tuple[str, int], int]:
        assert self._store is not None
        return {(MATCHES, part): following for part, (following, _) in self._store.parts.items()}

    # ------------------------------------------------------------ going on

    async def _go_on(self, reader: Reader) -> None:
        reading = asyncio.ensure_future(reader.next(max_batches=MAX_BATCHES))
        try:
            while True:
                woken = asyncio.ensure_future(self._woken.wait())
                try:
                    await asyncio.wait(
                        {reading, woken}, timeout=self._patience_s(), return_when=asyncio.FIRST_COMPLETED
                    )
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

    def _patience_s(self) -> float | None:
        """Until the next window is due; for ever where none is."""
        due = [at for part, at in self._due_ms.items() if at and part not in self._ticked]
        return max(0.0, (min(due) - self._clock_ms()) / 1000) if due else None

    async def tick(self) -> None:
        """Say how late it is in the partitions where a window is due, or is of an operator that no rule has any more."""
        now_ms = self._clock_ms()
        retired = await self._retired() if self._woken.is_set() else {}
        due = {part for part, at in self._due_ms.items() if 0 < at <= now_ms}
        for part in sorted(due | set(retired)):
            if part in self._ticked:
                self._look_after |= part in retired
                continue
            record = Record(encode(Tick(VERSION, now_ms, tuple(sorted(retired.get(part, []))))))
            (position,) = await self._log.append(MATCHES, [record], part)
            self._ticked[part] = position.first

    async def _retired(self) -> dict[int, list[tuple[str, str]]]:
        """Partition -> (rule, spec) of the open windows that are of no operator in force."""
        self._woken.clear()
        if self._before_batch is not None:
            await self._before_batch()
        assert self._store is not None
        found: dict[int, list[tuple[str, str]]] = {}
        book = self._book()
        for part, rule, spec in await self._call(self._store.open_specs):
            if not _in_force(book, rule, spec):
                found.setdefault(part, []).append((rule, spec))
        return found

    async def step(self, batches: Sequence[Batch]) -> None:
        """Fold, fire, store."""
        if self._before_batch is not None:
            await self._before_batch()
        store = self._store
        assert store is not None
        group = await self._call(store.fold_batches, batches)
        frames = Frames(self._directory, now_us())
        counted = await self._fire(group, frames)
        if self._offload is not None:
            await frames.offload(self._offload)
        appends = frames.appends()
        if appends:
            await commit(self._log, GROUP, batches, appends)
        await self._call(store.store, group)
        self._count(group, counted, len(frames.dead))
        await self._look_again(store, group)

    async def _look_again(self, store: WindowStore, group: Group) -> None:
        for part, (following, _) in group.next.items():
            self._due_ms[part] = await self._call(store.next_due_ms, part)
            if self._ticked.get(part, following) < following:
                del self._ticked[part]
                if self._look_after:
                    self._look_after = False
                    self._woken.set()
        book = self._book()
        if group.retiring or any(not _in_force(book, rule, spec) for rule, spec in group.opened()):
            self._woken.set()
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + FORGET_S
            await self._call(store.forget)

    # ------------------------------------------------------------ firing

    async def _fire(self, group: Group, frames: Frames) -> list[tuple[Entry | None, int, str]]:
        """(rule, tasks, reason for a dead letter) of each closed window."""
        counted: list[tuple[Entry | None, int, str]] = []
        for bad in group.bad:
            letter = DeadLetter(
                VERSION, "match", bad.why[:2_000], frames.now_us, MATCHES, bad.batch.partition, bad.offset,
                record=bad.record.value[:EVENT_BYTES],
            )  # fmt: skip
            frames.dead.append(letter)
        for batch, offset, closed in group.closed:
            entry = self._book().entries.get(closed.rule)
            try:
                counted.append((entry, await self._fire_one(entry, closed, frames), ""))
            except Refusal as e:
                counted.append((entry, 0, e.reason))
                frames.dead.append(_letter(closed, entry, batch.partition, offset, e, frames.now_us))
            except Exception as e:
                counted.append((entry, 0, f"{type(e).__name__}: {e}"))
                refusal = Refusal("window", f"{type(e).__name__}: {e}")
                frames.dead.append(_letter(closed, entry, batch.partition, offset, refusal, frames.now_us))
        return counted

    async def _fire_one(self, entry: Entry | None, closed: Closed, frames: Frames) -> int:
        """By the rule in force; where its arguments need what the events were not held with, by the version that they
        matched under."""
        if entry is None:
            raise Refusal(
                "window", f"there is no rule {closed.rule!r} any more", "deploy it again, then `oncue dead retry N`"
            )
        if entry.asleep:
            remedy = f"oncue rules enable {closed.rule}, then `oncue dead retry N` (N: this letter's number)"
            raise Refusal("window", f"the rule is disabled: {entry.asleep}", remedy)
        memory = entry.rule.memory
        if memory is None or not set(memory.needs.names) <= set(closed.needs):
            entry = await self._older(closed)
        ready = frames.prepare(entry, Rows.of(closed))
        task_ids = window_task_ids(window_id_seed(closed), closed.opened_ms, len(ready))
        first, last = closed.events[0], closed.events[-1]
        frames.add(entry, ready, task_ids, (first.source, first.id), last.mark_us)
        return len(ready)

    async def _older(self, closed: Closed) -> Entry:
        wanted = (closed.label, closed.version)
        if self._old[0] != wanted:
            found = await self._history(*wanted) if self._history is not None else None
            self._old = (wanted, Library().book([found] if found is not None else []))
        entry = self._old[1].entries.get(closed.rule)
        if entry is None:
            raise Refusal(
                "window",
                f"the rule has changed, and {closed.label}@{closed.version}, under which the events matched, is not kept",
                "deploy it with the arguments that it had, then `oncue dead retry N` (N: this letter's number)",
            )
        return entry

    def _count(self, group: Group, counted: Sequence[tuple[Entry | None, int, str]], dead: int) -> None:
        self.fired += sum(1 for _, tasks, _ in counted if tasks)
        self.dead += dead
        for entry, tasks, reason in counted:
            if entry is not None:
                entry.counters.fired += tasks
                entry.counters.failed += bool(reason)
                entry.counters.last_reason = reason or entry.counters.last_reason
        entries = self._book().entries
        for rule, count in group.suppressed.items():
            if rule in entries:
                entries[rule].counters.suppressed += count

    # ------------------------------------------------------------ looking

    async def outlook(self, entry: Entry, event: Event) -> Outlook:
        """What dedupe and batch would do with this event now. Raises Invalid: it lacks a field."""
        rule, store = entry.rule, self._store
        memory = rule.memory
        if memory is None or store is None:
            return Outlook(True, "", ())
        match = memory.match(rule.name, "", 0, event, self._clock_ms(), 0)
        wheres = [Where(rule.name, spec_hash(stage.spec, match.needs), stage.key) for stage in match.stages]
        found = await self._call(store.look, wheres, event.source, event.id)
        return outlook(memory, match, found)

    async def summary(self) -> dict[str, Summary]:
        """Rule -> its open windows, of those that have any."""
        store = self._store
        return {} if store is None else await self._call(store.summary)


def _in_force(book: RuleBook, rule: str, spec: str) -> bool:
    entry = book.entries.get(rule)
    if entry is None:
        return bool(book.broken)  # it may be in a file that this version cannot read: then its windows wait
    return entry.rule.memory is not None and spec in entry.rule.memory.hashes


def _letter(
    closed: Closed, entry: Entry | None, partition: int, offset: int, refusal: Refusal, at_us: int
) -> DeadLetter:
    """Of a whole window: tried again, it is the same window."""
    first, last = closed.events[0], closed.events[-1]
    reason = refusal.reason
    if len(closed.events) > 1:
        reason = f"a batch of {len(closed.events):,} events, {first.id} ({first.source}) to {last.id}: {reason}"
    return DeadLetter(
        VERSION,
        refusal.stage,
        reason[:2_000],
        at_us,
        MATCHES,
        partition,
        offset,
        closed.rule,
        (first.source, first.id),
        encode(closed),
        refusal.remedy,
        entry.deployment.owner if entry else "",
    )
