"""Priorities: strict order, and the share of lower ones."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from oncue.protocol.priority import LIVE, LOW, NORMAL, PRIORITIES, SHARE, PriorityShare, known_priority, priority_word


def served(waiting: dict[int, int], tasks: int, most: int) -> list[int]:
    """Return the priorities of the next tasks, in order; `most` at once."""
    share, out = PriorityShare(), []
    while len(out) < tasks and any(waiting.values()):
        there = [p for p, count in waiting.items() if count]
        priority, limit = share.turns(there)[0]
        count = min(most, limit or most, waiting[priority])
        share.dequeued(priority, count, there)
        waiting[priority] -= count
        out += [priority] * count
    return out


@given(st.lists(st.sampled_from(PRIORITIES), min_size=1, unique=True), st.integers(1, 300))
def test_each_lower_priority_has_its_share_and_no_more(waiting: list[int], most: int) -> None:
    tasks = SHARE * 200
    found = Counter(served(dict.fromkeys(waiting, tasks), tasks, most))

    first, *others = sorted(waiting, reverse=True)
    for lower in others:
        assert tasks / SHARE - 2 * most <= found[lower] <= tasks / (SHARE - 1) + 2 * most
    assert found[first] >= tasks * (SHARE - 3) / SHARE - 2 * most


def test_a_higher_priority_goes_first_and_what_is_alone_waits_for_nothing() -> None:
    assert served({LOW: 3, LIVE: 2, NORMAL: 2}, 7, 1) == [LIVE, LIVE, NORMAL, NORMAL, LOW, LOW, LOW]
    assert served({LOW: 3}, 3, 1) == [LOW] * 3
    assert served({LIVE: 20, LOW: 20}, 17, 1) == [LIVE] * 15 + [LOW, LIVE]


def test_a_priority_without_room_is_owed_a_bounded_number() -> None:
    share = PriorityShare()
    for _ in range(10_000):
        share.dequeued(LIVE, 100, {LIVE, LOW})

    (priority, most), *_ = share.turns({LIVE, LOW})

    assert (priority, most <= SHARE + 1) == (LOW, True)
    share.dequeued(LIVE, 1, {LIVE})  # it waits no more
    assert share.turns({LIVE, LOW}) == [(LIVE, 0), (LOW, 0)]


def test_a_priority_of_a_newer_version_is_the_nearest() -> None:
    assert (known_priority(9), known_priority(-7), priority_word(5)) == (LIVE, LOW, "live")
