"""Limits the tasks of one function at an agent by measured duration. Pure.

Short tasks travel in bulk. Long ones wait at the server, where they can be cancelled, and where
they are in nobody's way. A function's durations may differ from call to call: after a pause it
begins with few tasks again, and their results open the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

from oncue.dispatcher.bridge.pending_tasks import TaskGroup
from oncue.protocol.records import Call, Ended

AHEAD_US = 50_000  # of work ready for each worker: a round trip to a far agent
FIRST_US, FIRST = 2_000, 128  # ready for each worker, and for all, until results have come
GROWTH = 32  # more tasks for each result
MOST = 4_096  # ready beside the workers' own
WEIGHT = 0.25  # of a new measurement
SAMPLES = 7  # of a frame of results
SEARCHED = 32  # groups, for one whose function has room
FUNCTIONS = 10_000  # remembered


def limited_as(call: Call) -> str:
    """Return the name under which tasks of a call are limited.

    It is of their function and priority: those that the agent has already keep none of a higher
    priority here.
    """
    return call.function if not call.priority else f"{call.function} {call.priority}"


class _Function(msgspec.Struct, gc=False):
    at_agent: int = 0
    ended: int = 0  # since it was last idle
    task_us: float = 0.0  # measured; 0: not yet


class FunctionLimits:
    """Counts and durations of the tasks at one agent, by function."""

    def __init__(self) -> None:
        self.workers = 1
        self._functions: dict[str, _Function] = {}

    def next_group(self, queue: deque[TaskGroup], room: int) -> tuple[int, int]:
        """Return (index of the first group whose function has room, that room).

        The room is 0 if there is none among the first groups.
        """
        for at, group in enumerate(islice(queue, SEARCHED)):
            free = min(room, self.room(limited_as(group.call)))
            if free > 0:
                return at, free
        return 0, 0

    def room(self, function: str) -> int:
        """Return how many more tasks of the function the agent may get."""
        known = self._functions.get(function)
        workers, ready = self.workers, self.workers
        if known is None:
            return workers + ready
        if known.task_us:
            in_time = min(MOST, int(workers * AHEAD_US / known.task_us))
            first = min(FIRST, int(workers * FIRST_US / known.task_us))
            ready = max(ready, min(in_time, first + GROWTH * known.ended))
        return workers + ready - known.at_agent

    def sent(self, function: str, tasks: int) -> None:
        """Count tasks that were sent."""
        known = self._functions.get(function)
        if known is None:
            known = self._functions[function] = _Function()
            if len(self._functions) > FUNCTIONS:
                self._forget()
        known.at_agent += tasks

    def ended(self, function: str, ends: Sequence[Ended], count: int) -> None:
        """Measure some of these ends; `count` of their tasks were at the agent."""
        known = self._functions.get(function)
        if known is None or not count:
            return
        known.at_agent = max(0, known.at_agent - count)
        known.ended = known.ended + count if known.at_agent else 0
        sampled = ends if len(ends) <= SAMPLES else ends[:: len(ends) // SAMPLES + 1]
        took = sorted(e.ended_us - e.started_us for e in sampled if e.started_us)
        if took:
            each = max(0, took[len(took) // 2]) + 1.0
            known.task_us = each if not known.task_us else (1 - WEIGHT) * known.task_us + WEIGHT * each

    def recount(self, groups: Iterable[TaskGroup]) -> None:
        """Count the tasks at the agent anew; a group is given once for each of its tasks."""
        for known in self._functions.values():
            known.at_agent = known.ended = 0
        for group in groups:
            self.sent(limited_as(group.call), 1)

    def _forget(self) -> None:
        """Forget a function without tasks at the agent."""
        for function, known in self._functions.items():
            if not known.at_agent:
                del self._functions[function]
                return
