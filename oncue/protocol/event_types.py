"""Types and sources of the events that oncue itself makes."""

from __future__ import annotations

from typing import Any

from oncue.protocol.records import Event

FILE_EVENT = "oncue.file.ready"  # of file triggers
OUTCOME_TYPE = "oncue.task."  # begins the types of outcomes of tasks; the state follows
OUTCOME_SOURCE = "/oncue/tasks"  # of these; their ids are those of the tasks
OVERDUE_TYPE = "oncue.overdue"  # of a rule whose deadline has passed
OVERDUE_RULE = "oncueoverdue"  # extension with the name of that rule; no sender can set it


def chain_depth(event: Event) -> int:
    """Return how many events have caused one another before this one."""
    return extension_number(event.extensions.get("oncuedepth")) or 0


def mark_us(event: Event) -> int:
    """Return when the cause of an event happened, in unix µs; 0: not known."""
    return extension_number(event.extensions.get("oncuemarkus")) or 0


def extension_number(value: Any) -> int | None:
    """Return a number in an extension; None: it has none.

    CloudEvents stores numbers over 32 bits as text.
    """
    if type(value) is int:
        return value if value >= 0 else None
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    return None
