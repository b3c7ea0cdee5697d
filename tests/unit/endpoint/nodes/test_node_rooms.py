"""The roomiest node is found without asking all of them, and nothing grows with the tasks that ran."""

from __future__ import annotations

import random
from typing import NamedTuple

from oncue.endpoint.nodes.node_rooms import MOST_NEEDS, NodeRooms


class Node(NamedTuple):
    name: str
    ends: int = 0


def test_the_roomiest_node_is_the_one_with_most_room() -> None:
    rng, rooms = random.Random(1), NodeRooms[Node]()
    nodes, known = [Node(f"n{i}") for i in range(20)], dict[str, int]()
    for _ in range(5_000):
        node, room = rng.choice(nodes), rng.randrange(5)
        rooms.set_room(node, room)
        known[node.name] = room

        found = rooms.roomiest()

        assert rooms.total == sum(known.values())
        assert (0 if found is None else known[found.name]) == max(known.values())


def test_the_roomiest_node_that_fits_a_need_is_found() -> None:
    rng, rooms = random.Random(2), NodeRooms[Node]()
    nodes, known = [Node(f"n{i}", i) for i in range(20)], dict[Node, int]()
    for at in range(5_000):
        node, need = rng.choice(nodes), rng.randrange(1, 2 * MOST_NEEDS)
        known[node] = rng.randrange(3)
        rooms.set_room(node, known[node])
        if at % 100 == 0:
            rooms.forget_needs()

        found = rooms.roomiest(need, lambda node, need=need: node.ends >= need)

        assert (0 if found is None else known[found]) == max([r for n, r in known.items() if n.ends >= need], default=0)


def test_entries_do_not_grow_with_the_tasks_that_ran() -> None:
    rooms = NodeRooms[Node]()
    for node in (Node("a"), Node("b")):
        rooms.set_room(node, 8)
    rooms.roomiest(1)

    for _ in range(10_000):  # one task at a time: there is always room
        node = rooms.roomiest()
        assert node is not None
        rooms.set_room(node, 7)
        rooms.set_room(node, 8)

    assert rooms.entries < 500


def test_nodes_that_do_not_fit_are_not_asked_for_each_task() -> None:
    rooms = NodeRooms[Node]()
    nodes = [Node(f"n{i}", ends=i) for i in range(1_000)]
    for node in nodes:
        rooms.set_room(node, 4)
    asked = 0

    def fits(node: Node) -> bool:
        nonlocal asked
        asked += 1
        return node.ends >= 900

    for _ in range(400):
        node = rooms.roomiest(900, fits)
        assert node is not None
        assert node.ends >= 900
        rooms.set_room(node, 0)
        rooms.set_room(node, 4)

    assert asked < 2 * len(nodes), "as few as there are nodes, not nodes times tasks"
