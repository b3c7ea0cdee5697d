"""FunctionLimits: how many tasks of a function an agent gets."""

from __future__ import annotations

from collections import deque

from oncue.dispatcher.bridge.function_limits import FIRST, FUNCTIONS, MOST, FunctionLimits
from oncue.dispatcher.bridge.pending_tasks import TaskGroup
from oncue.protocol.records import VERSION, Call, Ended, TaskRecord

WORKERS = 5


def limits() -> FunctionLimits:
    made = FunctionLimits()
    made.workers = WORKERS
    return made


def run(made: FunctionLimits, function: str, tasks: int, each_us: int) -> None:
    """Send tasks and end them, in frames as an agent does."""
    made.sent(function, tasks)
    for start in range(0, tasks, 100):
        count = min(100, tasks - start)
        made.ended(function, [Ended(bytes(16), 1, 0, 1, 1 + each_us) for _ in range(count)], count)


def group(function: str, tasks: int = 1) -> TaskGroup:
    records = [TaskRecord(bytes(16), b"") for _ in range(tasks)]
    return TaskGroup(Call(VERSION, function, "ep", "ada"), b"", 1, 0, records, 0)


def test_an_unmeasured_function_has_one_task_a_worker_ready() -> None:
    assert limits().room("f") == 2 * WORKERS


def test_after_a_burst_of_short_calls_another_function_begins_with_few() -> None:
    made = limits()
    run(made, "short", 20_000, 20)

    assert made.room("long") == 2 * WORKERS


def test_after_a_burst_of_short_calls_the_same_function_begins_with_few() -> None:
    made = limits()
    run(made, "sleep", 20_000, 20)

    assert made.room("sleep") == WORKERS + FIRST


def test_calls_that_are_not_so_short_begin_with_fewer() -> None:
    made = limits()
    run(made, "sleep", 1_000, 999)

    assert made.room("sleep") == WORKERS + 10  # 2 ms of work for each worker


def test_the_results_of_short_calls_open_the_limit() -> None:
    made = limits()
    run(made, "f", 100, 20)
    made.sent("f", WORKERS + FIRST)

    run(made, "f", 200, 20)

    assert made.room("f") == WORKERS + MOST - (WORKERS + FIRST)


def test_what_is_ready_is_bounded_by_time() -> None:
    made = limits()
    run(made, "f", 1_000, 9_990)
    made.sent("f", 1)
    run(made, "f", 1_000, 9_990)

    assert made.room("f") == WORKERS + 25 - 1  # 10 ms each: 50 ms of work for each worker


def test_one_slow_call_among_short_ones_changes_little() -> None:
    made = limits()
    run(made, "f", 1_000, 20)
    made.sent("f", 100)

    made.ended("f", [Ended(bytes(16), 1, 0, 1, 1 + 20 + (5_000_000 if n == 3 else 0)) for n in range(50)], 50)

    assert made.room("f") > 1_000


def test_a_function_without_room_lets_the_next_one_pass() -> None:
    made = limits()
    made.sent("long", 2 * WORKERS)

    assert made.next_group(deque([group("long", 100), group("short")]), 50) == (1, 2 * WORKERS)
    assert made.next_group(deque([group("long", 100)]), 50) == (0, 0)
    assert made.next_group(deque([group("short")]), 3) == (0, 3)


def test_recounting_keeps_what_was_measured() -> None:
    made = limits()
    run(made, "f", 100, 20)
    made.sent("f", 70)

    made.recount([group("f")] * 3)

    assert made.room("f") == WORKERS + FIRST - 3


def test_functions_without_tasks_at_the_agent_are_forgotten_at_last() -> None:
    made = limits()
    made.sent("busy", 1)
    for n in range(FUNCTIONS + 10):
        run(made, f"f{n}", 1, 20)

    assert made.room("busy") == 2 * WORKERS - 1
    assert len(made._functions) <= FUNCTIONS
