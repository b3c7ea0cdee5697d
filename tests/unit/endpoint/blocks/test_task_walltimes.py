"""Time that tasks need on a block."""

from __future__ import annotations

from oncue.endpoint.blocks.durations import Durations
from oncue.endpoint.blocks.task_walltimes import HAND_BACKS, LONG_US, TaskWalltimes
from oncue.protocol.run_options import Resources, RunOptions

SECOND = 1_000_000


def made(durations: Durations | None = None) -> TaskWalltimes:
    return TaskWalltimes(3_600.0, durations or Durations(), lambda function: None)


def asking(walltime_ms: int) -> RunOptions:
    return RunOptions(Resources(walltime_ms=walltime_ms))


def test_the_declared_walltime_comes_first() -> None:
    durations = Durations()
    durations.add("f", 100 * SECOND)

    walltimes = made(durations)

    assert walltimes.need_us("f", asking(60_000)) == 60 * SECOND
    assert 100 * SECOND <= walltimes.need_us("f", None) <= 125 * SECOND
    assert walltimes.need_us("g", None) == 0


def test_short_tasks_need_nothing_in_particular() -> None:
    durations = Durations()
    durations.add("f", LONG_US // 2)

    assert made(durations).need_us("f", None) == 0


def test_a_task_that_takes_longer_than_a_block_lives_gets_a_fresh_block() -> None:
    durations = Durations()
    durations.add("f", 10_000 * SECOND)

    assert made(durations).need_us("f", None) < 3_570 * SECOND


def test_a_task_that_asks_for_more_than_a_block_lives_is_told_why_it_never_runs() -> None:
    assert not made().misfit(Resources(walltime_ms=60_000))
    told = made().misfit(Resources(walltime_ms=7_200_000))

    assert "asks for a walltime of 2h" in told
    assert "lives for 1h" in told
    assert "blocks.walltime" in told


def test_a_task_is_handed_back_only_so_often() -> None:
    walltimes, first, second = made(), b"1" * 16, b"2" * 16

    for _ in range(HAND_BACKS):
        assert not walltimes.hand_back({first})
    assert walltimes.hand_back({first, second}) == {first}
