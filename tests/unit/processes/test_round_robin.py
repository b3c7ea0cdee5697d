"""RoundRobin: of each owner one item in turn."""

from __future__ import annotations

import pytest

from oncue.processes.round_robin import RoundRobin


def test_owners_take_turns_and_the_items_of_one_keep_their_order() -> None:
    items: RoundRobin[str] = RoundRobin()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        items.add(item[0], item)

    found = []
    while items:
        found.append(items.pop())

    assert found == ["a1", "b1", "c1", "a2", "b2", "a3"]
    with pytest.raises(KeyError):
        items.pop()


def test_all_items_are_removed_at_once() -> None:
    items: RoundRobin[int] = RoundRobin()
    items.add("ada", 1)
    items.add("bob", 2)

    assert sorted(items.clear()) == [1, 2]
    assert not items
