"""Watches the order in which an agent starts tasks: strict by priority, with a share for lower ones."""

from __future__ import annotations

from oncue.endpoint.agent.task_queue import AttemptGroup, TaskQueue
from oncue.protocol.priority import LOW, NORMAL, SHARE, PriorityShare
from oncue.protocol.records import TaskRecord


class OrderedQueue(TaskQueue):
    """A TaskQueue that checks each turn."""

    _went_first: dict[int, int]  # tasks of others, while one of these waited
    _watched: PriorityShare  # the share that these are of: without other priorities, the next one is new

    @classmethod
    def watch(cls, queue: TaskQueue) -> None:
        """Check the turns of a queue from now on."""
        queue.__class__ = cls
        queue._went_first, queue._watched = {NORMAL: 0, LOW: 0}, queue._share  # type: ignore[attr-defined]

    def dequeue(self, function: str, most: int, index: int = 0) -> tuple[AttemptGroup, list[TaskRecord]]:
        waiting = {p for p, queues in self._by_priority.items() if queues and p not in self._passed}
        all_waiting = {p for p, queues in self._by_priority.items() if queues}
        if self._watched is not self._share:
            self._went_first, self._watched = {NORMAL: 0, LOW: 0}, self._share
        group, tasks = super().dequeue(function, most, index)
        priority, earned = group.call.priority, self._went_first
        assert priority in waiting
        due = {p for p in waiting if earned.get(p, 0) >= SHARE - 1}
        if any(p > priority for p in waiting):
            assert len(tasks) * (SHARE - 1) <= earned[priority], f"priority {priority} before {waiting}: {earned}"
        assert not any(p < priority for p in due) or priority in due, f"{priority} before {due}, which are due"
        for lower in earned:
            if lower not in all_waiting:
                earned[lower] = 0
            elif lower != priority:
                earned[lower] = min(SHARE * SHARE, earned[lower] + len(tasks))
        if priority in earned:
            earned[priority] = max(0, earned[priority] - len(tasks) * (SHARE - 1))
        return group, tasks
