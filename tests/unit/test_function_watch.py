"""A function that was packed is packed again when what it reaches is another: by name, in place, or by a cell run again."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from oncue.functions.watch import Watch

SPACE = """
import math
K, LIST, TEXT, PAIR = 1, [1], "a", (1, "b")
class Conf:
    angles = [1]
def helper(x): return deeper(x) + K
def deeper(x): return x
@functools.cache
def cached(x): return deeper(x)
def plain(x): return helper(x) + math.floor(x), TEXT, PAIR
def by_list(x): return LIST[0] + x
def by_class(x): return Conf.angles[0] + x
def by_cache(x): return cached(x)
def by_default(x, seen=[]): return seen
def later(x): return not_there_yet(x)
def make(n):
    def closure(x): return x + n
    return closure
closure = make(3)
"""


@pytest.fixture
def space() -> dict[str, Any]:
    """A script's, or a notebook's, global variables."""
    found: dict[str, Any] = {"__name__": "__main__", "functools": functools}
    exec(SPACE, found)
    return found


CHANGES = (
    ("plain", "K = 2"),
    ("plain", "TEXT = 'b'"),
    ("plain", "PAIR = (1, 'c')"),
    ("plain", "def helper(x): return 1000"),
    ("plain", "def deeper(x): return 1000"),
    ("plain", "plain.__defaults__ = (7,)"),
    ("plain", "plain.__code__ = deeper.__code__"),
    ("by_list", "LIST[0] = 1000"),
    ("by_list", "LIST = [1000]"),
    ("by_class", "Conf.angles = [2]"),
    ("by_class", "Conf.angles.append(2)"),
    ("by_cache", "def deeper(x): return 1000"),
    ("by_default", "by_default.__defaults__[0].append(1)"),
    ("later", "def not_there_yet(x): return x"),
    ("closure", "closure.__closure__[0].cell_contents = 5"),
)


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_change_is_seen(space: dict[str, Any], name: str, change: str) -> None:
    watch = Watch(space[name])
    assert watch.same()
    assert watch.same()
    exec(change, space)
    assert not watch.same()


@pytest.mark.parametrize("name", sorted({name for name, _ in CHANGES}))
def test_what_it_does_not_reach_is_no_change(space: dict[str, Any], name: str) -> None:
    watch = Watch(space[name])
    exec("OTHER = 1\ndef unrelated(): pass\nclass Another: pass", space)
    assert watch.same()


def test_imported_functions_are_not_looked_into() -> None:
    watch = Watch(functools.partial(max, 1).func)
    assert watch.same()
