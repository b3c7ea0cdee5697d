"""Watch: a function counts as changed when something it reaches has changed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

from oncue.functions.watch import Watch
from oncue.pickles import Reach
from oncue.pickles.pickler import content_id
from oncue.protocol.payload import pack_args

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
def by_kept(x): return Kept().scaled(x)
class Kept:
    factor = 2
    def scaled(self, x): return self.times(x) * K
    @property
    def three(self): return self.still()
    @staticmethod
    def still(): return 3
    @functools.cached_property
    def lazily(self): return deeper(1)
    def times(self, x): return x * self.factor
@dataclasses.dataclass
class Data:
    x: int = 1
    ys: list = dataclasses.field(default_factory=list)
def by_data(x): return Data(x)
def make(n):
    def closure(x): return x + n
    return closure
closure = make(3)
"""


@pytest.fixture
def space() -> dict[str, Any]:
    """A script's, or a notebook's, global variables."""
    found: dict[str, Any] = {"__name__": "__main__", "dataclasses": dataclasses, "functools": functools}
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
    ("by_kept", "Kept.factor = 3"),
    ("by_kept", "Kept.another = 3"),
    ("by_kept", "del Kept.three"),
    ("by_kept", "Kept.times = deeper"),
    ("by_kept", "Kept.times.__code__ = Kept.scaled.__code__"),
    ("by_kept", "K = 7"),
    ("by_kept", "def deeper(x): return 1000"),
    ("by_kept", "class Kept: pass"),
    ("by_data", "Data.x = 2"),
    ("by_data", "Data.__repr__ = None"),
    ("closure", "closure.__closure__[0].cell_contents = 5"),
)


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_change_is_seen(space: dict[str, Any], name: str, change: str) -> None:
    fn = space[name]
    watch = Watch(fn)
    assert watch.same(fn)
    assert watch.same(fn)
    exec(change, space)
    assert not watch.same(fn)


@pytest.mark.parametrize("name", sorted({name for name, _ in CHANGES}))
def test_what_it_does_not_reach_is_no_change(space: dict[str, Any], name: str) -> None:
    watch = Watch(fn := space[name])
    exec("OTHER = 1\ndef unrelated(): pass\nclass Another: pass", space)
    assert watch.same(fn)


@pytest.mark.parametrize("name", ["Kept", "Data", "Conf"])
def test_the_id_of_a_class_follows_it(space: dict[str, Any], name: str) -> None:
    before = content_id(space[name])
    pack_args((space[name](),), {})  # after which Python notes in the class how
    assert content_id(space[name]) == before
    exec({"Kept": "K = 2", "Data": "Data.x = 2", "Conf": "Conf.angles.append(1)"}[name], space)
    after = content_id(space[name])
    assert after != before
    exec({"Kept": "K = 1", "Data": "Data.x = 1", "Conf": "Conf.angles.pop()"}[name], space)
    assert content_id(space[name]) == before


@pytest.mark.parametrize(("name", "fixed"), [("Kept", True), ("Data", True), ("Conf", False), ("by_list", False)])
def test_what_cannot_change_in_place_is_not_pickled_again(space: dict[str, Any], name: str, fixed: bool) -> None:
    assert Reach(space[name]).fixed is fixed


def test_imported_functions_are_not_looked_into() -> None:
    assert Watch(max).same(max)
