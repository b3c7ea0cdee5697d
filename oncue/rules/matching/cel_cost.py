"""Upper bound of the time that a CEL expression takes for an event.

An event of n bytes of JSON has at most n / 2 values. Each operator costs at most a constant, and a
constant per byte of what it reads. A loop runs at most once per item, and MAX_ITERATIONS times (the
library's limit); what its body does with the items together is bounded by what it would do with
one item that has the size of all. What is not known here has no bound.

Constants: measured with cel-expr-python 0.1.3 on two shared cores, and doubled. They bound an
evaluation before it begins; they do not predict it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from oncue.rules.matching.cel_tree import CallOf, Constant, ListOf, Loop, Name, Select, Tree

MAX_ITERATIONS = 10_000
MAX_DEPTH = 3  # of loops in loops; deeper ones have no bound
UNBOUNDED = float("inf")
STEP_S = 5e-7  # one operator
CALCULATE_S = 2e-6  # arithmetic: numbers of different types are added in Python (cel_numbers.py)
READ_S = 5e-8  # one byte of a value that is compared, copied or counted
CONVERT_S = 2e-7  # one byte of the event that becomes a value of CEL, and is copied if integers are too large
SEARCH_S = 4e-11  # one byte of a text against one byte of another: contains()
APPEND_S = 6e-8  # one item that is copied when a list grows: map(), filter()
MATCH_S = 4e-8  # one byte of a text against one character of a regular expression
ZONE_S = 5e-4  # a time zone that is read from its file
COMPILE_S = 1e-6  # one character of a regular expression

_COMPARE = frozenset(("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "startsWith", "endsWith"))
_CONSTANT = frozenset(("_&&_", "_||_", "!_", "-_", "@not_strictly_false"))
_ARITHMETIC = frozenset(("_-_", "_*_", "_/_", "_%_"))
_LINEAR = frozenset(("_[_]", "_?_:_", "@in", "_in_", "size", "dyn", "type", "timestamp", "duration"))
_CONVERSIONS = frozenset(("string", "bytes", "int", "uint", "double", "bool"))
_PARTS = ("FullYear", "Month", "Date", "DayOfMonth", "DayOfWeek", "DayOfYear", "Hours", "Minutes", "Seconds")
_GETTERS = frozenset(f"get{part}" for part in (*_PARTS, "Milliseconds"))
_ZONE = re.compile(rb"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z][A-Za-z0-9_+-]*)*|[+-]?\d\d:\d\d")
_COUNTED = re.compile(rb"[{\\]")  # a{1000} is a thousand a's; \pL is a large class


class Estimate(NamedTuple):
    seconds: float
    size: float  # bytes of JSON of the value


def cost_s(tree: Tree, names: frozenset[str], event_bytes: int) -> float:
    """Return the longest time of an evaluation for events of this size.

    `names`: the variables that the expression reads.
    """
    convert_s = CONVERT_S * event_bytes * max(1, len(names & {"data", "event"}))
    sizes = dict.fromkeys(names, float(event_bytes))
    return convert_s + _estimate(tree, sizes, 0).seconds


def _estimate(tree: Tree, sizes: dict[str, float], depth: int) -> Estimate:
    match tree:
        case Constant(text):
            return Estimate(0.0, len(text) + 1.0)
        case Name(name):
            return Estimate(0.0, sizes.get(name, 1.0))
        case Select(operand, _):
            found = _estimate(operand, sizes, depth)
            return Estimate(found.seconds + STEP_S + READ_S * found.size, found.size)
        case ListOf(items):
            parts = [_estimate(item, sizes, depth) for item in items]
            size = sum(p.size for p in parts) + 1
            return Estimate(sum(p.seconds for p in parts) + STEP_S + READ_S * size, size)
        case CallOf():
            return _call(tree, sizes, depth)
        case Loop():
            return _loop(tree, sizes, depth + 1) if depth < MAX_DEPTH else Estimate(UNBOUNDED, UNBOUNDED)


def _call(call: CallOf, sizes: dict[str, float], depth: int) -> Estimate:
    args = [_estimate(arg, sizes, depth) for arg in call.args]
    seconds = sum(a.seconds for a in args) + STEP_S
    total = sum(a.size for a in args)
    name = call.function
    if name in _CONSTANT:
        return Estimate(seconds, 1.0)
    if name in _ARITHMETIC:
        return Estimate(seconds + CALCULATE_S, 1.0)
    if name == "_+_":
        return Estimate(seconds + CALCULATE_S + READ_S * total, total)
    if name in _COMPARE:
        return Estimate(seconds + READ_S * min(a.size for a in args), 1.0)
    if name in _GETTERS and len(args) == 2:  # the library opens a file of this name, whatever it is
        known = isinstance(call.args[1], Constant) and _ZONE.fullmatch(call.args[1].text)
        return Estimate(seconds + ZONE_S, 1.0) if known else Estimate(UNBOUNDED, UNBOUNDED)
    if name in _LINEAR or name in _CONVERSIONS or name in _GETTERS:
        return Estimate(seconds + READ_S * total, total)
    if name == "contains" and len(args) == 2:
        return Estimate(seconds + READ_S * total + SEARCH_S * args[0].size * args[1].size, 1.0)
    if name == "matches" and len(args) == 2:
        return Estimate(seconds + _regex_s(call.args[1], args[0].size), 1.0)
    return Estimate(UNBOUNDED, UNBOUNDED)


def _regex_s(pattern: Tree, size: float) -> float:
    if not isinstance(pattern, Constant) or _COUNTED.search(pattern.text.replace(rb"\.", b"").replace(rb"\d", b"")):
        return UNBOUNDED
    return len(pattern.text) * (COMPILE_S + MATCH_S * size) + COMPILE_S


def _loop(loop: Loop, sizes: dict[str, float], depth: int) -> Estimate:
    over = _estimate(loop.over, sizes, depth)
    start, result = _estimate(loop.start, sizes, depth), _estimate(loop.result, sizes, depth)
    rounds = min(over.size / 2 + 1, MAX_ITERATIONS)
    fixed = _body(loop, sizes | dict.fromkeys(loop.variables, 0.0), depth)  # without the items
    whole = _body(loop, sizes | dict.fromkeys(loop.variables, over.size), depth)  # with all of them at once
    seconds = over.seconds + start.seconds + result.seconds + rounds * fixed.seconds + whole.seconds
    if not isinstance(loop.start, ListOf):
        return Estimate(seconds, 1.0)
    return Estimate(seconds + APPEND_S * rounds * rounds, rounds * fixed.size + whole.size)


def _body(loop: Loop, sizes: dict[str, float], depth: int) -> Estimate:
    inside = sizes | {loop.accumulator: 0.0}
    condition, step = _estimate(loop.condition, inside, depth), _estimate(loop.step, inside, depth)
    return Estimate(condition.seconds + step.seconds, step.size)
