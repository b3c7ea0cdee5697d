"""What is done now and then: expiry, retention, the disk. Each duty by itself: one that fails is logged and tried again.

A task topic is never cut by time alone: what is still open and old is appended again (same id), then the topic is truncated
below. So a day's mark (the end offsets then) is kept for as long as outcomes are.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.endpoints import close_open_tasks
from oncue.ids import now_us
from oncue.log import Record
from oncue.protocol import payload
from oncue.protocol.api import TriggerInfo
from oncue.protocol.codec import encode
from oncue.protocol.records import EXPIRED, INLINE_BYTES, VERSION, Call, Failure, TaskFrame, TaskRecord
from oncue.protocol.topics import TASKS_PREFIX

log = logging.getLogger("oncue.housekeeper")
EXPIRY_S, TRIGGERS_S, DISK_S, RETENTION_S, MARK_S = 1.0, 1.0, 2.0, 60.0, 86_400.0
PAGE = 1_000
BLOBS = "blobs"  # whoever acts for this sweeps a folder that several servers have
AGAIN = (("oncue-again", b"1"),)  # header of a task that is appended again: its lane knows it already


class Mark(msgspec.Struct):
    at_s: float
    ends: dict[str, int]  # task topic -> end offset


class Housekeeper:
    def __init__(
        self,
        context: ServerContext,
        bridge: BridgeSocket,
        ownership: PartitionOwnership,
        folder: Path,
        triggers: Callable[[], list[TriggerInfo]],
    ) -> None:
        self._context, self._bridge, self._ownership = context, bridge, ownership
        self._folder, self._triggers_now = folder, triggers
        self._marks_file = folder / "marks.json"
        self._tasks: list[asyncio.Task[None]] = []
        self._triggers: dict[str, tuple[str, str]] = {}  # name -> (state, detail), as shown last

    def start(self) -> None:
        for duty, seconds in (
            (self.expire, EXPIRY_S),
            (self.look_at_disk, DISK_S),
            (self.retain, RETENTION_S),
            (self.end_revoked, RETENTION_S),
            (self.look_at_triggers, TRIGGERS_S),
            (self.cut_task_topics, MARK_S / 4),
            (self.sweep_blobs, MARK_S / 4),
        ):
            self._tasks.append(asyncio.create_task(self._every(seconds, duty), name=duty.__name__))

    async def _every(self, seconds: float, duty: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await duty()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("housekeeping (%s) failed; it will be tried again", getattr(duty, "__name__", duty))
            await asyncio.sleep(seconds)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ expiry

    async def expire(self) -> None:
        """End the tasks that did not start in time and are not at an agent, connected or not."""
        why = encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
        at = now_us()
        for row in await self._context.view.expired(at, PAGE):
            open_task = OpenTask(*row)
            group = TaskGroup(open_task.call, encode(open_task.call), open_task.attempt, open_task.accepted_us, [], 0)
            end = end_by_server(open_task.task, open_task.attempt, EXPIRED, at, why)

            self._bridge.with_channel(
                open_task.call.endpoint, partial(EndpointChannel.end_waiting, group=group, ends=[end])
            )

    async def end_revoked(self) -> None:
        """Nobody will run the open tasks of a revoked endpoint: they end. (When it is revoked; and now and then, for those
        that this server, or the one that died then, did not come to.)"""
        for endpoint in self._context.registry.endpoints():
            if (
                endpoint.revoked
                and self._ownership.owns(endpoint.id)
                and await self._context.view.oldest_open_seq(endpoint.id) is not None
            ):
                await close_open_tasks(self._context, endpoint)

    # ------------------------------------------------------------ the triggers

    async def look_at_triggers(self) -> None:
        """For live feeds: a trigger changes its state by itself, and tells nobody."""
        if not self._context.notifier.watched:
            self._triggers.clear()
            return
        found = {info.name: (info.state, info.detail) for info in self._triggers_now()}
        for name, (state, detail) in found.items():
            if self._triggers.get(name) != (state, detail):
                self._context.notifier.show("trigger", {"name": name, "state": state, "detail": detail})
        self._triggers = found

    # ------------------------------------------------------------ the disk

    async def look_at_disk(self) -> None:
        """Accepting stops when the disk is nearly full; outcomes go on, and a ballast file is freed so that retention
        has room to work."""
        usage = await asyncio.to_thread(shutil.disk_usage, self._folder)
        percent = 100 * usage.used / (usage.used + usage.free)  # as df: what is reserved for root counts for neither
        limit = self._context.settings.disk_stop_percent
        if percent >= limit:
            if not self._context.disk_full:
                log.error("the disk of %s is %.1f %% full: nothing new is accepted", self._folder, percent)
                await self.retain()
            self._context.disk_full = f"the disk of {self._folder} is {percent:.1f} % full (limit: {limit:g} %)"
        elif self._context.disk_full and percent < limit - 1:
            log.info("there is space again: accepting")
            self._context.disk_full = ""

    # ------------------------------------------------------------ retention

    async def retain(self) -> None:
        """The log forgets by its topics' settings; the view and the blobs forget with it."""
        context = self._context
        await context.log.housekeep()
        horizon_s = time.time() - context.settings.results_retention_days * 86_400
        await context.view.delete_older_than(int(horizon_s * 1000))

    async def sweep_blobs(self) -> None:
        """Blobs older than all records that could name them; the bodies of large functions are kept."""
        context = self._context
        if context.settings.blobs_folder and not self._ownership.owns(BLOBS):
            return
        kept: set[str] = set()
        cursor: str | None = ""
        while cursor is not None:
            rows, cursor = await context.view.functions(cursor, PAGE)
            kept.update(f.id for f in rows if f.size_bytes > INLINE_BYTES)
        for endpoint in context.registry.endpoints():
            kept |= await self._open_refs(endpoint.id)
        horizon_s = time.time() - context.settings.results_retention_days * 86_400
        await asyncio.to_thread(context.blobs.sweep, kept, horizon_s)

    async def _open_refs(self, endpoint: str) -> set[str]:
        found: set[str] = set()
        after = -1
        while True:
            rows = [OpenTask(*row) for row in await self._context.view.open_tasks(endpoint, after, PAGE)]
            refs = [payload.ref_of(row.task.args) for row in rows]
            found.update(ref.sha256 for ref in refs if ref is not None)
            if len(rows) < PAGE:
                return found
            after = rows[-1].seq

    async def cut_task_topics(self) -> None:
        context = self._context
        marks = self._load_marks()
        names = [t for t in await context.log.topics() if t.startswith(TASKS_PREFIX)]
        now = time.time()
        if not marks or now - marks[-1].at_s >= MARK_S:
            marks.append(Mark(now, {t: end for (t, _), end in (await context.log.end_offsets(names)).items()}))
        horizon = now - context.settings.results_retention_days * 86_400
        due = [m for m in marks if m.at_s <= horizon]
        if due:
            for topic, end in due[-1].ends.items():
                if self._ownership.owns(
                    topic.removeprefix(TASKS_PREFIX)
                ):  # for a topic that endpoints share: by its name
                    await self._cut(topic, end)
        self._marks_file.write_bytes(msgspec.json.encode([m for m in marks if m.at_s > horizon]))

    def _load_marks(self) -> list[Mark]:
        try:
            return msgspec.json.decode(self._marks_file.read_bytes(), type=list[Mark])
        except (OSError, msgspec.MsgspecError):
            return []  # then the next cut comes a horizon later

    async def _cut(self, topic: str, before: int) -> None:
        """Append again what is open below this offset, then truncate."""
        for endpoint in [
            e.id for e in self._context.registry.endpoints() if self._context.registry.tasks_topic(e.id) == topic
        ]:
            await self._append_again(endpoint, topic, before)
        await self._context.log.truncate(topic, 0, before)

    async def _append_again(self, endpoint: str, topic: str, before: int) -> None:
        after = -1
        while True:
            rows = [OpenTask(*row) for row in await self._context.view.open_tasks(endpoint, after, PAGE)]
            old = [row for row in rows if row.seq < before << 16]
            groups: dict[tuple[Call, int], list[TaskRecord]] = {}
            for row in old:
                groups.setdefault((row.call, row.accepted_us), []).append(row.task)
            records = [
                Record(encode(TaskFrame(VERSION, call, accepted_us, tasks)), headers=AGAIN)
                for (call, accepted_us), tasks in groups.items()
            ]
            if records:
                await self._context.log.append(topic, records, 0)
            if len(old) < PAGE:
                return
            after = old[-1].seq
