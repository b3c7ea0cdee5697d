"""Parses `on: {done: RULE, state: ...}` of rules on outcomes of tasks.

on: {done: reconstruct}                               any outcome of the rule's tasks
on: {done: [zarr, back], state: [failed, lost]}       of several rules, in some states
on: {type: oncue.task.failed}                         of any task of the owner
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from oncue.protocol.event_types import OUTCOME_SOURCE, OUTCOME_TYPE
from oncue.rules.matching.conditions import Condition
from oncue.rules.outcomes.outcome_event import STATES
from oncue.rules.parsing.condition_parser import equals
from oncue.strict_yaml.document import Node, Problems, nearest

KEYS = ("done", "state")
ALIASES = {"ok": "succeeded", "error": "failed", "timeout": "timed_out", "canceled": "cancelled"}


def is_done(on: Any) -> bool:
    """Return True if `on`, as plain data, names rules whose outcomes it is about."""
    return isinstance(on, dict) and "done" in on


def rules_followed(on: Any) -> tuple[str, ...] | None:
    """Return the rules whose outcomes `on` is about.

    (): outcomes of any task. None: it is about events.
    """
    if is_done(on):
        names = on["done"] if isinstance(on["done"], list) else [on["done"]]
        return tuple(name for name in names if isinstance(name, str))
    if not isinstance(on, dict):
        return None
    wanted = on.get("type")
    if isinstance(wanted, dict):
        wanted = wanted.get("eq", wanted.get("in", wanted.get("glob", wanted.get("prefix"))))
    texts = wanted if isinstance(wanted, list) else [wanted]
    return () if all(isinstance(text, str) and text.startswith(OUTCOME_TYPE) for text in texts) else None


def as_outcome(on: Any, event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event with the rule and state of `on` as defaults. For tests."""
    rule = next(iter(rules_followed(on) or ("",)))
    word = on.get("state", "succeeded")
    state = word[0] if isinstance(word, list) and word else word
    state = ALIASES.get(str(state), str(state))
    filled: dict[str, Any] = {"specversion": "1.0", "id": "0" * 32, "source": OUTCOME_SOURCE, **event}
    if isinstance(event.get("data", {}), dict):
        data = {"rule": rule, "state": state, "task": filled["id"], **event.get("data", {})}
        filled["data"], state = data, data["state"]
    filled.setdefault("type", f"{OUTCOME_TYPE}{state}")
    return filled


def parse_done(node: Node, rules: Collection[str] | None, problems: Problems) -> list[Condition]:
    """Parse a mapping with `done`. `rules`: names that it may have; None: any."""
    for key in node.value:
        if key not in KEYS:
            problems.add(node.at_key(key), f"`on` with `done` has no key {key!r}", nearest(key, KEYS))
    names = texts_of(node.value["done"], "done", "a rule's name", problems)
    for item, name in names:
        if rules is not None and name not in rules:
            problems.add(item, f"there is no rule {name!r}", nearest(name, rules))
    states = _states(node, problems)
    found: list[Condition] = [equals("data.rule", [name for _, name in names])] if names else []
    return [*found, equals("type", [OUTCOME_TYPE + state for state in states])] if states else found


def _states(node: Node, problems: Problems) -> list[str]:
    """Return the states that are wanted; none: any."""
    if "state" not in node.value:
        return []
    found = []
    for item, word in texts_of(node.value["state"], "state", "a state", problems):
        state = ALIASES.get(word, word)
        if state not in STATES:
            problems.add(item, f"there is no state {word!r} of an outcome", nearest(word, STATES))
        found.append(state)
    return found


def texts_of(node: Node, key: str, what: str, problems: Problems) -> list[tuple[Node, str]]:
    """Return the texts of a value that is one or a list of them, with their nodes."""
    items = node.value if isinstance(node.value, list) else [node]
    if not items:
        problems.add(node, f"`{key}` is empty")
    for item in items:
        if not isinstance(item.value, str) or not item.value:
            problems.add(item, f"`{key}` is {what} or a list of them, not {item.kind()}")
    return [(item, item.value) for item in items if isinstance(item.value, str) and item.value]
