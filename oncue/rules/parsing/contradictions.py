"""Finds conditions of `match` that can never hold together, or at all.

    data.size: {gt: 10, lt: 5}       bounds        data.a: [1, 2] with {gt: 3}     values
    data.n: .nan                     no number     data.x: {exists: false, eq: 1}  existence

Only conditions that must all hold are compared: those of one mapping, and of `all` in it. The
members of `any` are looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from oncue.rules.matching.conditions import COMPARE, SIGNS, TEXT_OPERATORS, Check, bound, show
from oncue.rules.matching.fields import MISSING
from oncue.strict_yaml.document import Node, Problems

GROUPS = ("any", "all", "not")
MAX_TRIES = 10_000  # values of the rule file that are tried with the other conditions

MakeCheck = Callable[[str, str, Node], Check | None]


class Test(NamedTuple):
    """One operator with its value, on a path."""

    operator: str
    node: Node

    def describe(self) -> str:
        value = self.node.plain()
        return f"{SIGNS.get(self.operator, self.operator)} {value if isinstance(value, str) else show(value)}"


def check_contradictions(match: Node, problems: Problems, make_check: MakeCheck) -> None:
    """Add a problem for each group of conditions that no event fulfils.

    `make_check`: (path, operator, node) -> the condition's Check, or None.
    """
    by_path: dict[str, list[Test]] = {}
    for path, operator, node in _together(match, problems, make_check):
        by_path.setdefault(path, []).append(Test(operator, node))
    for path, tests in by_path.items():
        if why := _contradiction(tests, partial(_checks, path, tests, make_check)):
            problems.add(tests[-1].node, f"{path}: {why}", "correct the condition, or leave it out")


def _together(match: Node, problems: Problems, make_check: MakeCheck) -> Iterator[tuple[str, str, Node]]:
    """Yield (path, operator, value) of the conditions that must all hold."""
    if not isinstance(match.value, dict):
        return
    for key, node in match.value.items():
        if key == "all":
            for member in _members(node):
                yield from _together(member, problems, make_check)
        elif key == "any":
            for member in _members(node):
                check_contradictions(member, problems, make_check)
        elif key != "not":
            yield from _of_field(key, node)


def _of_field(path: str, node: Node) -> Iterator[tuple[str, str, Node]]:
    if isinstance(node.value, list):
        yield path, "in", node
    elif not isinstance(node.value, dict):
        yield path, "eq", node
    else:
        for operator, value in node.value.items():
            if operator == "all":
                for member in _members(value):
                    yield from _of_field(path, member)
            elif operator not in GROUPS:
                yield path, operator, value


def _members(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else [node]


def _checks(path: str, tests: list[Test], make_check: MakeCheck) -> list[Check]:
    made = (make_check(path, test.operator, test.node) for test in tests)
    return [check for check in made if check is not None]


def _contradiction(tests: list[Test], checks: Callable[[], list[Check]]) -> str:
    """Return why no value fulfils all tests; "": one may."""
    for test in tests:
        if why := _never(test):
            return why
    if len(tests) == 1:
        return ""
    both = " and ".join(f"`{test.describe()}`" for test in tests[:4])
    if any(t.operator == "exists" and t.node.value is False for t in tests):
        wrong = not all(check(MISSING) for check in checks())
        return f"{both} never hold together: a missing field fulfils nothing else" if wrong else ""
    exact = next((t for t in tests if t.operator in ("eq", "in")), None)
    if exact is not None:
        values = exact.node.plain() if exact.operator == "in" else [exact.node.plain()]
        if not isinstance(values, list) or len(values) * len(tests) > MAX_TRIES:
            return ""
        made = checks()
        return "" if any(all(check(v) for check in made) for v in values) else f"{both} never hold together"
    return f"{both} never hold together" if _no_room(tests) else ""


def _never(test: Test) -> str:
    """Return why one test never holds: JSON has neither .nan nor .inf."""
    value = test.node.plain()
    if test.operator in ("eq", "in"):
        values = value if isinstance(value, list) else [value]
        odd = next((v for v in values if isinstance(v, float) and not math.isfinite(v)), None)
        if odd is not None:
            return f"no event has the value {odd}, so that `{test.operator}` never holds for it"
    endless = isinstance(value, float) and math.isinf(value)
    if endless and (test.operator in ("gt", "ge")) == (value > 0) and test.operator in COMPARE:
        return f"`{test.describe()}` never holds: no number is beyond {value}"
    return ""


def _no_room(tests: list[Test]) -> bool:
    """Return True if no number, time or text is within all bounds."""
    bounds: list[tuple[str, Any]] = [
        (t.operator, bound(t.operator, t.node.value)) for t in tests if t.operator in COMPARE
    ]
    times = [isinstance(limit, datetime) for _, limit in bounds]
    if any(times) and not all(times):
        return True
    if bounds and not any(times) and any(t.operator in TEXT_OPERATORS for t in tests):
        return True  # a number is no text
    lows = [(limit, op == "gt") for op, limit in bounds if op in ("gt", "ge")]
    highs = [(limit, op != "lt") for op, limit in bounds if op in ("lt", "le")]
    if not lows or not highs:
        return False
    (low, above), (high, reached) = max(lows), min(highs)
    return bool(low > high or (low == high and (above or not reached)))
