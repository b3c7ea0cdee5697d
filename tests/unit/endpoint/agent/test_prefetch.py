"""PrefetchLimit: how many tasks an agent wants to hold."""

from __future__ import annotations

from oncue.endpoint.agent.prefetch import MOST, PrefetchLimit


def test_without_a_measurement_each_worker_has_one_task_ready() -> None:
    assert PrefetchLimit(workers=3).capacity == 6


def test_short_tasks_are_prefetched_in_bulk_up_to_a_bound() -> None:
    limit = PrefetchLimit(workers=2)
    limit.measured(tasks=10, took_us=9_990)  # 1 ms each: 50 ms of work are 50 tasks a worker
    assert limit.capacity == 2 + 100
    fastest = PrefetchLimit(workers=1_000)
    fastest.measured(tasks=100, took_us=0)
    assert fastest.capacity == 1_000 + MOST


def test_one_long_task_ends_the_bulk() -> None:
    limit = PrefetchLimit(workers=2)
    limit.measured(tasks=10, took_us=9_990)
    limit.runs_long()
    assert limit.capacity == 4


def test_the_clock_may_go_back() -> None:
    limit = PrefetchLimit(workers=2)
    limit.measured(tasks=1, took_us=-5_000_000)
    assert limit.capacity == 2 + MOST


def test_a_server_that_limits_each_function_gets_ample_credit() -> None:
    limit = PrefetchLimit(workers=2)
    limit.runs_long()
    limit.by_function = True
    assert limit.capacity == 2 + MOST
