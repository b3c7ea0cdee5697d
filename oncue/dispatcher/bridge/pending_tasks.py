"""Pending tasks of one endpoint and priority: a queue without I/O.

    add(frame) ──new tasks────┐
    add_page(rows) ──the view─┤►  queue ──► dequeue(count)
    defer(due, task) ─────────┴►  deferred (a heap of retries) ──due──► queue

New tasks come from appends of this process, and from the log reader for appends of other servers.
If they exceed the memory budget, or the agent was away, the queue *loads*: it reads the view's open
tasks in pages. New tasks are left to the view until loading has caught up. A page may have tasks
that were sent meanwhile, or whose end is being appended; they are skipped.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from oncue.dispatcher.bridge.paused_rules import NONE_PAUSED, PausedRules
from oncue.protocol.codec import encode
from oncue.protocol.records import Call, Ended, TaskFrame, TaskRecord
from oncue.task_lifecycle import start_us

PAGE = 2_048  # tasks in a page of the view
LOW = 512  # queued tasks; below this the next page is loaded
#: Tasks in a frame: large enough to spread a frame's cost, small enough to spread over workers.
FRAME_TASKS = 256
FRAME_BYTES = 1 << 20
KEEP_STOPPED_US = 10_000_000  # the reader may deliver a record this long after the view has it


class TaskGroup(msgspec.Struct, gc=False):
    """Tasks that are queued or sent together: one attempt of one call."""

    call: Call
    call_raw: bytes
    attempt: int
    accepted_us: int
    tasks: Sequence[TaskRecord]
    size_bytes: int

    def one(self, task_id: bytes) -> TaskRecord:
        """Return the task with this id."""
        return next(t for t in self.tasks if t.id == task_id)

    def next_attempt(self, ended: Ended) -> TaskGroup:
        """Return the attempt that follows `ended`, as a group of one task."""
        task = self.one(ended.id)
        return TaskGroup(self.call, self.call_raw, ended.attempt + 1, self.accepted_us, [task], len(task.args))


class OpenTask(msgspec.Struct, frozen=True, array_like=True):
    """A row of the view's open tasks."""

    seq: int
    call: Call
    accepted_us: int
    attempt: int
    due_us: int
    task: TaskRecord


