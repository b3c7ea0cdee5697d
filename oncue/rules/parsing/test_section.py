"""Parses `events:` with their `at`, and `fires:`, of a rule's `tests:`."""

from __future__ import annotations

from typing import Any

from oncue.quantities import duration_ms
from oncue.strict_yaml.document import Node, Problems, nearest

MAX_EVENTS = 1_000
TIMED_KEYS = ("at", "event")
_FORM = "events: [{at: 0s, event: {data: {...}}}, {at: 5s, event: sample.json}]"


def timed_events(node: Node, problems: Problems) -> tuple[tuple[int, Any], ...]:
    """Return (at_ms, event) pairs.

    An event without `at` has the time of the one before.
    """
    if not isinstance(node.value, list) or not 0 < len(node.value) <= MAX_EVENTS:
        problems.add(node, f"`events` is a list of 1 to {MAX_EVENTS:,} events, not {node.kind()}", _FORM)
        return ()
    found: list[tuple[int, Any]] = []
    at_ms = 0
    for item in node.value:
        if not isinstance(item.value, dict) or "event" not in item.value:
            problems.add(item, "an event of a test over time is a mapping with `event`, and `at` perhaps", _FORM)
            continue
        for key in item.value:
            if key not in TIMED_KEYS:
                problems.add(item.at_key(key), f"it has no key {key!r}", nearest(key, TIMED_KEYS))
        event = item.value["event"]
        if not isinstance(event.value, str | dict):
            problems.add(event, f"`event` is a file name or a mapping, not {event.kind()}")
        at_ms = _at(item.value.get("at"), at_ms, problems)
        found.append((at_ms, event.plain()))
    return tuple(found)


def _at(node: Node | None, before_ms: int, problems: Problems) -> int:
    if node is None:
        return before_ms
    try:
        at_ms = duration_ms(node.value)
        if at_ms < before_ms:
            raise ValueError("it is earlier than the event before it")
        return at_ms
    except ValueError as e:
        problems.add(node, f"at: {e}")
        return before_ms


def fires(expect: Node, problems: Problems) -> bool | int:
    """Parse `fires`: true, false, or a number of firings.

    The default is true, or false where a dead letter is expected.
    """
    node = expect.value.get("fires")
    if node is None:
        return "dead" not in expect.value
    value = node.value
    if isinstance(value, bool) or (isinstance(value, int) and value >= 0):
        return value
    problems.add(node, f"`fires` is true, false, or how often it fires, not {node.kind()}")
    return True
