"""The rules' engine: from `oncue.events` to tasks.

    oncue.events ──batches──► decode ─► index ─► decide ─► arguments ─► TaskFrames, one an endpoint and cue
                                 │                            │
                                 └── oncue.dead (reason) ◄────┘        commit("rules", batches, appends): all or nothing

If the process dies before the commit, the batches come again and make the same tasks: their ids follow from rule and event.
One bad event or rule costs a dead letter, and no other event or rule anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from oncue import cloudevents
from oncue.errors import DiskFull, LogError, NotFound, NotOwner, OncueError
from oncue.ids import now_us, rule_task_ids
from oncue.log.base import Append, Batch, Log, Record
from oncue.messages import (
    DEAD,
    EVENT_BYTES,
    EVENTS,
    VERSION,
    Call,
    DeadLetter,
    Deployment,
    Event,
    RuleSwitch,
    Task,
    TaskFrame,
    encode,
    tasks_topic,
)
from oncue.payload import needs_blob
from oncue.resources import Explanation, RuleInfo
from oncue.rules.book import Cue, Entry, Library, RuleBook
from oncue.rules.explain import decide, explain

GROUP = "rules"
MAX_DEPTH = 16  # an event caused by an event caused by ...: a loop
MAX_BATCHES = 16  # in one commit
FRAME_TASKS, FRAME_BYTES = 1_024, 1024 * 1024
BREATH = 256  # events between looks at the event loop
TRIES = 8  # of a commit, unless the disk is full: that is waited out
_log = logging.getLogger(__name__)


class Directory(Protocol):
    """What the server knows of endpoints."""

    def endpoint_id(self, name: str, owner: str) -> str | None:
        """The endpoint of this name (or id) that the owner may use."""
        ...


class Engine:
    """`run` until cancelled; `update` swaps the rules between two events' batches. `offload` turns a payload that is too
    large to travel inline into a reference to a blob that is durable."""

    def __init__(
        self,
        log: Log,
        directory: Directory,
        *,
        before_batch: Callable[[], Awaitable[None]] | None = None,
        offload: Callable[[bytes], Awaitable[bytes]] | None = None,
        group: str = GROUP,
        replay: str = "",
    ) -> None:
        self._log, self._directory, self._group, self._replay = log, directory, group, replay
        self._before_batch, self._offload = before_batch, offload
        self._library = Library()
        self.book = RuleBook()
        self.events = self.dead = 0  # seen, and dead letters written, since the start

    def update(self, deployments: Iterable[Deployment], switches: Iterable[RuleSwitch] = ()) -> RuleBook:
        """Put these in force. A deployment that cannot be read is named in `book.broken`, and the others work."""
        self.book = self._library.book(deployments, switches)
        return self.book

    async def run(self) -> None:
        """Raises LogError when the log is closed or will not take a commit; what was not committed comes again."""
        reader = self._log.read([EVENTS], group=self._group)
        try:
            while True:
                await self.step(await reader.next(max_batches=MAX_BATCHES))
        finally:
            await reader.close()

    async def step(self, batches: Sequence[Batch]) -> None:
        """What these batches cause, committed; where they are another server's by now, nothing."""
        if self._before_batch is not None:
            await self._before_batch()
        work = _Work(self.book, self._directory, self._replay)
        for batch in batches:
            for start in range(0, len(batch.records), BREATH):
                for offset, record in zip(
                    batch.offsets[start : start + BREATH], batch.records[start : start + BREATH], strict=True
                ):
                    work.record(batch, offset, record)
                await asyncio.sleep(0)
        if self._offload is not None:
            await work.offload(self._offload)
        try:
            await self._commit(batches, work.appends())
        except NotOwner as e:
            _log.info("left to another server: %s", e.message)
            return
        work.count()
        self.events += sum(len(b.records) for b in batches)
        self.dead += len(work.dead)

    async def _commit(self, batches: Sequence[Batch], appends: Sequence[Append]) -> None:
        pause, tries = 0.1, 0
        while True:
            try:
                await self._log.commit(self._group, batches, appends)
                return
            except NotOwner:
                raise
            except LogError as e:
                tries += 1
                if tries >= TRIES:
                    raise
                _log.warning("the rules' commit failed, trying again in %.1f s: %s", pause, e.message)
            except DiskFull as e:
                _log.warning("the rules wait for space: %s", e.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def explain(self, rule: str, event: Event) -> Explanation:
        """Raises NotFound for a rule that is not deployed."""
        entry = self.book.entries.get(rule)
        if entry is None:
            raise NotFound(f"there is no rule {rule!r}", remedy="`oncue rules` lists those that are deployed")
        return explain(entry.rule, event, asleep=entry.asleep)

    def rules(self) -> list[RuleInfo]:
        """All deployed rules with their state and counts."""
        return [_info(entry) for entry in self.book.entries.values()]


def _info(entry: Entry) -> RuleInfo:
    state, why = entry.state
    return RuleInfo(
        name=entry.rule.name,
        label=entry.deployment.label,
        version=entry.deployment.version,
        enabled=not entry.asleep,
        on=entry.rule.on,
        runs=[run.function for run in entry.rule.runs],
        endpoint=", ".join(dict.fromkeys(run.endpoint for run in entry.rule.runs)),
        state=state,
        why=why or entry.counters.last_reason,
        fired=entry.counters.fired,
    )


class _Refusal(Exception):
    """Why an event, or a rule's answer to it, goes to the dead letters."""

    def __init__(self, stage: str, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.stage, self.reason, self.remedy = stage, reason, remedy


class _Work:
    """What a few batches cause: tasks by cue, and dead letters; counted only when committed."""

    def __init__(self, book: RuleBook, directory: Directory, replay: str) -> None:
        self._book, self._directory, self._replay = book, directory, replay
        self.now_us = now_us()
        self.dead: list[DeadLetter] = []
        self._tasks: dict[Cue, tuple[str, list[Task]]] = {}  # cue -> (endpoint id, tasks)
        self._matched: dict[Entry, list[int]] = {}  # entry -> [matched, fired, failed]
        self._reasons: dict[Entry, str] = {}
        self._endpoints: dict[tuple[str, str], str | None] = {}

    def record(self, batch: Batch, offset: int, record: Record) -> None:
        event: Event | None = None
        try:
            event = _decoded(record)
            entries = self._book.candidates(event)
        except _Refusal as e:
            self._bury(batch, offset, record, e, event)
            return
        except Exception as e:
            self._bury(batch, offset, record, _Refusal("match", f"{type(e).__name__}: {e}"), event)
            return
        for entry in entries:
            try:
                if decide(entry.rule, event) is None:
                    self._fire(entry, event)
            except _Refusal as e:
                self._bury(batch, offset, record, e, event, entry)
            except Exception as e:
                refusal = _Refusal("match", f"{type(e).__name__}: {e}")
                self._bury(batch, offset, record, refusal, event, entry)

    def _fire(self, entry: Entry, event: Event) -> None:
        """All of the rule's functions, or none and a dead letter."""
        counts = self._matched.setdefault(entry, [0, 0, 0])
        counts[0] += 1
        ready = [self._prepare(cue, event) for cue in entry.cues]
        extensions = event.extensions
        task_ids = rule_task_ids(
            entry.rule.name,
            self._replay,
            event.source,
            event.id,
            _number(extensions.get("oncuetimems")),
            len(ready),
        )
        cause, mark_us = (event.source, event.id), _number(extensions.get("oncuemarkus")) or 0
        for cue, (endpoint, args), task_id in zip(entry.cues, ready, task_ids, strict=True):
            _, tasks = self._tasks.setdefault(cue, (endpoint, []))
            tasks.append(Task(task_id, args, cause, b"", mark_us))
        counts[1] += len(ready)

    def _prepare(self, cue: Cue, event: Event) -> tuple[str, bytes]:
        key = (cue.endpoint, cue.owner)
        if key not in self._endpoints:
            self._endpoints[key] = self._directory.endpoint_id(*key)
        endpoint = self._endpoints[key]
        if endpoint is None:
            remedy = "register it or correct the rule, then `oncue dead retry N` (N: this letter's number)"
            raise _Refusal("dispatch", f"there is no endpoint {cue.endpoint!r} for {cue.owner or 'this owner'}", remedy)
        if not cue.call.function:
            remedy = "deploy the rule file again, beside the file of the function, then `oncue dead retry N` (N: this letter's)"
            raise _Refusal("dispatch", f"the function {cue.call.name!r} is not registered", remedy)
        try:
            return endpoint, cue.arguments(event)
        except OncueError as e:
            raise _Refusal("args", e.message, e.remedy) from None

    def _bury(
        self,
        batch: Batch,
        offset: int,
        record: Record,
        refusal: _Refusal,
        event: Event | None,
        entry: Entry | None = None,
    ) -> None:
        if entry is not None:
            self._matched.setdefault(entry, [0, 0, 0])[2] += 1
            self._reasons[entry] = refusal.reason
        self.dead.append(
            DeadLetter(
                VERSION,
                refusal.stage,
                refusal.reason[:2_000],
                self.now_us,
                batch.topic,
                batch.partition,
                offset,
                entry.rule.name if entry else "",
                (event.source, event.id) if event else None,
                record.value[:EVENT_BYTES],
                refusal.remedy,
            )
        )

    async def offload(self, store: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Large payloads become references; their blobs are durable before the tasks that name them."""
        for _, tasks in self._tasks.values():
            for at, task in enumerate(tasks):
                if needs_blob(task.args):
                    tasks[at] = msgspec.structs.replace(task, args=await store(task.args))

    def appends(self) -> list[Append]:
        by_topic: dict[str, list[Record]] = {}
        for cue, (endpoint, tasks) in self._tasks.items():
            records = by_topic.setdefault(tasks_topic(endpoint), [])
            call = self._call(cue, endpoint)
            records += [
                Record(encode(TaskFrame(VERSION, call, self.now_us, part)), endpoint.encode())
                for part in _frames(tasks)
            ]
        if self.dead:
            by_topic[DEAD] = [Record(encode(letter)) for letter in self.dead]
        return [Append(topic, records) for topic, records in by_topic.items()]

    def _call(self, cue: Cue, endpoint: str) -> Call:
        expires_us = self.now_us + cue.expires_ms * 1_000 if cue.expires_ms else 0
        return msgspec.structs.replace(cue.call, endpoint=endpoint, expires_us=expires_us)

    def count(self) -> None:
        for entry, (matched, fired, failed) in self._matched.items():
            counters = entry.counters
            counters.matched += matched
            counters.fired += fired
            counters.failed += failed
            counters.last_reason = self._reasons.get(entry, counters.last_reason)


def _decoded(record: Record) -> Event:
    """Raises _Refusal for what is no event, or an event of a loop."""
    try:
        event = cloudevents.from_record(record.value, record.headers)
    except OncueError as e:
        raise _Refusal("decode", e.message, e.remedy) from None
    except Exception as e:
        raise _Refusal("decode", f"{type(e).__name__}: {e}") from None
    depth = _number(event.extensions.get("oncuedepth")) or 0
    if depth >= MAX_DEPTH:
        reason = f"the event is number {depth} in a chain of events that caused one another; {MAX_DEPTH} is the limit"
        raise _Refusal("match", reason, "is there a rule whose function makes the event that fires it?")
    return event


def _number(value: Any) -> int | None:
    """Of an extension that is a number, as text where it is over CloudEvents' 32 bits."""
    if type(value) is int:
        return value if value >= 0 else None
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    return None


def _frames(tasks: list[Task]) -> Iterable[list[Task]]:
    """Cut so that no frame is large."""
    part, size = [], 0
    for task in tasks:
        part.append(task)
        size += len(task.args) + 64
        if len(part) >= FRAME_TASKS or size >= FRAME_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
