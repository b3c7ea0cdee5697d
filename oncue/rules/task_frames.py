"""TaskFrames: tasks and dead letters of rules as log records;

`commit` writes them.

Used by the engine and by the runners of stateful rules.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from oncue.errors import DiskFull, LogError, NotOwner, OncueError
from oncue.log.base import Append, Log, Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.payload import needs_blob
from oncue.protocol.records import INLINE_BYTES, VERSION, Call, DeadLetter, TaskFrame, TaskRecord
from oncue.protocol.run_options import NO_OPTIONS
from oncue.protocol.topics import DEAD, EVENTS
from oncue.rules.active_rules import Action, ActiveRule
from oncue.rules.parsing.rule_run import task_sources

PreparedTask = tuple[Action, str, bytes, str]  # its action, endpoint id, payload, affinity key
MadeTask = tuple[int, bytes, str]  # index of its action, payload, affinity key
FRAME_TASKS, FRAME_BYTES = 1_024, 1024 * 1024
TRIES = 8  # of a commit; a full disk is waited out without limit
_log = logging.getLogger(__name__)


class EndpointDirectory(Protocol):
    """Look-up of endpoints."""

    def endpoint_id(self, name: str, owner: str) -> str | None:
        """Return the id of the endpoint with this name (or id) that the owner may use."""
        ...

    def tasks_topic(self, endpoint: str) -> str:
        """Return the topic for tasks of the endpoint with this id."""
        ...

    def is_revoked(self, name: str, owner: str) -> bool:
        """Return True if the owner had such an endpoint and it was revoked."""
        ...


class RuleError(Exception):
    """Raised when an event or firing must go to the dead letters."""

    def __init__(self, stage: str, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.stage, self.reason, self.remedy = stage, reason, remedy


class TaskFrames:
    """Tasks by action, dead letters and events of several batches."""

    def __init__(self, directory: EndpointDirectory, now_us: int, replay: str = "") -> None:
        self._directory, self.now_us, self._replay = directory, now_us, replay
        self.priority: int | None = None  # of all tasks; None: that of their rules
        self.dead: list[DeadLetter] = []
        self.events: list[Record] = []
        self.empty: dict[ActiveRule, int] = {}  # firings whose `for_each` was empty
        self.shadow: dict[ActiveRule, int] = {}  # firings of rules with `mode: shadow`
        self.tasks = self.held_bytes = 0  # tasks so far; bytes of their arguments that are held here
        #: By action, and by affinity key and number of tasks of a firing where there are such:
        #: (action, key, number, endpoint id, tasks).
        self._tasks: dict[Action | tuple[Action, str, int], tuple[Action, str, int, str, list[TaskRecord]]] = {}
        self._endpoints: dict[tuple[str, str], str | None] = {}

    def prepare(self, entry: ActiveRule, source: Any, made: Sequence[MadeTask] | None = None) -> list[PreparedTask]:
        """Return the tasks of each function of the rule. Raises RuleError.

        `source`: an Event, or EventRows of a stateful rule. `made`: what was made before.
        """
        if made is not None:
            actions = [(entry.actions[index], args, key) for index, args, key in made]
            return [(action, self._endpoint(action), args, key) for action, args, key in actions]
        if not entry.has_items:
            return [self._prepare(action, source) for action in entry.actions]
        try:
            sources = task_sources(entry.rule.runs, source)
        except OncueError as e:
            raise RuleError("args", e.message, e.remedy) from None
        return [self._prepare(entry.actions[index], each) for index, each in sources]

    def _prepare(self, action: Action, source: Any) -> PreparedTask:
        endpoint = self._endpoint(action)
        try:
            return action, endpoint, action.arguments(source), action.affinity(source) if action.has_affinity else ""
        except OncueError as e:
            raise RuleError("args", e.message, e.remedy) from None

    def _endpoint(self, action: Action) -> str:
        """Return the id of an action's endpoint. Raises RuleError."""
        key = (action.endpoint, action.owner)
        if key not in self._endpoints:
            self._endpoints[key] = self._directory.endpoint_id(*key)
        endpoint = self._endpoints[key]
        if endpoint is None:
            remedy = "register it or correct the rule, then `oncue dead retry N` (N: this letter's number)"
            what = f"there is no endpoint {action.endpoint!r} for {action.owner or 'this owner'}"
            if self._directory.is_revoked(*key):
                what = f"the endpoint {action.endpoint!r} was revoked"
            raise RuleError("dispatch", what, remedy)
        if not action.call.function:
            remedy = "deploy the rule file again, beside the file of the function, then `oncue dead retry N` (N: this letter's)"
            raise RuleError("dispatch", f"the function {action.call.name!r} is not registered", remedy)
        return endpoint

    def in_shadow(self, entry: ActiveRule) -> bool:
        """Count a firing of a rule that runs nothing; return True if it is one."""
        if entry.rule.mode != "shadow":
            return False
        self.shadow[entry] = self.shadow.get(entry, 0) + 1
        return True

    def add(
        self,
        entry: ActiveRule,
        ready: Sequence[PreparedTask],
        task_ids: Sequence[bytes],
        cause: tuple[str, str] | None,
        mark_us: int,
        members: bytes = b"",
    ) -> None:
        """Add the tasks of one firing. Without any, it is counted.

        `members`: see TaskRecord.
        """
        if not ready:
            self.empty[entry] = self.empty.get(entry, 0) + 1
        for (action, endpoint, args, key), task_id in zip(ready, task_ids, strict=True):
            of = len(ready) if entry.has_items and action.call.firing_tasks else 0
            group = self._tasks.setdefault((action, key, of) if key or of else action, (action, key, of, endpoint, []))
            group[-1].append(TaskRecord(task_id, args, cause, b"", mark_us, members))
            self.held_bytes += len(args) + len(members)
        self.tasks += len(ready)

    @property
    def actions(self) -> int:
        """Return the number of actions and keys with tasks: each becomes a frame or more."""
        return len(self._tasks)

    async def offload(self, store: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Replace large payloads by references; blobs are durable before their tasks."""
        if self.held_bytes <= INLINE_BYTES:  # none is large
            return
        for *_, tasks in self._tasks.values():
            for at, task in enumerate(tasks):
                if needs_blob(task.args):
                    tasks[at] = msgspec.structs.replace(task, args=await store(task.args))
                    self.held_bytes += len(tasks[at].args) - len(task.args)

    def appends(self) -> list[Append]:
        by_topic: dict[str, list[Record]] = {}
        for action, key, of, endpoint, tasks in self._tasks.values():
            records = by_topic.setdefault(self._directory.tasks_topic(endpoint), [])
            call = self._call(action, endpoint, key)
            call = msgspec.structs.replace(call, firing_tasks=of) if of else call
            records += [
                Record(encode(TaskFrame(VERSION, call, self.now_us, part)), endpoint.encode())
                for part in _frames(tasks)
            ]
        if self.dead:
            by_topic[DEAD] = [Record(encode(letter)) for letter in self.dead]
        if self.events:
            by_topic[EVENTS] = self.events
        return [Append(topic, records) for topic, records in by_topic.items()]

    def _call(self, action: Action, endpoint: str, key: str) -> Call:
        expires_us = self.now_us + action.expires_ms * 1_000 if action.expires_ms else 0
        run = msgspec.structs.replace(action.call.run or NO_OPTIONS, affinity=key) if key else action.call.run
        return msgspec.structs.replace(
            action.call,
            endpoint=endpoint,
            expires_us=expires_us,
            run=run,
            replay=self._replay,
            priority=action.call.priority if self.priority is None else self.priority,
        )


def _frames(tasks: list[TaskRecord]) -> Iterable[list[TaskRecord]]:
    """Split tasks into frames of bounded size."""
    part, size = [], 0
    for task in tasks:
        part.append(task)
        size += len(task.args) + len(task.members) + 64
        if len(part) >= FRAME_TASKS or size >= FRAME_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


async def commit(
    log: Log, group: str, batches: Sequence[RecordBatch], appends: Sequence[Append], *, repeatable: bool = False
) -> None:
    """Commit atomically; wait while the disk is full.

    If `repeatable` (see Log.commit), commit at least once. Raises LogError after TRIES tries,
    NotOwner at once.
    """
    pause, tries = 0.1, 0
    while True:
        try:
            await log.commit(group, batches, appends, repeatable=repeatable)
            return
        except NotOwner:
            raise
        except LogError as e:
            tries += 1
            if tries >= TRIES:
                raise
            _log.warning("the commit of %s failed, trying again in %.1f s: %s", group, pause, e.message)
        except DiskFull as e:
            _log.warning("the %s wait for disk space: %s", group, e.message)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)
