"""TaskQueue: held tasks, in queues by function."""

from __future__ import annotations

import msgspec

from oncue.endpoint.agent.task_queue import AttemptGroup, TaskQueue
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, TaskRecord


def group_of(function: str, *numbers: int, expires_us: int = 0) -> AttemptGroup:
    call = Call(VERSION, function, "ep", "me", expires_us=expires_us)
    tasks = [TaskRecord(n.to_bytes(16, "big"), b"") for n in numbers]
    return AttemptGroup(encode(call), call, 1, 0, tasks, 100)


def queue_of(*groups: AttemptGroup, here: bool = True) -> TaskQueue:
    queue = TaskQueue()
    for group in groups:
        queue.add(group)
        queue.enqueue(group, group.tasks, here=here)
    return queue


def ids(tasks: list[TaskRecord]) -> list[int]:
    return [int.from_bytes(t.id, "big") for t in tasks]


def dequeue_all(queue: TaskQueue, most: int) -> list[tuple[str, list[int]]]:
    out = []
    while (function := queue.next_function()) is not None:
        out.append((function, ids(queue.dequeue(function, most)[1])))
    return out


def test_functions_take_turns_and_each_keeps_its_order() -> None:
    queue = queue_of(group_of("f", 1, 2, 3), group_of("g", 4))
    assert dequeue_all(queue, most=2) == [("f", [1, 2]), ("g", [4]), ("f", [3])]
    assert queue.queued == 0


def test_a_chunk_has_tasks_of_one_group() -> None:
    queue = queue_of(group_of("f", 1), group_of("f", 2))
    assert dequeue_all(queue, most=10) == [("f", [1]), ("f", [2])]


def test_requeued_tasks_run_before_the_others() -> None:
    first = group_of("f", 1, 2)
    queue = queue_of(first, group_of("f", 3))
    _, tasks = queue.dequeue("f", 2)
    queue.enqueue(first, tasks[1:], here=True, first=True)
    assert dequeue_all(queue, most=10) == [("f", [2]), ("f", [3])]


def test_tasks_wait_until_their_function_is_here() -> None:
    queue = queue_of(group_of("f", 1, 2), here=False)
    assert queue.next_function() is None
    assert queue.queued == 0
    queue.on_function("f")
    assert queue.queued == 2
    assert dequeue_all(queue, most=10) == [("f", [1, 2])]


def test_removed_tasks_are_not_dequeued_and_tasks_at_workers_are_not_removed() -> None:
    queue = queue_of(group_of("f", 1, 2, 3))
    queue.dequeue("f", 1)
    removed = queue.remove({n.to_bytes(16, "big") for n in (1, 2)})
    assert ids([t for _, t in removed]) == [2]
    assert queue.queued == 1
    assert dequeue_all(queue, most=10) == [("f", [3])]


def test_bytes_of_a_group_are_released_with_its_last_task() -> None:
    queue = queue_of(group_of("f", 1, 2))
    queue.finish((1).to_bytes(16, "big"))
    assert queue.live_bytes == 100
    queue.finish((2).to_bytes(16, "big"))
    assert queue.live_bytes == 0
    assert queue.finish((2).to_bytes(16, "big")) is None


def test_expired_returns_waiting_tasks_and_the_next_expiry() -> None:
    queue = queue_of(group_of("f", 1, 2, expires_us=10), group_of("g", 3, expires_us=30), group_of("h", 4))
    queue.dequeue("f", 1)
    due, following = queue.expired(now_us=20)
    assert due == {(2).to_bytes(16, "big")}
    assert following == 30


def test_waiting_names_queued_tasks_only() -> None:
    queue = queue_of(group_of("f", 1, 2))
    queue.dequeue("f", 1)
    assert queue.waiting() == {(2).to_bytes(16, "big")}
    assert len(list(queue.groups())) == 1


def of_priority(priority: int, *numbers: int, function: str = "f") -> AttemptGroup:
    group = group_of(function, *numbers)
    group.call = msgspec.structs.replace(group.call, priority=priority)
    return group


def test_higher_priorities_go_first_also_before_tasks_that_came_earlier() -> None:
    queue = queue_of(of_priority(-1, 1), of_priority(0, 2), of_priority(1, 3, function="g"))
    assert dequeue_all(queue, most=10) == [("g", [3]), ("f", [2]), ("f", [1])]
    assert queue.queued == 0


def test_a_lower_priority_has_its_share() -> None:
    queue = queue_of(of_priority(-1, 1, 2), of_priority(1, *range(10, 50)))
    out = [n for _, numbers in dequeue_all(queue, most=8) for n in numbers]
    assert [out.index(1), out.index(2)] == [16, 33]  # after 16 and 32 of the others, by chunks of 8


def test_a_priority_whose_tasks_may_not_start_is_passed_over() -> None:
    queue = queue_of(of_priority(1, 1), of_priority(0, 2))
    assert queue.next_function() == "f"
    queue.pass_priority()
    assert queue.next_function() == "f"
    assert ids(queue.dequeue("f", 1)[1]) == [2]
    assert queue.next_function() is None
    queue.begin_turn()
    assert queue.next_function() == "f"
    assert ids(queue.dequeue("f", 1)[1]) == [1]


def test_priorities_hold_after_a_fetch_and_for_removed_and_waiting_tasks() -> None:
    queue = queue_of(of_priority(-1, 1), of_priority(1, 2, 3), here=False)
    queue.on_function("f")
    assert ids([t for _, t in queue.remove({(2).to_bytes(16, "big")})]) == [2]
    assert queue.waiting() == {(1).to_bytes(16, "big"), (3).to_bytes(16, "big")}
    assert dequeue_all(queue, most=10) == [("f", [3]), ("f", [1])]
