"""Routes new tasks from the log to the channel of their endpoint, each once.

    appended by this process ──append watcher (early if the log allows it)──► channel
    appended by another server, or perhaps a repetition ──log reader, after the view──► channel

On Kafka the log reader may deliver a record of this process before its append is reported durable.
The first of the two forwards the tasks; the second finds that it was done.

A repeated event or request makes the same tasks, with the same ids, again. Only the first may run.
If the first was accepted before this server started, only the view knows it. An id whose time is
later was made later, and is remembered here. The time of an id that is a hash (ids.py) means
nothing, but only one in a million of these falls into a given day.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.housekeeper import REAPPENDED
from oncue.errors import Undecodable
from oncue.log import Log, Record, RecordBatch
from oncue.protocol.codec import decode
from oncue.protocol.records import TaskFrame, TaskRecord
from oncue.view import View

log = logging.getLogger("oncue.incoming")
KNOWN_TASKS = 200_000
AHEAD_MS = 1_000  # clients' clocks may be ahead by this


class TaskRouter:
    """Deduplicates task records, and forwards new tasks to the channels."""

    def __init__(
        self,
        durable: Log,
        view: View,
        bridge: BridgeSocket,
        started_us: int,
        run: Callable[[Coroutine[Any, Any, None]], object],
        count_known: Callable[[str, int], None],
    ) -> None:
        """`run` starts a coroutine as a task.

        `count_known(rule, n)` corrects the counter of a rule: n of the tasks that it made on this
        server were accepted before.
        """
        self._log, self._view, self._bridge, self._run = durable, view, bridge, run
        self._count_known = count_known
        self._known: OrderedDict[bytes, None] = OrderedDict()
        # `_known` has all tasks whose id has this time or a later one.
        self._from_ms = started_us // 1000 + 1
        # Records appended here that only one of the two sources (append watcher, log reader) has
        # reported so far. Keyed by content, because two records may start with the same task. In a
        # FIFO log the watcher always reports first, so forwarded records need no entry.
        self._awaiting_reader: Counter[bytes] = Counter()  # by the watcher, left to the reader
        self._forwarded: Counter[bytes] = Counter()  # reported by the watcher, and forwarded
        self._read_first: Counter[bytes] = Counter()  # reported by the reader

    def begin_after(self, newest_us: int) -> None:
        """Look up tasks whose ids are not later than this.

        An earlier process accepted such tasks, by a clock that was ahead perhaps.
        """
        self._from_ms = max(self._from_ms, newest_us // 1000 + 1)

    # ------------------------------------------------------------ in

    def on_appended(self, topic: str, records: Sequence[Record]) -> None:
        """Handle records that this process has appended, perhaps not durable yet."""
        for record in records:
            frame = _frame(topic, record)
            if frame is None:
                continue
            if self._read_first and frame.tasks and _decrement(self._read_first, _key(record)):
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
        """Return True if the frame's tasks are certainly new.

        Where this server is the only one, tasks of clients' requests are: it has deduplicated the
        requests by key.
        """
        return not frame.tasks or (not frame.call.rule and not self._log.shared) or self._all_new(frame.tasks)

    def on_read(self, batch: RecordBatch) -> None:
        """Handle a batch of a tasks topic that the view has applied."""
        if not self._log.shared and not self._awaiting_reader:
            return
        for offset, record in zip(batch.offsets, batch.records, strict=True):
            left = False
            if ours := self._log.is_own(record):
                key = _key(record) if self._awaiting_reader or not self._log.fifo else b""
                left = _decrement(self._awaiting_reader, key)
                if not left and (self._log.fifo or _decrement(self._forwarded, key)):
                    continue
            frame = _frame(batch.topic, record)
            if frame is None or not frame.tasks:
                continue
            if ours and not left:
                self._read_first[key] += 1
            if not left and self._all_new(frame.tasks):
                self._forward(frame, len(record.value), offset)
            else:
                self._run(self._forward_unseen(frame, len(record.value), offset, ours))

    def _forward(self, frame: TaskFrame, size: int, offset: int) -> None:
        self._bridge.with_channel(
            frame.call.endpoint, partial(EndpointChannel.add_tasks, frame=frame, size_bytes=size, offset=offset)
        )

    async def _forward_unseen(self, frame: TaskFrame, size: int, offset: int, ours: bool) -> None:
        """Forward the tasks that no earlier record has.

        The view has applied all earlier records.
        """
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
            return False  # twice in one batch
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


def _decrement(counts: Counter[bytes], key: bytes) -> bool:
    """Subtract one from a counter. Return False if it was 0."""
    count = counts.get(key, 0)
    if count > 1:
        counts[key] = count - 1
    elif count:
        del counts[key]
    return count > 0


def _frame(topic: str, record: Record) -> TaskFrame | None:
    """Return the frame of a record, or None if the channel has its tasks already."""
    if REAPPENDED[0] in record.headers:
        return None
    try:
        return decode(TaskFrame, record.value)
    except Undecodable as e:  # the view sends the record to the dead-letter topic
        log.error("a task record in %s cannot be decoded: %s", topic, e.message)
        return None
