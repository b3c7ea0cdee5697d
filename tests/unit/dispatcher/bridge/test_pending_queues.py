"""PendingQueues: priorities at the server, in memory and loaded from the view."""

from __future__ import annotations

from msgspec.structs import replace

from oncue import ids
from oncue.dispatcher.bridge.function_limits import FunctionLimits
from oncue.dispatcher.bridge.pending_queues import PendingQueues
from oncue.dispatcher.bridge.pending_tasks import PAGE, OpenTask
from oncue.protocol.priority import LIVE, LOW, NORMAL
from oncue.protocol.records import VERSION, Call, TaskFrame, TaskRecord

CALL = Call(VERSION, "f" * 64, "ep", "ada")
CALLS = {p: replace(CALL, priority=p) for p in (LIVE, NORMAL, LOW)}


class View:
    """The open tasks that a view has, and the queues of a channel before it."""

    def __init__(self, budget_bytes: int = 1 << 20) -> None:
        self.rows: list[OpenTask] = []
        self.sent: list[int] = []  # priorities
        self.limits = FunctionLimits()
        self.queues = PendingQueues(lambda task_id: task_id in self.gone, budget_bytes)
        self.gone: set[bytes] = set()

    def frame(self, priority: int, count: int = 1) -> TaskFrame:
        """Return a frame whose tasks the view has at once."""
        tasks = [TaskRecord(i, b"m\x92\x90\x80") for i in ids.batch_ids("ada", ids.new_uuid7(), count)]
        self.rows += [OpenTask(len(self.rows) + n, CALLS[priority], 1, 1, 0, t) for n, t in enumerate(tasks)]
        return TaskFrame(VERSION, CALLS[priority], 1, tasks)

    def load(self) -> None:
        """Answer all requests for pages."""
        wanted = self.queues.request_pages()
        while wanted:
            rows = [r for r in self.rows if r.task.id not in self.gone]
            for load in wanted[:]:
                wanted.remove(load)
                page = [r for r in rows if r.seq > load.after and r.call.priority == load.priority][: load.limit]
                others = any(r.call.priority for r in rows)
                wanted += self.queues.add_page(load.token, page, len(self.rows), load.priority, others)

    def send(self, room: int) -> list[int]:
        """Send up to so many tasks, as the channel does; return their priorities."""
        sent: list[int] = []
        self.limits.workers = room
        while len(sent) < room:
            self.queues.enqueue_due(1_000)
            group = self.queues.next_group(self.limits, room - len(sent))
            if group is None:
                break
            self.gone |= {t.id for t in group.tasks}
            sent += [group.call.priority] * len(group.tasks)
            self.load()
        return sent


def test_a_live_task_overtakes_those_that_wait() -> None:
    view = View()
    view.load()
    view.queues.add(view.frame(LOW, 3), 12)
    view.queues.add(view.frame(NORMAL, 2), 8)
    view.queues.add(view.frame(LIVE, 2), 8)

    assert view.queues.ahead_of(CALLS[LOW]) == 4
    assert view.send(10) == [LIVE] * 2 + [NORMAL] * 2 + [LOW] * 3
    assert view.queues.queued_tasks == 0


def test_after_a_restart_priorities_hold_among_all_tasks_of_the_view() -> None:
    """Also among more than a page has: an owner that is new, a server that was killed."""
    view = View()
    for priority in (LOW, NORMAL):
        for _ in range(2 * PAGE // 1_000):
            view.frame(priority, 1_000)
    view.frame(LIVE, 2)
    view.queues.restart()
    view.load()

    sent = view.send(64)

    assert sent[:2] == [LIVE] * 2
    assert sent.count(LOW) <= 64 // 15
    assert set(view.send(9_000)) == {NORMAL, LOW}
    assert view.send(1) == []
    assert len(view.gone) == len(view.rows)


def test_low_tasks_that_fill_the_memory_leave_room_for_others() -> None:
    view = View(budget_bytes=4_000)
    view.load()
    for _ in range(10):
        view.queues.add(view.frame(LOW, 100), 400)
    view.queues.add(view.frame(LIVE, 1), 4)

    assert view.send(1) == [LIVE]
    assert view.send(2_000) == [LOW] * 1_000


def test_a_new_task_is_not_sent_twice_when_the_first_page_has_it() -> None:
    view = View()
    view.queues.restart()
    wanted = view.queues.request_pages()
    view.queues.add(view.frame(LIVE, 2), 8, 0)  # its record has offset 0

    more = view.queues.add_page(wanted[0].token, [], 1, NORMAL, True)
    for load in more:
        rows = [r for r in view.rows if r.call.priority == load.priority]
        view.queues.add_page(load.token, rows, 1, load.priority, True)
    view.queues.add(TaskFrame(VERSION, CALLS[LIVE], 1, [r.task for r in view.rows]), 8, 0)

    assert view.send(10) == [LIVE] * 2


def test_tasks_at_the_agent_keep_none_of_a_higher_priority_back() -> None:
    """Each priority of a function has a limit of its own: the agent lets the higher one go first."""
    view = View()
    view.load()
    view.queues.add(view.frame(LOW, 100), 400)
    view.limits.workers = 2
    group = view.queues.next_group(view.limits, 100)
    assert group is not None
    view.limits.sent("f" * 64 + " -1", len(group.tasks))
    view.gone |= {t.id for t in group.tasks}
    assert view.queues.next_group(view.limits, 100) is None

    view.queues.add(view.frame(LIVE, 1), 4)
    view.queues.enqueue_due(1)
    live = view.queues.next_group(view.limits, 100)

    assert live is not None
    assert live.call.priority == LIVE
