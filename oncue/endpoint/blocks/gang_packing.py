"""Packs tasks over several nodes (gangs) onto blocks. Pure.

A gang needs whole nodes of one block. Large ones come first, each into the block with the least
room that has enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

MOST_GANGS = 10_000  # that one decision looks at


class Packing(msgspec.Struct, frozen=True):
    """Gangs that blocks take, and new blocks for the others."""

    blocks: frozenset[int]  # indices of the blocks that take some
    nodes: int = 0  # that those gangs get there
    new: tuple[int, ...] = ()  # nodes of each new block


def pack_gangs(gangs: Sequence[int], free_nodes: Iterable[int], most: int) -> Packing:
    """Return where gangs (nodes of each) go. `most`: nodes of a new block."""
    if not gangs:
        return Packing(frozenset())
    free, new, used, placed = list(free_nodes), list[int](), set[int](), 0
    for nodes in sorted(gangs, reverse=True)[:MOST_GANGS]:
        at = min((i for i, left in enumerate(free) if left >= nodes), key=free.__getitem__, default=None)
        if at is not None:
            free[at] -= nodes
            used.add(at)
            placed += nodes
            continue
        beside = next((i for i, taken in enumerate(new) if taken + nodes <= most), None)
        if beside is None:
            new.append(min(nodes, most))
        else:
            new[beside] += nodes
    return Packing(frozenset(used), placed, tuple(new))