class PendingTasks:
    """Tasks of an endpoint that have not been sent, in order.

    At most `budget_bytes` of them are in memory.
    """

    def __init__(self, is_sent: Callable[[bytes], bool], budget_bytes: int) -> None:
        """Initialize an empty queue.

        `is_sent`: True for a task that the agent has, or whose end is being appended.
        """
        self._is_sent, self._budget = is_sent, budget_bytes
        self.now_us = 0
        self.queue: deque[TaskGroup] = deque()
        self.queued_tasks = self.queued_bytes = 0  # the bytes include `deferred`
        self.deferred: list[tuple[int, int, TaskGroup]] = []  # (due_us, tie-breaker, one task)
        self.stopped: set[bytes] = set()  # not to be sent: cancelled, expired or held
        self._last_stop_us = 0
        self.paused = NONE_PAUSED
        self._left_out = False  # tasks of paused rules: only the view has them
        self.loading = True  # new tasks are left to the view
        self._token = self._ties = 0
        self._asked = False
        self._cursor = -1
        self._reload_us = 0  # when to load again, for retries without room in memory; 0: never
        self._horizon = 0  # offset of the tasks topic; the pages had all records below it
        self._buffered: list[tuple[TaskFrame, int]] = []  # new since the page was requested
        self._buffered_bytes = 0
        self._ended: set[bytes] = set()  # since the page was requested

    def restart(self) -> None:
        """Empty the queue, and load from the view, which has all tasks.

        Pages requested before are ignored.
        """
        self.queue.clear()
        self.deferred.clear()
        self.queued_tasks = self.queued_bytes = 0
        self.loading, self._asked, self._cursor, self._reload_us, self._horizon = True, False, -1, 0, 0
        self._token += 1
        self._left_out = False
        self._clear_buffered()

    def _clear_buffered(self) -> None:
        self._buffered.clear()
        self._buffered_bytes = 0
        self._ended.clear()

    # ------------------------------------------------------------ in

    def add(self, frame: TaskFrame, size_bytes: int, offset: int = -1) -> None:
        """Add tasks that were appended just now, perhaps not durable yet.

        `offset`: of their record, if the log reader delivered it: a page may have had its tasks
        already.
        """
        if 0 <= offset < self._horizon:
            return
        if not self.loading and self.queued_bytes + size_bytes <= self._budget:
            self._add(TaskGroup(frame.call, encode(frame.call), 1, frame.accepted_us, frame.tasks, size_bytes))
            return
        self.loading = True
        if self._asked:
            self._buffered_bytes += size_bytes
            if self._buffered_bytes <= self._budget:
                self._buffered.append((frame, offset))

    def _add(self, group: TaskGroup) -> None:
        if self.paused is not NONE_PAUSED and self.paused.why(group.call):
            self._left_out = True
            return
        self.queue.append(group)
        self.queued_tasks += len(group.tasks)
        self.queued_bytes += group.size_bytes

    def defer(self, due_us: int, group: TaskGroup) -> None:
        """Add a retry (a group of one task) that is due later.

        Without room in memory it is loaded from the view then.
        """
        if self.queued_bytes + group.size_bytes > self._budget:
            self.reload_at(due_us)
            return
        self._ties += 1
        self.queued_bytes += group.size_bytes
        heapq.heappush(self.deferred, (due_us, self._ties, group))

    def reload_at(self, due_us: int) -> None:
        """Load the view's open tasks again at this time.

        At `due_us` a task is due that is not in memory.
        """
        self._reload_us = min(self._reload_us or due_us, due_us)

    def pause(self, paused: PausedRules) -> None:
        """Leave tasks of these rules to the view, so that they take no memory and no turn.

        Those that may start again are loaded from there.
        """
        before, self.paused = self.paused, paused
        if self._left_out and paused.frees(before):
            self._left_out = False
            self.reload_at(self.now_us or 1)
        groups = list(self.queue)
        self.queue.clear()
        self.queued_tasks -= sum(len(g.tasks) for g in groups)
        self.queued_bytes -= sum(g.size_bytes for g in groups)
        for group in groups:
            self._add(group)

    def mark_ended(self, ids: Iterable[bytes]) -> None:
        """Note ended tasks. A page that was requested before may still have them."""
        if self._asked:
            self._ended.update(ids)

    def stop(self, ids: Iterable[bytes], now_us: int) -> None:
        """Keep these tasks from being sent."""
        self.now_us = now_us
        self.stopped.update(ids)
        self._last_stop_us = now_us

    # ------------------------------------------------------------ loading

    def request_page(self) -> tuple[int, int] | None:
        """Return (token, after) of the page to load now, or None."""
        if self._reload_us and self.now_us >= self._reload_us and not self._asked:
            self.loading, self._cursor, self._reload_us = True, -1, 0
        if not self.loading or self._asked or self.queued_tasks >= LOW:
            return None
        self._asked = True
        self._token += 1
        return self._token, self._cursor

    def add_page(self, token: int, rows: Sequence[OpenTask], reached: int = 0) -> bool:
        """Add the page that was requested with this token; False for an older one.

        The view had all records below `reached`.
        """
        if not self._asked or token != self._token:
            return False
        self._asked = False
        queued = {t.id for g in self.queue for t in g.tasks} if self.queue else set()
        queued.update(t.id for _, _, g in self.deferred for t in g.tasks)
        for row in rows:
            self._cursor = max(self._cursor, row.seq)
            task_id = row.task.id
            if not self._is_sent(task_id) and task_id not in self._ended and task_id not in queued:
                self._add_row(row)
        if len(rows) < PAGE:
            self._catch_up({row.task.id for row in rows}, reached)
        self._clear_buffered()
        return True

    def _add_row(self, row: OpenTask) -> None:
        size = len(row.task.args)
        call_raw = encode(row.call)
        if row.due_us > self.now_us:
            due_us = start_us(row.call, row.task.id, row.attempt, row.due_us, self.now_us)
            self.defer(due_us, TaskGroup(row.call, call_raw, row.attempt, row.accepted_us, [row.task], size))
            return
        last = self.queue[-1] if self.queue else None
        if (
            last is not None
            and isinstance(last.tasks, _ViewRows)
            and (last.call_raw, last.attempt, last.accepted_us) == (call_raw, row.attempt, row.accepted_us)
        ):
            last.tasks.append(row.task)
            last.size_bytes += size
            self.queued_tasks += 1
            self.queued_bytes += size
        else:
            self._add(TaskGroup(row.call, call_raw, row.attempt, row.accepted_us, _ViewRows([row.task]), size))

    def _catch_up(self, seen: set[bytes], reached: int) -> None:
        """End loading after the last page.

        Add the new tasks since its request, unless they exceeded the budget.
        """
        if self._buffered_bytes > self._budget:
            self._cursor = -1
            return
        self.loading = False
        self._horizon = reached
        for frame, offset in self._buffered:
            if 0 <= offset < reached:
                continue
            tasks = [t for t in frame.tasks if t.id not in seen and not self._is_sent(t.id)]
            if tasks:
                size = sum(len(t.args) for t in tasks)
                self._add(TaskGroup(frame.call, encode(frame.call), 1, frame.accepted_us, tasks, size))

    # ------------------------------------------------------------ out

    @property
    def idle(self) -> bool:
        """True if there is nothing to send, load or remember."""
        return not (self.queue or self.deferred or self.loading or self.stopped or self._reload_us or self._left_out)

    def enqueue_due(self) -> None:
        """Move the retries that are due to the queue."""
        while self.deferred and self.deferred[0][0] <= self.now_us:
            _, _, group = heapq.heappop(self.deferred)
            self.queued_bytes -= group.size_bytes
            self._add(group)
        idle = not self.queue and not self.deferred and not self.loading
        if self.stopped and idle and self.now_us - self._last_stop_us > KEEP_STOPPED_US:
            self.stopped.clear()

    def dequeue(self, most: int, at: int = 0) -> TaskGroup:
        """Remove and return tasks of the group at an index of the queue.

        They are at most `most` and one frame's worth. Stopped ones are dropped, perhaps all.
        """
        group = self.queue[at]
        del self.queue[at]
        count = min(len(group.tasks), most, FRAME_TASKS)
        if group.size_bytes > FRAME_BYTES:
            count = _fitting(group.tasks, count)
        tasks, size = group.tasks, group.size_bytes
        if count < len(tasks):
            tasks = tasks[:count]
            size = sum(len(t.args) for t in tasks)
            rest = group.tasks[count:]
            self.queue.insert(
                at,
                TaskGroup(group.call, group.call_raw, group.attempt, group.accepted_us, rest, group.size_bytes - size),
            )
        self.queued_tasks -= count
        self.queued_bytes -= size
        if self.stopped:
            tasks = [t for t in tasks if t.id not in self.stopped]
        return TaskGroup(group.call, group.call_raw, group.attempt, group.accepted_us, tasks, size)


class _ViewRows(list[TaskRecord]):
    """Tasks from rows of the view. Rows of the same call are appended."""


def _fitting(tasks: Sequence[TaskRecord], count: int) -> int:
    """Return how many of the first `count` tasks fit into a frame; at least one."""
    total = 0
    for i in range(count):
        total += len(tasks[i].args)
        if total > FRAME_BYTES and i:
            return i
    return count
