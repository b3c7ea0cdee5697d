"""The bound of a condition's cost is above what its evaluation takes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from oncue.protocol.records import Event
from oncue.rules.matching.cel import Cel, compile_cel
from oncue.rules.matching.cel_cost import UNBOUNDED
from oncue.rules.matching.cel_tree import CallOf, Constant, Loop, Name, Select, parse_tree

NUMBERS = {"l": list(range(4_000))}
TEXT = {"s": "a" * 200_000, "t": "a" * 100_000 + "b"}
DEAR = [
    ("data.l.all(x, data.l == data.l)", NUMBERS),
    ("data.l.all(x, data.l.all(y, y >= 0))", NUMBERS),
    ("data.l.all(x, x in data.l)", NUMBERS),
    ("data.l.map(x, x).size() > 1", NUMBERS),
    ("data.l.filter(x, x >= 0).size() > 1", NUMBERS),
    ("data.l.map(x, data.l).size() > 1", NUMBERS),
    ("data.s.contains(data.t)", TEXT),
    ("data.s.matches(data.t)", TEXT),
    ('data.s.matches("(a|b)*a(a|b){500}c$")', TEXT),
    (" && ".join(["data.l == data.l"] * 60), {"l": list(range(100_000))}),
    ("data.n == 1", {"n": 1, "l": list(range(100_000))}),
]
CHEAP = [
    "data.n > 1 && data.name != 'a'",
    'data.exposure_s * double(data.frames) > 60.0 && !(data.sample in ["blank", "air"])',
    'data.tags.exists(t, t == "raw")',
    'data.path.matches("^scan_[0-9]+[.]h5$")',
    'timestamp(data.t) > timestamp("2026-01-01T00:00:00Z")',
    'has(data.b) ? data.b.startsWith("x") : event.type == "t"',
]


def event(data: Any) -> Event:
    return Event(id="1", source="/s", type="t", data=data)


@pytest.mark.parametrize(("text", "data"), DEAR)
def test_a_dear_condition_has_a_high_bound(text: str, data: Any) -> None:
    condition, size = compile_cel(text), len(json.dumps(data, separators=(",", ":")))
    bound = condition.longest()(size)
    assert bound > 0.008
    assert bound > took(condition, data)


def took(condition: Cel, data: Any) -> float:
    """Return the CPU time of an evaluation: the shorter one of two, as the machine may be loaded."""
    found = []
    for _ in range(2):
        start = time.thread_time()
        condition.test(event(data))
        found.append(time.thread_time() - start)
    return min(found)


@pytest.mark.parametrize("text", CHEAP)
def test_a_usual_condition_is_cheap_for_a_usual_event(text: str) -> None:
    assert compile_cel(text).longest()(4_096) < 0.008


@pytest.mark.parametrize("zone", ["data.zone", '"/proc/kmsg"', '"../../../dev/zero"', '"file:/x"', '"a//b"'])
def test_a_time_zone_that_may_be_any_file_has_no_bound(zone: str) -> None:
    """The library opens the file: a FIFO would hold the process for good."""
    assert compile_cel(f"timestamp(data.t).getHours({zone}) > 1").longest()(200) == UNBOUNDED


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "+01:00", "Etc/GMT+5"])
def test_a_usual_time_zone_is_cheap(zone: str) -> None:
    assert compile_cel(f'timestamp(data.t).getHours("{zone}") > 1').longest()(2_000) < 0.008


def test_a_bound_grows_with_the_event() -> None:
    for text in (*CHEAP, *(text for text, _ in DEAR)):
        longest = compile_cel(text).longest()
        bounds = [longest(1 << power) for power in range(7, 21)]
        assert bounds == sorted(bounds), text


def test_the_tree_of_a_condition() -> None:
    condition = compile_cel("data.l.all(x, x == 'ab')")

    tree = parse_tree(condition._expression.serialize())

    assert isinstance(tree, Loop)
    assert (tree.variables, tree.over) == (("x",), Select(Name("data"), "l"))
    assert isinstance(tree.step, CallOf)
    assert tree.step.args[1] == CallOf("_==_", (Name("x"), Constant(b"ab")))


@pytest.mark.parametrize("raw", [b"", b"\x12\x00", b"\x12\x03abc", b"\xff" * 20, b"\x12\x04\x22\x02\x0a\x7f"])
def test_another_form_of_a_tree_is_an_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not as expected"):
        parse_tree(raw)
