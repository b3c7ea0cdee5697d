"""Runs the periodic jobs of a server: expiry, retention, disk space, blobs.

Each job has a task of its own. A job that fails is logged and repeated.

A task topic is not truncated by time alone. Tasks that are old and still open are appended again
with the same id, then the topic is truncated below. For this, the end offsets of each day (a
TopicMark) are stored for as long as outcomes are kept. Results are deleted up to the mark of the
last truncation: a view that is built again would take a task without its result for an open one.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from oncue.clocks.process import now_us, process_clock
from oncue.disk.durable_files import replace_file
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.retention_clock import RetentionClock
from oncue.dispatcher.services.endpoints import close_open_tasks
from oncue.log import Record
from oncue.protocol import payload
from oncue.protocol.api import TriggerInfo
from oncue.protocol.codec import encode
from oncue.protocol.records import EXPIRED, INLINE_BYTES, VERSION, Call, Failure, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS, TASKS_PREFIX

log = logging.getLogger("oncue.housekeeper")
CLOCK_S, EXPIRY_S, TRIGGERS_S, DISK_S, RETENTION_S, MARK_S = 1.0, 1.0, 1.0, 2.0, 60.0, 86_400.0
PAGE = 1_000
BLOBS = "blobs"  # the owner of this key sweeps a blob folder that several servers share
#: Header of an open task that was appended again. Its channel has the task.
REAPPENDED = (("oncue-again", b"1"),)


class TopicMark(msgspec.Struct):
    """End offsets of the task topics at one time."""

    at_s: float
    ends: dict[str, int]  # task topic -> end offset


class Housekeeper:
    """Periodic jobs. `start`, then `close`."""

    def __init__(
        self,
        context: ServerContext,
        bridge: BridgeSocket,
        ownership: PartitionOwnership,
        folder: Path,
        triggers: Callable[[], Awaitable[list[TriggerInfo]]],
    ) -> None:
        self._context, self._bridge, self._ownership = context, bridge, ownership
        self._folder, self._trigger_infos = folder, triggers
        self._marks_file = folder / "marks.json"
        self._cut_s = 0.0  # no task before this time is in the log, unless it is open
        self._retention = RetentionClock(folder / "clock.json")
        self._tasks: list[asyncio.Task[None]] = []
        self._triggers: dict[str, tuple[str, str, str]] = {}  # name -> (label, state, detail) published last

    def start(self) -> None:
        """Start all jobs."""
        self._retention.start(self._context.newest_us)
        for job, seconds in (
            (self.observe_clock, CLOCK_S),
            (self.expire, EXPIRY_S),
            (self.check_disk, DISK_S),
            (self.apply_retention, RETENTION_S),
            (self.end_revoked, RETENTION_S),
            (self.publish_triggers, TRIGGERS_S),
            (self.cut_task_topics, MARK_S / 4),
            (self.sweep_blobs, MARK_S / 4),
        ):
            self._tasks.append(asyncio.create_task(self._repeat(seconds, job), name=job.__name__))

    async def _repeat(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await job()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("housekeeping (%s) failed; it will be tried again", getattr(job, "__name__", job))
            await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Stop all jobs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def observe_clock(self) -> None:
        """Tell of steps of the system clock. Follow it slowly."""
        step_us = process_clock.observe(slew=True)
        behind_s = process_clock.behind_us() / 1e6
        if step_us:
            log.warning(
                "the system clock was stepped by %+.1f s; the server keeps its own time, from which the clock now "
                "differs by %+.1f s; a restart takes the clock's time",
                step_us / 1e6,
                behind_s,
            )
        self._context.metrics.clock(process_clock.steps, behind_s)

    # ------------------------------------------------------------ expiry

    async def expire(self) -> None:
        """End tasks that passed their expiry and are not at an agent."""
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
        """Close open tasks of revoked endpoints.

        They are closed at the revocation. This job closes those that a server did not get to.
        """
        for endpoint in self._context.registry.endpoints():
            if (
                endpoint.revoked
                and self._ownership.owns(endpoint.id)
                and await self._context.view.oldest_open_seq(endpoint.id) is not None
            ):
                await close_open_tasks(self._context, endpoint)

    # ------------------------------------------------------------ the triggers

    async def publish_triggers(self) -> None:
        """Publish changed trigger states to live feeds, if there are any."""
        if not self._context.notifier.watched:
            self._triggers.clear()
            return
        found = {info.name: (info.label, info.state, info.detail) for info in await self._trigger_infos()}
        for name, (label, state, detail) in found.items():
            if self._triggers.get(name) != (label, state, detail):
                item = {"name": name, "label": label, "state": state, "detail": detail}
                self._context.notifier.publish_item("trigger", item)
        self._triggers = found

    # ------------------------------------------------------------ the disk

    async def check_disk(self) -> None:
        """Stop accepting when the disk is nearly full.

        Outcomes are still stored. A ballast file is freed, so that retention has room to work.
        """
        usage = await asyncio.to_thread(shutil.disk_usage, self._folder)
        # As df does: space reserved for root does not count.
        percent = 100 * usage.used / (usage.used + usage.free)
        limit = self._context.settings.disk_stop_percent
        if percent >= limit:
            if not self._context.disk_full:
                log.error("the disk of %s is %.1f %% full: nothing new is accepted", self._folder, percent)
                await self.apply_retention()
            self._context.disk_full = f"the disk of {self._folder} is {percent:.1f} % full (limit: {limit:g} %)"
        elif self._context.disk_full and percent < limit - 1:
            log.info("there is space again: requests are accepted")
            self._context.disk_full = ""

    # ------------------------------------------------------------ retention

    async def apply_retention(self) -> None:
        """Delete old records of the log, and old rows of the view."""
        context = self._context
        self._retention.save()
        await context.log.housekeep(self._retention.now_us() // 1000, {RESULTS: int(self._cut_s * 1000)})
        await context.view.delete_older_than(int(self._horizon_s() * 1000), kept=self._retention.wrong_periods())

    def _horizon_s(self) -> float:
        return self._retention.now_us() / 1e6 - self._context.settings.results_retention_days * 86_400

    async def sweep_blobs(self) -> None:
        """Delete blobs that are older than any record that could name them.

        Bodies of large functions and arguments of open tasks are kept.
        """
        context = self._context
        if not context.settings.blobs_folder or self._ownership.owns(BLOBS):
            await asyncio.to_thread(context.blobs.sweep, await self._needed_blobs(), self._horizon_s())
        await asyncio.to_thread(context.blob_quota.forget_deleted)

    async def _needed_blobs(self) -> set[str]:
        """Return the blobs of functions, and of open tasks' arguments."""
        context = self._context
        kept: set[str] = set()
        cursor: str | None = ""
        while cursor is not None:
            rows, cursor = await context.view.functions(cursor, PAGE)
            kept.update(f.id for f in rows if f.size_bytes > INLINE_BYTES)
        for endpoint in context.registry.endpoints():
            kept |= await self._open_refs(endpoint.id)
        return kept

    async def _open_refs(self, endpoint: str) -> set[str]:
        """Return the blobs that open tasks of an endpoint have as arguments."""
        found: set[str] = set()
        after = -1
        while True:
            rows = [OpenTask(*row) for row in await self._context.view.open_tasks(endpoint, after, PAGE)]
            found.update(blob.sha256 for row in rows for blob in payload.blobs_of(row.task.args))
            if len(rows) < PAGE:
                return found
            after = rows[-1].seq

    async def cut_task_topics(self) -> None:
        """Truncate task topics at the newest mark that is older than the retention."""
        context = self._context
        marks = self._load_marks()
        names = [t for t in await context.log.topics() if t.startswith(TASKS_PREFIX)]
        now, horizon = self._retention.now_us() / 1e6, self._horizon_s()
        if not marks or now - marks[-1].at_s >= MARK_S:
            marks.append(TopicMark(now, {t: end for (t, _), end in (await context.log.end_offsets(names)).items()}))
        due = [m for m in marks if m.at_s <= horizon]
        if due:
            for topic, end in due[-1].ends.items():
                # The key is the endpoint's id, or the name of a topic that endpoints share.
                if self._ownership.owns(topic.removeprefix(TASKS_PREFIX)):
                    await self._cut(topic, end)
            self._cut_s = due[-1].at_s
        replace_file(self._marks_file, msgspec.json.encode([m for m in marks if m not in due[:-1]]))

    def _load_marks(self) -> list[TopicMark]:
        try:
            return msgspec.json.decode(self._marks_file.read_bytes(), type=list[TopicMark])
        except (OSError, msgspec.MsgspecError):
            return []  # the next cut is one retention period later

    async def _cut(self, topic: str, before: int) -> None:
        """Append open tasks below this offset again, then truncate."""
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
                Record(encode(TaskFrame(VERSION, call, accepted_us, tasks)), headers=REAPPENDED)
                for (call, accepted_us), tasks in groups.items()
            ]
            if records:
                await self._context.log.append(topic, records, 0)
            if len(old) < PAGE:
                return
            after = old[-1].seq
