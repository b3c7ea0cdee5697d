"""Pending tasks of one endpoint by priority: a PendingTasks for each, without I/O.

    add(frame), add_page(rows) ──► PendingTasks of live, normal and low ──turn──► next_group

Each priority has a queue and a memory of its own, and is loaded from the view by itself: a million
waiting tasks of low priority are in nobody's way. Without tasks of other priorities, only the
normal one is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from oncue.dispatcher.bridge.effects import LoadOpenTasks
from oncue.dispatcher.bridge.function_limits import FunctionLimits
from oncue.dispatcher.bridge.paused_rules import PausedRules
from oncue.dispatcher.bridge.pending_tasks import PAGE, OpenTask, PendingTasks, TaskGroup
from oncue.protocol.priority import LIVE, LOW, NORMAL, PRIORITIES, PriorityShare, known_priority
from oncue.protocol.records import Call, TaskFrame

OTHERS = (LIVE, LOW)
OTHERS_BUDGET = 4  # they have this part of the normal one's memory


class PendingQueues:
    """Tasks of an endpoint that have not been sent, by priority."""

    def __init__(self, is_sent: Callable[[bytes], bool], budget_bytes: int) -> None:
        """See PendingTasks."""
        self.normal = PendingTasks(is_sent, budget_bytes)
        others = budget_bytes // OTHERS_BUDGET
        self._of = {p: self.normal if p == NORMAL else PendingTasks(is_sent, others) for p in PRIORITIES}
        self._busy = [self.normal]  # those that may have something to do, in order of priority
        self._share = PriorityShare()
        self._unknown = True  # the view was not asked yet if it has tasks of other priorities
        self._first_pages: dict[int, tuple[int, int]] = {}  # those that wait for this answer

    def of(self, call: Call) -> PendingTasks:
        """Return the tasks of a call's priority."""
        return self._of[known_priority(call.priority)] if call.priority else self.normal

    @property
    def queued_tasks(self) -> int:
        return sum(pending.queued_tasks for pending in self._of.values())

    @property
    def stopped(self) -> set[bytes]:
        """Tasks that are not to be sent."""
        return set().union(*(pending.stopped for pending in self._of.values()))

    @property
    def paused(self) -> PausedRules:
        """Rules whose tasks wait."""
        return self.normal.paused

    @paused.setter
    def paused(self, paused: PausedRules) -> None:
        for pending in self._of.values():
            pending.paused = paused

    def ahead_of(self, call: Call) -> int:
        """Return how many tasks of higher priorities are queued here."""
        return sum(pending.queued_tasks for p, pending in self._of.items() if p > call.priority)

    def restart(self) -> None:
        """Empty the queues, and load from the view. Pages requested before are ignored."""
        for pending in self._of.values():
            pending.restart()
        self._unknown, self._first_pages = True, {}
        self._busy = [self.normal]

    # ------------------------------------------------------------ in

    def add(self, frame: TaskFrame, size_bytes: int, offset: int = -1) -> None:
        """Add tasks that were appended just now. See PendingTasks.add."""
        if not frame.call.priority:
            self.normal.add(frame, size_bytes, offset)
            return
        self.of(frame.call).add(frame, size_bytes, offset)
        self._wake()

    def defer(self, due_us: int, group: TaskGroup) -> None:
        """Add a retry that is due later."""
        self.of(group.call).defer(due_us, group)
        if group.call.priority:
            self._wake()

    def reload_at(self, due_us: int, call: Call | None = None) -> None:
        """Load the open tasks again at this time: those of the call's priority, or all."""
        for pending in [self.of(call)] if call is not None else self._of.values():
            pending.reload_at(due_us)
        self._wake()

    def pause(self, paused: PausedRules) -> None:
        """Leave tasks of these rules to the view."""
        for pending in self._of.values():
            pending.pause(paused)
        self._wake()

    def mark_ended(self, ids: Sequence[bytes]) -> None:
        """Note ended tasks. A page that was requested before may still have them."""
        for pending in self._of.values() if self._unknown else self._busy:
            pending.mark_ended(ids)

    def stop(self, ids: Sequence[bytes], now_us: int) -> None:
        """Keep these tasks from being sent."""
        for pending in self._of.values():
            pending.stop(ids, now_us)
        self._wake()

    def release(self, ids: Iterable[bytes], now_us: int) -> None:
        """Allow stopped tasks to be sent again."""
        for pending in self._of.values():
            pending.stopped.difference_update(ids)
        self.reload_at(now_us)  # some may have been dropped from the queue

    def _wake(self) -> None:
        self._busy = list(self._of.values())

    # ------------------------------------------------------------ loading

    def request_pages(self) -> list[LoadOpenTasks]:
        """Return the pages to load now."""
        if len(self._busy) == 1 and not self._unknown:
            page = self.normal.request_page()
            return [LoadOpenTasks(*page, PAGE)] if page is not None else []
        wanted = []
        for priority, pending in self._of.items():
            if pending not in self._busy or (pending is not self.normal and self._unknown):
                continue
            page = pending.request_page()
            if page is not None:
                wanted.append(LoadOpenTasks(*page, PAGE, priority))
                if pending is self.normal and self._unknown:  # the answer says if there are others
                    self._first_pages = {p: found for p in OTHERS if (found := self._of[p].request_page())}
        return wanted

    def add_page(
        self, token: int, rows: Sequence[OpenTask], reached: int, priority: int, others: bool
    ) -> list[LoadOpenTasks]:
        """Add a page that was requested; return what must be loaded, too.

        `others`: the view has open tasks of other priorities.
        """
        if not self._of[priority].add_page(token, rows, reached) or priority != NORMAL or not self._unknown:
            return []
        self._unknown = False
        first, self._first_pages = self._first_pages, {}
        if others:
            self._wake()
            return [LoadOpenTasks(*page, PAGE, p) for p, page in first.items()]
        for p, page in first.items():
            self._of[p].add_page(page[0], [], reached)
        return []

    # ------------------------------------------------------------ out

    def enqueue_due(self, now_us: int) -> None:
        """Move the retries that are due to the queues."""
        for pending in self._busy:
            pending.now_us = now_us
            pending.enqueue_due()
        if len(self._busy) > 1:
            self._busy = [p for p in self._of.values() if p is self.normal or not p.idle]
            if len(self._busy) == 1:
                self._share = PriorityShare()

    def next_group(self, limits: FunctionLimits, room: int) -> TaskGroup | None:
        """Remove and return the tasks that are sent next, at most `room`."""
        if room <= 0:
            return None
        if len(self._busy) == 1:
            if not self.normal.queue:
                return None
            at, free = limits.next_group(self.normal.queue, room)
            return self.normal.dequeue(free, at) if free > 0 else None
        waiting = {p for p, pending in self._of.items() if pending.queue}
        for priority, most in self._share.turns(waiting):
            pending = self._of[priority]
            at, free = limits.next_group(pending.queue, min(room, most) if most else room)
            if free > 0:
                before = pending.queued_tasks
                group = pending.dequeue(free, at)
                self._share.dequeued(priority, before - pending.queued_tasks, waiting)
                return group
        return None
