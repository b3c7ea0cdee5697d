"""Index: finds the rules that can match an event.

It is a tree of exact values and prefixes. 10,000 rules cost little more than 10.

An item's top-level equalities (trigger, type, source, a field) and prefixes are necessary
conditions. The field that splits the items best is looked up first, in a dict; each of its buckets
is split again by another field. What cannot be split is tested always. The answer holds all items
that match and few others: the conditions themselves decide.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from heapq import nlargest
from typing import Any, Generic, NamedTuple, TypeVar

from oncue.protocol.records import Event
from oncue.rules.matching.conditions import Condition, Leaf
from oncue.rules.matching.fields import Get, getter

T = TypeVar("T")
SMALL = 4  # up to this number items are tested one by one
MAX_PREFIX = 256
KEYS = 8  # of an item that are looked at; also the depth of the tree
SPLITS = 16  # of a node
COPIES = 8  # of an item in the tree, or as many as it has values of one field
_SCALARS = frozenset((str, int, float, bool, type(None)))
_pack = struct.Struct("<d").pack
_Key = tuple[bool, str]  # (whether by prefix, path)


class _Item(NamedTuple):
    """An item in one node.

    `copies`: how many more may be made of it below. An item with several lists of values would
    otherwise have a copy for each combination.
    """

    number: int
    item: Any
    keys: dict[_Key, frozenset[Any]]
    copies: int

    def splits_by(self, key: _Key) -> bool:
        """Return True if the key divides the item among few enough buckets."""
        return key in self.keys and len(self.keys[key]) <= self.copies


class Index(Generic[T]):
    """Index of (item, conditions) pairs, built once.

    `candidates` returns items in their order.
    """

    def __init__(self, items: Sequence[tuple[T, Sequence[Condition]]]) -> None:
        found = [(n, item, _necessary(conditions)) for n, (item, conditions) in enumerate(items)]
        self._root = _Node(
            [_Item(n, item, keys, max([COPIES, *map(len, keys.values())])) for n, item, keys in found], frozenset()
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
        for key in _best(items, used) if len(items) > SMALL else ():
            if len(items) <= SMALL:
                break
            self._split(key, [i for i in items if i.splits_by(key)], used | {key})
            items = [i for i in items if not i.splits_by(key)]
        self.always = [(i.number, i.item) for i in items]

    def _split(self, key: _Key, items: list[_Item], used: frozenset[_Key]) -> None:
        if not items:
            return
        by_prefix, path = key
        buckets: dict[Any, list[_Item]] = defaultdict(list)
        for item in items:
            values = item.keys[key]
            copy = item._replace(copies=item.copies // len(values))
            for value in values:
                buckets[value].append(copy)
        table = {value: _Node(bucket, used) for value, bucket in buckets.items()}
        if by_prefix:
            self.prefixes.append((getter(path), tuple(sorted({len(v) for v in table})), table))
        else:
            self.exact.append((getter(path), table))

    def collect(self, event: Event, found: list[tuple[int, Any]]) -> None:
        found += self.always
        for get, table in self.exact:
            value = get(event)
            if type(value) in _SCALARS and (node := table.get(_hashed(value))) is not None:
                node.collect(event, found)
        for get, lengths, prefixes in self.prefixes:
            value = get(event)
            if type(value) is str:
                for length in lengths:
                    if length > len(value):
                        break
                    if (node := prefixes.get(value[:length])) is not None:
                        node.collect(event, found)


def _necessary(conditions: Sequence[Condition]) -> dict[_Key, frozenset[Any]]:
    """Return the first necessary conditions that a dict can test."""
    out: dict[_Key, frozenset[Any]] = {}
    for condition in conditions:
        if len(out) == KEYS:
            break
        if not isinstance(condition, Leaf):
            continue
        if condition.equals:
            out.setdefault((False, condition.path), frozenset(map(_hashed, condition.equals)))
        elif condition.prefix:
            out.setdefault((True, condition.path), frozenset((_rounded(condition.prefix),)))
    return out


def _hashed(value: Any) -> str | bytes | None:
    """Return a key of a scalar for dicts; equal scalars have equal keys.

    Numbers become bytes, whose hashes nobody can predict: Python gives one hash to as many integers
    as somebody likes, and a dict of those of a rule file takes minutes. Large ones may share a key.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return _pack(value + 0.0)  # without the sign of 0
    except OverflowError:  # an integer beyond all floats
        return b""


def _rounded(prefix: str) -> str:
    """Shorten a prefix to one of few lengths.

    An event is looked up once per length.
    """
    return prefix if len(prefix) <= 8 else prefix[: min(len(prefix) // 8 * 8, MAX_PREFIX)]


def _best(items: list[_Item], used: frozenset[_Key]) -> list[_Key]:
    """Return the keys that separate most items, best first."""
    counts: dict[_Key, dict[Any, int]] = defaultdict(lambda: defaultdict(int))
    owners: dict[_Key, int] = defaultdict(int)
    for item in items:
        for key, values in item.keys.items():
            if key not in used and item.splits_by(key):
                owners[key] += 1
                for value in values:
                    counts[key][value] += 1
    shared = [key for key, count in owners.items() if count > 1]
    return nlargest(SPLITS, shared, key=lambda k: (owners[k] - max(counts[k].values()), owners[k], k))
