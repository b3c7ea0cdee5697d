"""The event on a deadline that has passed: its id, its data, its place in a chain."""

from __future__ import annotations

import msgspec

from oncue.rules.operators.overdue import overdue_event
from oncue.rules.operators.records import BufferedEvent, ClosedWindow, Waited
from oncue.rules.stateful.fold import window_id_seed

EVENTS = (BufferedEvent(3, "/s", "1", b"\x90", name="raw", depth=2), BufferedEvent(5, "/s", "2", b"\x90", depth=1))
WAITED = Waited(("raw", "dark"), ("dark",), "dead", "join: 1 of 2: missing dark within 10s", 11_000)
WINDOW = ClosedWindow(1, "r/1", "f", 1, "k", (), 0, 3, 1_000, "deadline", EVENTS, WAITED)


def test_it_names_what_is_missing_and_has_the_same_id_when_told_twice() -> None:
    event, again = (overdue_event(WINDOW, window_id_seed(WINDOW)) for _ in range(2))
    assert event is not None
    assert event == again
    assert (event.type, event.source, event.subject) == ("oncue.overdue", "/oncue/rules/r%2F1", "k")
    assert event.extensions == {"oncueoverdue": "r/1", "oncuedepth": "3"}
    assert event.data == {
        "rule": "r/1", "key": "k", "expected": ("raw", "dark"), "missing": ("dark",), "count": 2,
        "since": "1970-01-01T00:00:01.000Z", "deadline": "1970-01-01T00:00:11.000Z", "why": WAITED.why,
    }  # fmt: skip


def test_there_is_none_without_a_deadline_that_has_passed() -> None:
    complete = msgspec.structs.replace(WINDOW, waited=Waited(("raw",), ()))
    assert overdue_event(complete, b"") is None
    assert overdue_event(msgspec.structs.replace(WINDOW, waited=None), b"") is None
