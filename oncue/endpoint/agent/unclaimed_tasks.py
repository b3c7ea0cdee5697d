"""Tasks that nodes may still run after a restart of their agent. Pure.

the journal: started, not ended ──► unclaimed ──a node names it──► claimed
                                        └── CLAIM_US ──► lost
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from oncue.endpoint.agent.task_queue import AttemptGroup
from oncue.protocol.records import Call, TaskRecord
from oncue.protocol.run_options import RunOptions

CLAIM_US = 60_000_000  # a node notices the restart after 8 s, and dials again at least every 10 s


class ClaimedTasks(msgspec.Struct, frozen=True):
    """Tasks of one attempt of one function, which a node holds."""

    function: str
    attempt: int
    tasks: list[TaskRecord]
    options: RunOptions | None = None  # of the call


class UnclaimedTasks:
    """Started tasks by id, until a node claims them or `until_us` has passed."""

    def __init__(self, until_us: int) -> None:
        self.until_us = until_us
        self._tasks: dict[bytes, tuple[AttemptGroup, TaskRecord]] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._tasks

    def add(self, group: AttemptGroup, tasks: Iterable[TaskRecord]) -> None:
        self._tasks.update((t.id, (group, t)) for t in tasks)

    def claim(self, held: Iterable[tuple[bytes, int]]) -> list[ClaimedTasks]:
        """Remove and return those of these (id, attempt) that are here."""
        found: dict[tuple[str, int, RunOptions | None], ClaimedTasks] = {}
        for task_id, attempt in held:
            group, task = self._tasks.get(task_id, (None, None))
            if group is None or task is None or group.attempt != attempt:
                continue
            del self._tasks[task_id]
            function, options = group.call.function, group.call.run
            claimed = ClaimedTasks(function, attempt, [], options)
            found.setdefault((function, attempt, options), claimed).tasks.append(task)
        return list(found.values())

    def calls(self) -> list[tuple[bytes, Call]]:
        """Return the id and the call of each task."""
        return [(task_id, group.call) for task_id, (group, _) in self._tasks.items()]

    def drain(self) -> list[tuple[AttemptGroup, list[TaskRecord]]]:
        """Remove and return all, by group."""
        by_group: dict[int, tuple[AttemptGroup, list[TaskRecord]]] = {}
        for group, task in self._tasks.values():
            by_group.setdefault(id(group), (group, []))[1].append(task)
        self._tasks.clear()
        return list(by_group.values())
