"""AffinityChoice: which waiting tasks start, where workers that had their keys are busy."""

from __future__ import annotations

from oncue.endpoint.agent.affinity_choice import AffinityChoice, patience_us
from oncue.endpoint.agent.task_queue import AttemptGroup, QueuedSlice
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, TaskRecord
from oncue.protocol.run_options import Resources, RunOptions

SECOND = 1_000_000


def waiting(*keys: str, cores: int = 0) -> list[QueuedSlice]:
    """Return slices of one task each, with these affinity keys; "": none."""
    found = []
    for n, key in enumerate(keys):
        call = Call(VERSION, "f", "ep", "me", run=RunOptions(Resources(cores), affinity=key) if key or cores else None)
        tasks = [TaskRecord(n.to_bytes(16, "big"), b"")]
        found.append(QueuedSlice(AttemptGroup(encode(call), call, 1, 0, tasks, 1), tasks))
    return found


def choice(had: dict[str, dict[str, int]], now_us: int = 1) -> AffinityChoice:
    """Return a choice where workers had keys: key -> {worker: its room}."""
    return AffinityChoice(lambda key: list(had.get(key, {}).items()), SECOND, now_us)


def test_the_first_task_starts_if_its_worker_is_free_or_it_has_none() -> None:
    assert choice({"a": {"w1": 1}}).index(waiting("a", "b")) == 0
    assert choice({}).index(waiting("a", "b")) == 0


def test_others_go_first_while_the_worker_that_had_the_key_is_busy() -> None:
    had = {"a": {"w1": 0}, "b": {"w2": 1}, "d": {"w1": 0, "w2": 1}}
    assert choice(had).index(waiting("a", "a", "b")) == 2
    assert choice(had).index(waiting("a", "new")) == 1
    assert choice(had).index(waiting("a", "")) == 1
    assert choice(had).index(waiting("a", "d")) == 1


def test_a_free_worker_takes_the_first_task_rather_than_none() -> None:
    assert choice({"a": {"w1": 0}, "b": {"w1": 0}}).index(waiting("a", "b")) == 0


def test_a_worker_gets_no_more_in_a_turn_than_it_has_room_for() -> None:
    turn = choice({"a": {"w1": 1}, "b": {"w2": 1}})
    queue = waiting("a", "a", "b")
    assert turn.index(queue) == 0
    assert turn.index(queue[1:]) == 1


def test_a_new_key_starts_once_in_a_turn() -> None:
    turn = choice({})
    assert turn.index(waiting("a")) == 0
    assert turn.index(waiting("a", "b")) == 1


def test_a_task_is_overtaken_for_a_while_only() -> None:
    had = {"a": {"w1": 0}, "b": {"w2": 1}}
    queue = waiting("a", "b")

    assert choice(had, 5).index(queue) == 1
    assert choice(had, 5 + SECOND).index(queue) == 1
    assert choice(had, 6 + SECOND).index(queue) == 0


def test_tasks_that_may_not_start_are_left_out() -> None:
    queue = waiting("a", "b", "c")
    assert choice({"a": {"w1": 0}}).index(queue, lambda call: call is not queue[1].group.call) == 2


def test_a_task_is_overtaken_by_tasks_of_the_same_resources_only() -> None:
    had = {"a": {"w1": 0}, "b": {"w2": 1}}
    assert choice(had).index(waiting("a", "b", cores=2)) == 1
    assert choice(had).index([*waiting("a", cores=4), *waiting("b", "")]) == 0
    assert choice(had).index([*waiting("a"), *waiting("b", cores=4)]) == 0


def test_patience_follows_the_duration_of_tasks() -> None:
    assert [patience_us(us) for us in (0, 10, 5 * SECOND, 3_600 * SECOND)] == [
        SECOND,
        SECOND,
        10 * SECOND,
        60 * SECOND,
    ]
