"""What the arguments of a rule with memory see, and which values its events are held with.

"${each.data.path}"   a list, one value an event       "${count}"   how many events
"${first.data.path}"  of the first event               "${key}"     of the batch
"${last.data.path}"   of the last
A rule with `dedupe` alone runs for one event, and writes "${data.path}" like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.template import Render, reference
from oncue.rules.operators.records import Closed

WORDS = "${each.data.path} (a list, one value an event), ${first.data.path}, ${last.data.path}, ${count} and ${key}"
_row = msgspec.msgpack.Decoder(list[Any])


class EventRows:
    """The values of the events of one window: `needs` name the columns."""

    __slots__ = ("_at", "count", "key", "needs", "rows")

    def __init__(self, needs: Sequence[str], rows: Sequence[list[Any]], key: str) -> None:
        self.needs, self.rows, self.key, self.count = tuple(needs), rows, key, len(rows)
        self._at = {need: n for n, need in enumerate(needs)}

    @classmethod
    def of(cls, closed: Closed) -> EventRows:
        return cls(closed.needs, [_row.decode(held.row) for held in closed.events], closed.key)

    def column(self, need: str) -> int:
        """Raises Invalid where the events were held without it."""
        at = self._at.get(need)
        if at is None:
            raise Invalid(f"the events were held without {need}", remedy="deploy the rule again as it was")
        return at


class RequiredFields:
    """Gathers what a rule's arguments need of each event, while they are compiled."""

    def __init__(self, batch: bool) -> None:
        self._batch = batch
        self._found: dict[str, Render] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._found)

    def row(self, event: Event) -> list[Any]:
        """Raises Invalid where the event lacks a field."""
        return [get(event) for get in self._found.values()]

    def refer(self, text: str, place: str) -> Render:
        """What `${text}` gives for Rows. Raises ValueError."""
        if not self._batch:
            return self._of(text, place, _first)
        if text in ("count", "key"):
            return _count if text == "count" else _key
        word, _, path = text.partition(".")
        if word in _WHICH and path:
            return self._of(path, place, _WHICH[word])
        raise ValueError(f"a rule with `batch` runs for many events, and ${{{text}}} is of one: it sees {WORDS}")

    def _of(self, path: str, place: str, which: Callable[[EventRows, int], Any]) -> Render:
        need = " | ".join(part.strip() for part in path.split("|"))
        self._found.setdefault(need, reference(path, place))
        return lambda rows: which(rows, rows.column(need))


def _each(rows: EventRows, column: int) -> Any:
    return [row[column] for row in rows.rows]


def _first(rows: EventRows, column: int) -> Any:
    return rows.rows[0][column]


def _last(rows: EventRows, column: int) -> Any:
    return rows.rows[-1][column]


def _count(rows: EventRows) -> int:
    return rows.count


def _key(rows: EventRows) -> str:
    return rows.key


_WHICH: dict[str, Callable[[EventRows, int], Any]] = {"each": _each, "first": _first, "last": _last}
