"""Queue of held tasks, by priority and function. Pure.

    enqueue ──► queue of its function ──dequeue (functions in turn)──► a worker
                 ▲    └── or set aside until the function's body is here
                 └── enqueue(first=True): requeued by the pool

Each priority has queues by function of its own. `next_function` chooses the priority; what follows
is about that one, until the next call.

An AttemptGroup has what the tasks of one frame share. A single task costs only its entry in the
dictionary from id to group.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import msgspec

from oncue.protocol.priority import NORMAL, PriorityShare, known_priority
from oncue.protocol.records import Call, TaskRecord
from oncue.protocol.run_options import RunOptions, without_affinity

COST_OF_TASK = 64  # bytes that a task costs beside its arguments


class AttemptGroup(msgspec.Struct, eq=False, weakref=False):
    """Tasks that arrived together: one attempt of one call."""

    call_raw: bytes
    call: Call
    attempt: int
    accepted_us: int
    tasks: list[TaskRecord]
    size_bytes: int
    live: int = 0  # how many of them have not ended


class QueuedSlice(msgspec.Struct, eq=False):
    """Waiting tasks of a group, from index `at` on."""

    group: AttemptGroup
    tasks: list[TaskRecord]
    at: int = 0
    overtaken_us: int = 0  # since when others start before its next task; see AffinityChoice


Queues = OrderedDict[str, deque[QueuedSlice]]  # by function, in turn


class TaskQueue:
    """All held tasks; those that wait are in queues by function."""

    def __init__(self) -> None:
        self.held: dict[bytes, AttemptGroup] = {}  # all that were received and have not ended
        self.live_bytes = 0
        self.queued = 0  # in queues of functions that are here
        #: Number of waiting tasks by (function, options of their call).
        self.waiting_by_call: dict[tuple[str, RunOptions | None], int] = {}
        self._normal: Queues = OrderedDict()
        self._by_priority: dict[int, Queues] = {NORMAL: self._normal}  # others while they have tasks
        self._priority, self._queues = NORMAL, self._normal  # of this turn
        self._most = 0  # tasks that this turn may take; 0: no limit
        self._passed: set[int] = set()  # priorities whose tasks may not start now
        self._share = PriorityShare()
        #: Tasks that wait for their function's body, by function.
        self.without_function: dict[str, deque[QueuedSlice]] = {}

    # ------------------------------------------------------------ in

    def add(self, group: AttemptGroup) -> None:
        """Hold a group of tasks."""
        group.live = len(group.tasks)
        self.held.update(dict.fromkeys([t.id for t in group.tasks], group))
        self.live_bytes += group.size_bytes

    def enqueue(self, group: AttemptGroup, tasks: list[TaskRecord], *, here: bool, first: bool = False) -> None:
        """Queue tasks of a group. `here`: their function's body is here."""
        function = group.call.function
        self._count(group, len(tasks))
        if here:
            self.queued += len(tasks)
            queues = self._queues_of(group.call)
            queue = queues.get(function)
            if queue is None:
                queue = queues[function] = deque()
        else:
            queue = self.without_function.setdefault(function, deque())
        (queue.appendleft if first else queue.append)(QueuedSlice(group, tasks))

    def _queues_of(self, call: Call) -> Queues:
        if not call.priority:
            return self._normal
        return self._by_priority.setdefault(known_priority(call.priority), OrderedDict())

    def _count(self, group: AttemptGroup, change: int) -> None:
        key = (group.call.function, without_affinity(group.call.run))
        waiting = self.waiting_by_call.get(key, 0) + change
        if waiting:
            self.waiting_by_call[key] = waiting
        else:
            self.waiting_by_call.pop(key, None)

    def on_function(self, function: str) -> None:
        """Queue the tasks that waited for this function's body."""
        slices = self.without_function.pop(function, None)
        if slices:
            self.queued += sum(len(part.tasks) - part.at for part in slices)
            for part in slices:
                self._queues_of(part.group.call).setdefault(function, deque()).append(part)

    def pop_without_function(self, function: str) -> list[tuple[AttemptGroup, list[TaskRecord]]]:
        """Remove and return the tasks that wait for this function's body."""
        parts = self.without_function.pop(function, ())
        for part in parts:
            self._count(part.group, part.at - len(part.tasks))
        return [(part.group, part.tasks[part.at :]) for part in parts]

    # ------------------------------------------------------------ out

    def begin_turn(self) -> None:
        """Let all priorities have tasks that may start."""
        self._passed.clear()

    def next_function(self) -> str | None:
        """Return the function whose turn it is, and set the priority to its."""
        if len(self._by_priority) == 1:
            return next(iter(self._normal), None) if NORMAL not in self._passed else None
        for priority, most in self._share.turns([p for p, queues in self._by_priority.items() if queues]):
            if priority not in self._passed:
                self._priority, self._queues, self._most = priority, self._by_priority[priority], most
                return next(iter(self._queues))
        return None

    def pass_priority(self) -> None:
        """Let lower priorities have their turn: no task of this one may start now."""
        self._passed.add(self._priority)

    @property
    def functions(self) -> int:
        """Number of functions that have queued tasks of this priority."""
        return len(self._queues)

    def next_call(self, function: str, index: int = 0) -> Call:
        """Return the call whose tasks are dequeued next, or those of another slice."""
        return self._queues[function][index].group.call

    def next_calls(self) -> list[Call]:
        """Return the next call of each function."""
        return [queue[0].group.call for queues in self._by_priority.values() for queue in queues.values()]

    def slices(self, function: str) -> Sequence[QueuedSlice]:
        """Return the waiting slices of a function, in order."""
        return self._queues[function]

    def pass_over(self, function: str) -> None:
        """Let the next function have its turn."""
        self._queues.move_to_end(function)

    def dequeue(self, function: str, most: int, index: int = 0) -> tuple[AttemptGroup, list[TaskRecord]]:
        """Remove up to `most` tasks of one slice; the next function's turn follows."""
        queue = self._queues[function]
        part = queue[index]
        if self._most:
            most = min(most, self._most)
        tasks = part.tasks[part.at : part.at + most]
        part.at += len(tasks)
        part.overtaken_us = 0
        if part.at >= len(part.tasks):
            del queue[index]
        if len(self._by_priority) > 1:
            self._share.dequeued(self._priority, len(tasks), [p for p, queues in self._by_priority.items() if queues])
        if queue:
            self._queues.move_to_end(function)
        else:
            del self._queues[function]
            self._drop_empty()
        self.queued -= len(tasks)
        self._count(part.group, -len(tasks))
        return part.group, tasks

    def _drop_empty(self) -> None:
        """Forget other priorities without tasks. Without any, it is the turn of normal."""
        if len(self._by_priority) > 1:
            for priority in [p for p, queues in self._by_priority.items() if p != NORMAL and not queues]:
                del self._by_priority[priority]
            if len(self._by_priority) == 1:
                self._priority, self._queues, self._most = NORMAL, self._normal, 0
                self._share = PriorityShare()

    def finish(self, task_id: bytes) -> AttemptGroup | None:
        """Release a task; return its group, or None if it was not held."""
        group = self.held.pop(task_id, None)
        if group is not None:
            group.live -= 1
            if not group.live:
                self.live_bytes -= group.size_bytes
        return group

    def remove(self, ids: set[bytes]) -> list[tuple[AttemptGroup, TaskRecord]]:
        """Remove those of these tasks that wait here, not those at workers."""
        found: list[tuple[AttemptGroup, TaskRecord]] = []
        for queues, counted in [
            *((queues, True) for queues in self._by_priority.values()),
            (self.without_function, False),
        ]:
            for function, queue in list(queues.items()):
                out = [(part.group, t) for part in queue for t in part.tasks[part.at :] if t.id in ids]
                if not out:
                    continue
                found += out
                for group, _ in out:
                    self._count(group, -1)
                for part in queue:
                    part.tasks, part.at = [t for t in part.tasks[part.at :] if t.id not in ids], 0
                left = deque(part for part in queue if part.tasks)
                if counted:
                    self.queued -= len(out)
                if left:
                    queues[function] = left
                else:
                    del queues[function]
        self._drop_empty()
        return found

    def expired(self, now_us: int) -> tuple[set[bytes], int]:
        """Return (ids of waiting tasks past their expiry, the next expiry; 0: none)."""
        due: set[bytes] = set()
        following = 0
        for queues in (*self._by_priority.values(), self.without_function):
            for queue in queues.values():
                for part in queue:
                    at = part.group.call.expires_us
                    if at and at < now_us:
                        due.update([t.id for t in part.tasks[part.at :]])
                    elif at:
                        following = min(following or at, at)
        return due, following

    # ------------------------------------------------------------ for the journal

    def waiting(self) -> set[bytes]:
        """Return the ids of queued tasks."""
        return {
            t.id
            for queues in (*self._by_priority.values(), self.without_function)
            for queue in queues.values()
            for part in queue
            for t in part.tasks[part.at :]
        }

    def groups(self) -> Iterable[AttemptGroup]:
        """Return each group that has held tasks, once."""
        return {id(g): g for g in self.held.values()}.values()
