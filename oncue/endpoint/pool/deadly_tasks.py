"""Counts workers that died before they began a task."""

from __future__ import annotations

from oncue.protocol.records import TaskRecord

DEATHS = 3  # of workers before they began a task, after which the task is lost


class DeadlyTasks:
    """Deaths of workers, by the first task that they had not begun."""

    def __init__(self) -> None:
        self._deaths: dict[bytes, int] = {}

    def add(self, task: TaskRecord) -> bool:
        """Count a death. Return True if workers that had this task first died too often.

        A function that spoils its worker's shared memory looks as if it had not begun.
        """
        died = self._deaths.pop(task.id, 0) + 1
        self._deaths[task.id] = died
        if len(self._deaths) > 1_000:
            del self._deaths[next(iter(self._deaths))]
        return died >= DEATHS
