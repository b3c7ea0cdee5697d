"""Fresh tasks on their way to the lanes.

    this process appended them ──watch──► (early, where the log allows it) ──► lane
    another server did, or they may be known from before ──feeder, behind the view──► lane

On Kafka the feeder may have a record of this process before the process is told that it is durable: whichever comes first hands
the tasks over, and the other finds it done.

An event or a request that is told twice makes the same tasks twice (the same ids): the second time nothing shall run. Whether
the first time was before this server started, only the view knows; but an id with a time since then was made since then, and
is remembered here, unless its time comes from a hash (ids.py): one in a million falls into a day.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.housekeeper import AGAIN
from oncue.errors import Undecodable
from oncue.ids import now_us
from oncue.log import Log, Record, RecordBatch
from oncue.protocol.codec import decode
from oncue.protocol.records import TaskFrame, TaskRecord
from oncue.view import View

log = logging.getLogger("oncue.incoming")
KNOWN_TASKS = 200_000
AHEAD_MS = 1_000  # that clients' clocks may be


class TaskRouter:
    """`run` starts work beside; `made_before` is told how many tasks of a rule, that it made here, were known already."""

    def __init__(
        self,
        durable: Log,
        view: View,
        bridge: BridgeSocket,
        started_us: int,
        run: Callable[[Coroutine[Any, Any, None]], None],
        count_known: Callable[[str, int], None],
    ) -> None:
        self._log, self._view, self._bridge, self._run = durable, view, bridge, run
        self._count_known = count_known
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._from_ms = started_us // 1000 + 1  # all that came with a later time in its id is in there
        # This process's records that have been told, or read, and not the other: by their bytes, for what is told twice may
        # begin with the same task. Where the log tells them first (fifo), those that are handed over need no entry.
        self._awaiting_reader: Counter[bytes] = Counter()  # told; they are left to the reader
        self._forwarded: Counter[bytes] = Counter()  # told, and handed over
        self._read_first: Counter[bytes] = Counter()  # read

    # ------------------------------------------------------------ in

    def on_appended(self, topic: str, records: Sequence[Record]) -> None:
        """By this process, perhaps not durable yet."""
        for record in records:
            frame = _frame(topic, record)
            if frame is None:
                continue
            if self._read_first and frame.tasks and _take(self._read_first, _key(record)):
                continue
            if not self._direct(frame):
                self._awaiting_reader[_key(record)] += 1
                continue
            self._bridge.with_channel(
                frame.call.endpoint, partial(EndpointChannel.add_tasks, frame=frame, size_bytes=len(record.value))
            )
            if frame.tasks and not self._log.fifo:
                self._forwarded[_key(record)] += 1

    def _direct(self, frame: TaskFrame) -> bool:
        """Whether it surely is the first of its tasks. Where this server alone takes tasks, clients' requests are: it knows
        their keys."""
        return not frame.tasks or (not frame.call.rule and not self._log.shared) or self._all_new(frame.tasks)

    def on_read(self, batch: RecordBatch) -> None:
        """Of a topic of tasks, when the view has it."""
        if not self._log.shared and not self._awaiting_reader:
            return
        for offset, record in zip(batch.offsets, batch.records, strict=True):
            left = False
            if ours := self._log.is_own(record):
                key = _key(record) if self._awaiting_reader or not self._log.fifo else b""
                left = _take(self._awaiting_reader, key)
                if not left and (self._log.fifo or _take(self._forwarded, key)):
                    continue
            frame = _frame(batch.topic, record)
            if frame is None or not frame.tasks:
                continue
            if ours and not left:
                self._read_first[key] += 1
            if not left and self._all_new(frame.tasks):
                self._forward(frame, len(record.value), offset)
            else:
                self._run(self._ask(frame, len(record.value), offset, ours))

    def _forward(self, frame: TaskFrame, size: int, offset: int) -> None:
        self._bridge.with_channel(
            frame.call.endpoint, partial(EndpointChannel.add_tasks, frame=frame, size_bytes=size, offset=offset)
        )

    async def _ask(self, frame: TaskFrame, size: int, offset: int, ours: bool) -> None:
        """Those of the tasks that are not known from an earlier record, which the view has, too."""
        unseen = {t.id: t for t in frame.tasks if t.id not in self._known}
        for task_id in unseen:
            self._remember(task_id)
        before = await self._view.accepted(list(unseen)) if unseen else {}
        tasks = [t for t in unseen.values() if before.get(t.id, frame.accepted_us) >= frame.accepted_us]
        if ours:
            self._count_known(frame.call.rule, len(frame.tasks) - len(tasks))
        if tasks:
            self._forward(TaskFrame(frame.v, frame.call, frame.accepted_us, tasks), size, offset)

    # ------------------------------------------------------------ what is known

    def _all_new(self, tasks: Sequence[TaskRecord]) -> bool:
        known, until_ms = self._known, now_us() // 1000 + AHEAD_MS
        for task in tasks:
            if task.id in known or not self._from_ms <= int.from_bytes(task.id[:6], "big") <= until_ms:
                return False
        if len(tasks) > 1 and len({task.id for task in tasks}) < len(tasks):
            return False  # told twice in one batch
        for task in tasks:
            self._remember(task.id)
        return True

    def _remember(self, task_id: bytes) -> None:
        known = self._known
        known[task_id] = None
        if len(known) > KNOWN_TASKS:
            ms = int.from_bytes(known.popitem(last=False)[0][:6], "big")
            if ms * 1000 <= now_us():
                self._from_ms = max(self._from_ms, ms + 1)


def _key(record: Record) -> bytes:
    return blake2b(record.value, digest_size=16).digest()


def _take(counts: Counter[bytes], key: bytes) -> bool:
    """One of them, if there is one."""
    count = counts.get(key, 0)
    if count > 1:
        counts[key] = count - 1
    elif count:
        del counts[key]
    return count > 0


def _frame(topic: str, record: Record) -> TaskFrame | None:
    """None: nothing that a lane would not know."""
    if AGAIN[0] in record.headers:
        return None
    try:
        return decode(TaskFrame, record.value)
    except Undecodable as e:  # the view's reader buries it
        log.error("a task record in %s cannot be read: %s", topic, e.message)
        return None
