"""Parses `on` and `match` of a rule to Conditions.

Errors go to Problems with their positions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from oncue.errors import Invalid
from oncue.rules.matching.conditions import (
    COMPARE,
    SIGNS,
    TEXT_OPERATORS,
    Check,
    Condition,
    ConditionGroup,
    Leaf,
    compare,
    equal,
    glob,
    literal_prefix,
    one_of,
    regex,
    show,
)
from oncue.rules.matching.fields import ATTRIBUTES, MISSING, getter
from oncue.rules.parsing.contradictions import GROUPS, check_contradictions
from oncue.strict_yaml.document import Node, Problems, nearest

TRIGGER = "oncuetrigger"  # extension with the name of the trigger
OPERATORS = ("eq", "ne", "in", "not_in", *TEXT_OPERATORS, *COMPARE, "exists")
MAX_CONDITIONS = 1_000  # of a rule
_MAGIC = frozenset("*?[{")


def parse_on(node: Node, triggers: Collection[str] | None, problems: Problems) -> list[Condition]:
    """Parse `on`.

    It is a trigger's name, a list of names, or a mapping attribute -> pattern or glob.
    """
    if isinstance(node.value, dict):
        if not node.value:
            problems.add(node, "`on` is empty", "name a trigger, or {type: ...}")
        return [c for key, value in node.value.items() for c in _attribute(node, key, value, problems)]
    names = node.value if isinstance(node.value, list) else [node]
    if not names:
        problems.add(node, "`on` is empty", "name a trigger, or {type: ...}")
    good = []
    for name in names:
        if not isinstance(name.value, str):
            problems.add(name, f"`on` is a trigger's name or a mapping like {{type: ...}}, not {name.kind()}")
        elif triggers is not None and name.value not in triggers:
            problems.add(name, f"there is no trigger {name.value!r}", nearest(name.value, triggers))
        else:
            good.append(name.value)
    return [equals(TRIGGER, good)] if good else []


def equals(path: str, values: list[Any]) -> Leaf:
    """Return the condition that the value of a path is one of these."""
    wanted = f"= {show(values[0])}" if len(values) == 1 else f"in {show(values)}"
    check = equal(values[0]) if len(values) == 1 else one_of(values)
    scalars = all(v is None or isinstance(v, (str, int, float)) for v in values)
    return Leaf(path, getter(path), check, wanted, tuple(values) if scalars else None, items=_items(values))


def _items(value: Any) -> int:
    """Return the number of values in a value of the rule file."""
    if isinstance(value, dict):
        return 1 + sum(map(_items, value.values()))
    return 1 + sum(map(_items, value)) if isinstance(value, list) else 1


def _attribute(parent: Node, key: str, node: Node, problems: Problems) -> list[Condition]:
    place = parent.at_key(key)
    if key.startswith("data") and key.partition(".")[0] == "data":
        problems.add(place, f"`on` looks at attributes, not at {key}", "put it under `match`")
        return []
    if key in ("specversion", "data_base64"):
        problems.add(place, f"`on` cannot look at {key}", nearest(key, ATTRIBUTES))
        return []
    if isinstance(node.value, str) and _MAGIC & set(node.value):
        return _operator(key, place, "glob", node, problems)
    return parse_field(key, place, node, problems)


def check_possible(match: Node, problems: Problems) -> None:
    """Add a problem for conditions that never hold, if `match` has no other faults."""

    def make_check(path: str, operator: str, node: Node) -> Check | None:
        try:
            return _leaf(path, operator, node).check
        except (Invalid, ValueError):
            return None

    check_contradictions(match, problems, make_check)


def parse_match(node: Node, problems: Problems) -> list[Condition]:
    """Parse `match`.

    It is {path: value | [one of] | {operator: value}}, with any, all and not.
    """
    if not isinstance(node.value, dict):
        problems.add(node, f"`match` is a mapping of paths, not {node.kind()}", "match: {data.size: {gt: 1MB}}")
        return []
    out: list[Condition] = []
    for key, value in node.value.items():
        if key in GROUPS:
            members = value.value if isinstance(value.value, list) else [value]
            if not members:
                problems.add(value, f"`{key}` is empty")
            out.append(_grouped(key, [_all(parse_match(member, problems)) for member in members]))
        else:
            out += parse_field(key, node.at_key(key), value, problems)
    return out


def _all(conditions: list[Condition]) -> Condition:
    return conditions[0] if len(conditions) == 1 else ConditionGroup("all", conditions)


def _grouped(mode: str, members: list[Condition]) -> Condition:
    """Combine conditions; `not` over a list holds if none of them holds."""
    if mode == "not" and len(members) > 1:
        return ConditionGroup("not", [ConditionGroup("any", members)])
    return ConditionGroup(mode, members)


def parse_field(path: str, place: tuple[int, int], node: Node, problems: Problems) -> list[Condition]:
    """Parse the conditions on one path."""
    problems.conditions += 1
    if problems.limited and problems.conditions > MAX_CONDITIONS:
        remedy = "use `in` with a list of values, or several rules"
        problems.add(node, f"a rule has more than {MAX_CONDITIONS:,} conditions", remedy)
        problems.check()
    try:
        getter(path)
    except ValueError as e:
        problems.add(place, str(e))
        return []
    if isinstance(node.value, list):
        return _operator(path, place, "in", node, problems)
    if not isinstance(node.value, dict):
        return [equals(path, [node.value])]
    if not node.value:
        problems.add(node, f"{path}: no operator", nearest("", OPERATORS))
    out: list[Condition] = []
    for op, value in node.value.items():
        at = node.at_key(op)
        if op in GROUPS:
            members = value.value if isinstance(value.value, list) else [value]
            if not members:
                problems.add(value, f"{path}: `{op}` is empty")
            out.append(_grouped(op, [_all(parse_field(path, place, member, problems)) for member in members]))
        elif op in OPERATORS:
            out += _operator(path, at, op, value, problems)
        else:
            problems.add(at, f"{path}: there is no operator {op!r}", nearest(op, [*OPERATORS, *GROUPS]))
    return out


def _operator(path: str, place: tuple[int, int], op: str, node: Node, problems: Problems) -> list[Condition]:
    try:
        return [_leaf(path, op, node)]
    except Invalid as e:
        problems.add(node, f"{path}: {e.message}", e.remedy)
    except ValueError as e:
        problems.add(node if op not in ("in", "not_in") else place, f"{path}: {e}")
    return []


def _leaf(path: str, op: str, node: Node) -> Leaf:
    """Return the test of an operator.

    Raises Invalid, ValueError: it does not accept the value.
    """
    get, value = getter(path), node.plain()
    if op == "eq":
        return equals(path, [value])
    if op == "ne":
        same = equal(value)
        return Leaf(
            path, get, lambda found: found is not MISSING and not same(found), f"!= {show(value)}", items=_items(value)
        )
    if op in ("in", "not_in"):
        if not isinstance(value, list) or not value:
            raise ValueError(f"`{op}` takes a list with something in it, not {node.kind()}")
        if op == "in":
            return equals(path, value)
        among = one_of(value)
        return Leaf(
            path,
            get,
            lambda found: found is not MISSING and not among(found),
            f"not in {show(value)}",
            items=_items(value),
        )
    if op in COMPARE:
        shown = value if isinstance(value, str) else show(value)
        return Leaf(path, get, compare(op, value), f"{SIGNS[op]} {shown}")
    if op == "exists":
        if not isinstance(value, bool):
            raise ValueError(f"`exists` takes true or false, not {node.kind()}")
        return Leaf(path, get, lambda found: (found is not MISSING) is value, "exists" if value else "does not exist")
    return _text_leaf(path, op, value, node)


def _text_leaf(path: str, op: str, value: Any, node: Node) -> Leaf:
    if not isinstance(value, str):
        raise ValueError(f"`{op}` takes a text, not {node.kind()}")
    get, wanted = getter(path), f"{op} {show(value)}"
    if op == "prefix":
        return Leaf(path, get, lambda found: type(found) is str and found.startswith(value), wanted, prefix=value)
    if op == "suffix":
        return Leaf(path, get, lambda found: type(found) is str and found.endswith(value), wanted)
    if op == "glob":
        test = glob(value)
        prefix = literal_prefix(value)
        return Leaf(path, get, test.check, wanted, prefix=prefix, program_size=test.program_size)
    test = regex(value)
    return Leaf(path, get, test.check, wanted, program_size=test.program_size)
