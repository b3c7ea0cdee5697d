"""Scaling decides from demand, blocks, limits and history alone."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.endpoint.blocks.breaker import (
    DEATHS,
    WINDOW_US,
    pause_us,
    with_acceptance,
    with_death,
    with_refusal,
    with_registration,
    with_reset,
    with_submission,
)
from oncue.endpoint.blocks.records import BlockHistory, BlockPhase
from oncue.endpoint.blocks.scaling import BlockUse, Demand, Plan, ScalingLimits, plan, with_use

NOW, SECOND = 1_700_000_000_000_000, 1_000_000
FREE = ScalingLimits(max=100, nodes=2, workers=4, pending=100, submits=0)
EMPTY = BlockHistory()
REGISTERED = (BlockPhase.RUNNING, BlockPhase.DRAINING)


def use(name: str, **given: object) -> BlockUse:
    base = BlockUse(name, BlockPhase.RUNNING, 2, 8, 3600.0, remaining_s=3000.0, registered=True)
    return msgspec.structs.replace(base, **given)


def test_it_grows_to_the_demand_in_one_decision() -> None:
    found = plan(Demand(waiting=76, running=4), [use("a", busy=4)], FREE, EMPTY, NOW)

    assert sum(found.ask) * 4 == 72  # 8 workers are there


def test_the_last_block_has_no_more_nodes_than_are_needed() -> None:
    assert plan(Demand(waiting=17), [use("a")], FREE, EMPTY, NOW).ask == (2, 1)


def test_a_task_that_needs_two_nodes_gets_a_block_of_two() -> None:
    assert plan(Demand(gangs=(2,)), [], FREE, EMPTY, NOW).ask == (2,)


def test_tasks_over_several_nodes_and_small_ones_share_blocks_of_the_right_size() -> None:
    limits = msgspec.structs.replace(FREE, nodes=4)

    assert plan(Demand(gangs=(2, 2)), [], limits, EMPTY, NOW).ask == (4,)
    assert plan(Demand(gangs=(3, 2)), [], limits, EMPTY, NOW).ask == (3, 2)
    assert plan(Demand(waiting=5, gangs=(3, 2)), [], limits, EMPTY, NOW).ask == (4, 3)
    assert plan(Demand(waiting=21, gangs=(3, 2)), [], limits, EMPTY, NOW).ask == (4, 4, 3)


def test_a_block_that_has_room_for_a_gang_is_not_asked_for_again() -> None:
    pair = use("pair", here=2)

    assert plan(Demand(gangs=(2,)), [pair], FREE, EMPTY, NOW) == Plan()
    assert plan(Demand(gangs=(2, 2)), [pair], FREE, EMPTY, NOW).ask == (2,)
    taken = msgspec.structs.replace(pair, gang_nodes=2, busy=8)
    assert plan(Demand(running=8, gangs=(2,)), [taken], FREE, EMPTY, NOW).ask == (2,)


def test_two_single_nodes_are_no_room_for_a_gang() -> None:
    singles = [use(n, nodes=1, workers=4, here=1, idle_us=200 * SECOND) for n in "ab"]

    found = plan(Demand(gangs=(2,)), singles, FREE, EMPTY, NOW)

    assert found.ask == (2,)


def test_an_idle_block_is_kept_for_the_gang_that_fits_only_there() -> None:
    pair = use("pair", here=2, idle_us=300 * SECOND)
    singles = [use(n, nodes=1, workers=4, here=1, idle_us=200 * SECOND) for n in "ab"]

    found = plan(Demand(gangs=(2,)), [*singles, pair], FREE, EMPTY, NOW)

    assert set(found.drain) == {"a", "b"}
    assert not found.ask


def test_a_small_block_gives_way_if_no_more_are_allowed_and_a_gang_waits() -> None:
    limits = msgspec.structs.replace(FREE, max=2)
    small = use("small", nodes=1, workers=4, here=1, busy=4)
    smaller = msgspec.structs.replace(small, id="smaller", busy=1)
    waiting = Demand(waiting=50, running=5, gangs=(2,))

    found = plan(waiting, [small, smaller], limits, EMPTY, NOW)

    assert found.drain == ("smaller",)
    assert not found.ask
    ends = msgspec.structs.replace(smaller, phase=BlockPhase.DRAINING)
    assert not plan(waiting, [small, ends], limits, EMPTY, NOW).drain, "one at a time"
    pair = use("pair", here=2, busy=8)
    assert not plan(waiting, [small, pair], limits, EMPTY, NOW).drain, "the gang gets its turn there"
    assert plan(waiting, [small], limits, EMPTY, NOW).ask[0] == 2


def test_a_gang_needs_a_block_that_remains_for_its_walltime() -> None:
    ending = use("a", here=2, remaining_s=400.0)

    assert not plan(Demand(gangs=(2,), walltime_s=300), [ending], FREE, EMPTY, NOW).ask
    assert plan(Demand(gangs=(2,), walltime_s=600), [ending], FREE, EMPTY, NOW).ask == (2,)


def test_0_workers_a_node_is_refused() -> None:
    found = plan(Demand(waiting=5), [], msgspec.structs.replace(FREE, workers=0), EMPTY, NOW)

    assert not found.ask
    assert "0 workers" in found.why


def test_an_idle_endpoint_goes_to_zero() -> None:
    idle = [use(n, idle_us=200 * SECOND) for n in "ab"]

    assert set(plan(Demand(), idle, FREE, EMPTY, NOW).drain) == {"a", "b"}


def test_scale_in_takes_only_idle_blocks() -> None:
    blocks = [use("busy", busy=1, idle_us=0), use("idle", idle_us=200 * SECOND), use("fresh", idle_us=SECOND)]

    assert plan(Demand(running=1), blocks, FREE, EMPTY, NOW).drain == ("idle",)


def test_a_queued_block_that_nothing_needs_any_more_goes_too() -> None:
    queued = use("q", phase=BlockPhase.PENDING, remaining_s=None, registered=False, idle_us=200 * SECOND)

    assert plan(Demand(), [queued], FREE, EMPTY, NOW).drain == ("q",)


def test_a_block_that_ends_before_the_task_would_does_not_count_as_room() -> None:
    ending = use("a", remaining_s=400.0)

    assert plan(Demand(waiting=1, walltime_s=300), [ending], FREE, EMPTY, NOW).ask == ()
    assert plan(Demand(waiting=1, walltime_s=600), [ending], FREE, EMPTY, NOW).ask == (1,)


def test_only_so_many_blocks_wait_in_the_queue() -> None:
    limits = msgspec.structs.replace(FREE, pending=2)
    queued = use("q", phase=BlockPhase.PENDING, registered=False, remaining_s=None)

    found = plan(Demand(waiting=100), [use("a"), queued], limits, EMPTY, NOW)

    assert len(found.ask) == 1
    assert "pending_blocks" in found.why


def test_node_hours_are_counted_and_capped() -> None:
    limits = msgspec.structs.replace(FREE, node_hours=10.0)
    spent = with_use(EMPTY, 5 * 3600.0, limits, NOW)  # and 2 of the running block are reserved

    found = plan(Demand(waiting=100), [use("a")], limits, spent, NOW)

    assert found.ask == (2,)
    assert "7.0 of 10 are used or reserved" in found.why


def test_node_hours_of_last_week_are_free_again() -> None:
    limits = msgspec.structs.replace(FREE, node_hours=4.0)
    spent = with_use(EMPTY, 4 * 3600.0, limits, NOW - 8 * 86_400 * SECOND)

    assert plan(Demand(waiting=1), [], limits, spent, NOW).ask == (1,)


def test_submissions_a_minute_are_capped() -> None:
    history = EMPTY
    for _ in range(5):
        history = with_submission(history, NOW - 10 * SECOND)

    found = plan(Demand(waiting=100), [use("a")], msgspec.structs.replace(FREE, submits=6), history, NOW)

    assert len(found.ask) == 1
    assert "limits.submits" in found.why


def test_the_breaker_opens_after_three_deaths_and_says_why() -> None:
    history = EMPTY
    for i in range(DEATHS):
        history = with_death(history, NOW - i * SECOND, "job 12, exit 127", NOW)

    found = plan(Demand(waiting=100), [], FREE, history, NOW + WINDOW_US - 60 * SECOND)

    assert not found.ask
    assert "job 12, exit 127" in found.why
    assert "next try" in found.why
    assert plan(Demand(waiting=100), [], FREE, history, NOW + WINDOW_US).ask == (2,)  # one, to try
    assert len(plan(Demand(waiting=100), [], FREE, with_reset(history), NOW).ask) == DEATHS


def test_pauses_grow() -> None:
    pauses = [pause_us(n) for n in range(1, 12)]

    assert pauses == sorted(pauses)
    assert pauses[-1] == 6 * 3_600 * SECOND


def test_a_registration_ends_the_row_of_deaths_but_not_the_count_of_ten_minutes() -> None:
    history = EMPTY
    for _ in range(DEATHS):
        history = with_registration(with_death(history, NOW, "exit 1", NOW))

    assert not plan(Demand(waiting=100), [use("a")], FREE, history, NOW + SECOND).ask
    assert plan(Demand(waiting=100), [use("a")], FREE, history, NOW + WINDOW_US).ask


def test_failed_submissions_pause_ever_longer_and_say_so() -> None:
    history = EMPTY
    for _ in range(3):
        history = with_refusal(history, "sbatch: invalid partition", final=True, now_us=NOW)

    found = plan(Demand(waiting=1), [], FREE, history, NOW)

    assert not found.ask
    assert found.why == "submitting failed 3 times: sbatch: invalid partition; next try in 4 min"
    assert plan(Demand(waiting=1), [], FREE, with_acceptance(history), NOW).ask


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(list(BlockPhase)[:4]), st.integers(0, 8), st.integers(0, 1000)), max_size=12),
    st.integers(0, 5),
    st.integers(0, 12),
    st.integers(0, 4),
    st.floats(0, 200),
)
def test_limits_hold_whatever_the_demand(
    waiting: int, drawn: list[tuple[BlockPhase, int, int]], least: int, most: int, pending: int, hours: float
) -> None:
    limits = ScalingLimits(
        min=least, max=max(least, most), nodes=2, workers=4, pending=pending, submits=0, node_hours=hours
    )
    blocks = [
        use(str(i), phase=p, busy=b, idle_us=s * SECOND, registered=p in REGISTERED)
        for i, (p, b, s) in enumerate(drawn)
    ]
    running = sum(b.busy for b in blocks)

    found = plan(Demand(waiting, running), blocks, limits, EMPTY, NOW)

    queued = sum(not b.registered for b in blocks)
    assert not found.ask or len(blocks) + len(found.ask) <= limits.max
    assert not found.ask or queued + len(found.ask) <= pending
    assert not found.ask or not hours or (len(blocks) * 2 + sum(found.ask)) <= hours + 1e-9
    by_id = {b.id: b for b in blocks}
    stay = [b for b in blocks if b.phase is not BlockPhase.DRAINING and b.id not in found.drain]
    for b in (by_id[i] for i in found.drain):
        assert b.busy == 0 or len(stay) >= limits.max
    if len(blocks) <= limits.max and found.drain:
        assert sum(b.workers for b in stay) >= waiting + running
        assert len(stay) >= least
