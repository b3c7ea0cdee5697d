"""Index: finds the rules that can match an event.

It is a tree of exact values and prefixes. 10,000 rules cost little more than 10.

An item's top-level equalities (trigger, type, source, a field) and prefixes are necessary
conditions. The field that splits the items best is looked up first, in a dict; each of its buckets
is split again by another field. What cannot be split is tested always. The answer holds all items
that match and few others: the conditions themselves decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from oncue.protocol.records import Event
from oncue.rules.matching.conditions import Condition, Leaf
from oncue.rules.matching.fields import Get, getter

T = TypeVar("T")
SMALL = 4  # up to this number items are tested one by one
MAX_PREFIX = 256
_SCALARS = frozenset((str, int, float, bool, type(None)))
_Key = tuple[bool, str]  # (whether by prefix, path)
_Item = tuple[int, Any, dict[_Key, tuple[Any, ...]]]


class Index(Generic[T]):
    """Index of (item, conditions) pairs, built once.

    `candidates` returns items in their order.
    """

    def __init__(self, items: Sequence[tuple[T, Sequence[Condition]]]) -> None:
        self._root = _Node(
            [(n, item, _necessary(conditions)) for n, (item, conditions) in enumerate(items)], frozenset()
        )

    def candidates(self, event: Event) -> list[T]:
        found: list[tuple[int, T]] = []
        self._root.collect(event, found)
        if len(found) > 1:
            found.sort(key=_ordinal)
        return [item for _, item in found]


def _ordinal(pair: tuple[int, Any]) -> int:
    return pair[0]


class _Node:
    __slots__ = ("always", "exact", "prefixes")

    def __init__(self, items: list[_Item], used: frozenset[_Key]) -> None:
        self.exact: list[tuple[Get, dict[Any, _Node]]] = []
        self.prefixes: list[tuple[Get, tuple[int, ...], dict[str, _Node]]] = []
        while len(items) > SMALL and (key := _best(items, used)):
            self._split(key, [i for i in items if key in i[2]], used | {key})
            items = [i for i in items if key not in i[2]]
        self.always = [(n, item) for n, item, _ in items]

    def _split(self, key: _Key, items: list[_Item], used: frozenset[_Key]) -> None:
        by_prefix, path = key
        buckets: dict[Any, list[_Item]] = defaultdict(list)
        for item in items:
            for value in set(item[2][key]):
                buckets[value].append(item)
        table = {value: _Node(bucket, used) for value, bucket in buckets.items()}
        if by_prefix:
            self.prefixes.append((getter(path), tuple(sorted({len(v) for v in table})), table))
        else:
            self.exact.append((getter(path), table))

    def collect(self, event: Event, found: list[tuple[int, Any]]) -> None:
        found += self.always
        for get, table in self.exact:
            value = get(event)
            if type(value) in _SCALARS and (node := table.get(value)) is not None:
                node.collect(event, found)
        for get, lengths, prefixes in self.prefixes:
            value = get(event)
            if type(value) is str:
                for length in lengths:
                    if length > len(value):
                        break
                    if (node := prefixes.get(value[:length])) is not None:
                        node.collect(event, found)


def _necessary(conditions: Sequence[Condition]) -> dict[_Key, tuple[Any, ...]]:
    """Return the necessary conditions that a dict can test."""
    out: dict[_Key, tuple[Any, ...]] = {}
    for condition in conditions:
        if not isinstance(condition, Leaf):
            continue
        if condition.equals:
            out.setdefault((False, condition.path), condition.equals)
        elif condition.prefix:
            out.setdefault((True, condition.path), (_rounded(condition.prefix),))
    return out


def _rounded(prefix: str) -> str:
    """Shorten a prefix to one of few lengths.

    An event is looked up once per length.
    """
    return prefix if len(prefix) <= 8 else prefix[: min(len(prefix) // 8 * 8, MAX_PREFIX)]


def _best(items: list[_Item], used: frozenset[_Key]) -> _Key | None:
    """Return the key that separates most items; None: no key has two values."""
    counts: dict[_Key, dict[Any, int]] = defaultdict(lambda: defaultdict(int))
    owners: dict[_Key, int] = defaultdict(int)
    for _, _, keys in items:
        for key, values in keys.items():
            if key not in used:
                owners[key] += 1
                for value in values:
                    counts[key][value] += 1
    shared = [key for key, count in owners.items() if count > 1]
    return max(shared, key=lambda k: (owners[k] - max(counts[k].values()), owners[k], k), default=None)
