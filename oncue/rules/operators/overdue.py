"""Event `oncue.overdue`: the deadline of a rule has passed.

It names the events that have not come.

It is told twice with the same id, because the id follows from the window.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from oncue.ids import derived_ids
from oncue.log.base import Record
from oncue.protocol import cloudevents
from oncue.protocol.event_types import OVERDUE_RULE, OVERDUE_TYPE
from oncue.protocol.records import Event
from oncue.rules.operators.options import utc_text
from oncue.rules.operators.records import ClosedWindow

FIELDS: dict[str, type] = {
    **dict.fromkeys(("rule", "key", "since", "deadline", "why"), str),
    **dict.fromkeys(("expected", "missing"), list),
    "count": int,
}


def overdue_event(window: ClosedWindow, seed: bytes) -> Event | None:
    """Return the event of a window; None: it has no deadline that has passed.

    `seed` identifies the window.
    """
    waited = window.waited
    if waited is None or not waited.overdue_ms:
        return None
    depth = 1 + max((event.depth for event in window.events), default=0)
    data: dict[str, Any] = {
        "rule": window.rule,
        "key": window.key,
        "expected": waited.expected,
        "missing": waited.missing,
        "count": len(window.events),
        "since": utc_text(window.opened_ms),
        "deadline": utc_text(waited.overdue_ms),
        "why": waited.why,
    }
    return Event(
        id=derived_ids(window.opened_ms, seed + b"\0overdue")[0].hex(),
        source=f"/oncue/rules/{quote(window.rule, safe='')}",
        type=OVERDUE_TYPE,
        subject=window.key or None,
        time=utc_text(waited.overdue_ms),
        datacontenttype="application/json",
        data=data,
        extensions={OVERDUE_RULE: window.rule, "oncuedepth": str(depth)},
    )


def overdue_record(event: Event) -> Record:
    """Return the event as a record of `oncue.events`."""
    value, headers = cloudevents.to_record(event)
    return Record(value, key=event.source.encode(), headers=headers)


def not_fired(closed: ClosedWindow) -> str:
    """Return in words why a rule did not fire for events that it waited for."""
    why = closed.waited.why if closed.waited is not None else ""
    return f"{why} (key {closed.key!r})" if closed.key else why
