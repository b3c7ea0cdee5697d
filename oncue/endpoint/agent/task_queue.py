"""The tasks that an agent holds: pure.

    enqueue ──► queue of its function ──dequeue (function by function in turn)──► a worker
                 ▲    └── or set aside until its body, or a task's large arguments, are here
                 └── enqueue(first=True): requeued

What the tasks of one frame share is a Group; a dictionary from id to Group is all that a single task costs here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

import msgspec

from oncue.protocol.records import Call, TaskRecord

COST_OF_TASK = 64  # bytes that a task costs beside its arguments


class AttemptGroup(msgspec.Struct, eq=False, weakref=False):
    """Tasks that came together: one attempt of one call."""

    call_raw: bytes
    call: Call
    attempt: int
    accepted_us: int
    tasks: list[TaskRecord]
    size_bytes: int
    live: int = 0  # how many of them have not ended


class QueuedSlice(msgspec.Struct, eq=False):
    """Tasks of a group that wait, from index `at` on."""

    group: AttemptGroup
    tasks: list[TaskRecord]
    at: int = 0


class TaskQueue:
    def __init__(self) -> None:
        self.held: dict[bytes, AttemptGroup] = {}  # all that were received and have not ended
        self.live_bytes = 0
        self.queued = 0  # in queues of functions that are here
        self._queues: OrderedDict[str, deque[QueuedSlice]] = OrderedDict()  # in turn
        self.without_function: dict[str, deque[QueuedSlice]] = {}  # function -> tasks that wait for its body

    # ------------------------------------------------------------ in

    def add(self, group: AttemptGroup) -> None:
        group.live = len(group.tasks)
        self.held.update(dict.fromkeys([t.id for t in group.tasks], group))
        self.live_bytes += group.size_bytes

    def enqueue(self, group: AttemptGroup, tasks: list[TaskRecord], *, here: bool, first: bool = False) -> None:
        """Tasks that may run; `here`: their function's body is here."""
        function = group.call.function
        if here:
            self.queued += len(tasks)
            queue = self._queues.get(function)
            if queue is None:
                queue = self._queues[function] = deque()
        else:
            queue = self.without_function.setdefault(function, deque())
        (queue.appendleft if first else queue.append)(QueuedSlice(group, tasks))

    def on_function(self, function: str) -> None:
        """The function's body is here."""
        slices = self.without_function.pop(function, None)
        if slices:
            self.queued += sum(len(part.tasks) - part.at for part in slices)
            self._queues.setdefault(function, deque()).extend(slices)

    def pop_without_function(self, function: str) -> list[tuple[AttemptGroup, list[TaskRecord]]]:
        """The function's body cannot be had: what waited for it is taken out."""
        return [(part.group, part.tasks[part.at :]) for part in self.without_function.pop(function, ())]

    # ------------------------------------------------------------ out

    def next_function(self) -> str | None:
        """Whose turn it is."""
        return next(iter(self._queues), None)

    def dequeue(self, function: str, most: int) -> tuple[AttemptGroup, list[TaskRecord]]:
        """Up to `most` tasks of one group of this function; then it is the next function's turn."""
        queue = self._queues[function]
        part = queue[0]
        tasks = part.tasks[part.at : part.at + most]
        part.at += len(tasks)
        if part.at >= len(part.tasks):
            queue.popleft()
        if queue:
            self._queues.move_to_end(function)
        else:
            del self._queues[function]
        self.queued -= len(tasks)
        return part.group, tasks

    def finish(self, task_id: bytes) -> AttemptGroup | None:
        """The task's group, and it is held no more; None when it was not held."""
        group = self.held.pop(task_id, None)
        if group is not None:
            group.live -= 1
            if not group.live:
                self.live_bytes -= group.size_bytes
        return group

    def remove(self, ids: set[bytes]) -> list[tuple[AttemptGroup, TaskRecord]]:
        """Take those of the ids out that wait here (not those at workers)."""
        found: list[tuple[AttemptGroup, TaskRecord]] = []
        for queues, counted in ((self._queues, True), (self.without_function, False)):
            for function, queue in list(queues.items()):
                out = [(part.group, t) for part in queue for t in part.tasks[part.at :] if t.id in ids]
                if not out:
                    continue
                found += out
                for part in queue:
                    part.tasks, part.at = [t for t in part.tasks[part.at :] if t.id not in ids], 0
                left = deque(part for part in queue if part.tasks)
                if counted:
                    self.queued -= len(out)
                if left:
                    queues[function] = left
                else:
                    del queues[function]
        return found

    def expired(self, now_us: int) -> tuple[set[bytes], int]:
        """(ids of what waits here past its expiry, when the next of the others expires; 0: none does)."""
        due: set[bytes] = set()
        following = 0
        for queues in (self._queues, self.without_function):
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
        """Ids of those in queues."""
        return {
            t.id
            for queues in (self._queues, self.without_function)
            for queue in queues.values()
            for part in queue
            for t in part.tasks[part.at :]
        }

    def groups(self) -> Iterable[AttemptGroup]:
        """Each group of which something is held, once."""
        return {id(g): g for g in self.held.values()}.values()
