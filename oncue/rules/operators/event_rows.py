"""EventRows: the values of buffered events for a stateful rule's arguments.

"${each.data.path}"   a list, one value per event      "${count}"   the number of events
"${first.data.path}"  of the first event               "${key}"     of the window
"${last.data.path}"   of the last event
"${join.dark.data.x}" of the event with a name in the rule file; null: it has not come
"${expected}"         names that the operator waits for, or their number
"${missing}"          those that have not come
"${window.start}"     of a window in time, and "${window.end}"
"${sum.data.size}"    of all events: sum, min, max, mean, p95 ..., distinct (aggregates.py)

A rule whose operators fire for single events refers to "${data.path}", as rules without operators
do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.expression import Cost, cost, normalized, parse, simple_path
from oncue.rules.matching.template import Reference, Render, checked, reference, total
from oncue.rules.operators.aggregates import WORDS, aggregate
from oncue.rules.operators.options import utc_text
from oncue.rules.operators.records import ClosedWindow, Waited
from oncue.strict_yaml.document import nearest

REFERENCES = (
    "${each.data.path} (a list, one value an event), ${first.data.path}, ${last.data.path}, ${count} and ${key}"
)
_row = msgspec.msgpack.Decoder(list[Any])


class EventRows:
    """Values of the events of one firing.

    One row per event, one column per entry of `needs`.
    """

    __slots__ = ("_at", "count", "key", "names", "needs", "rows", "span_ms", "waited")

    def __init__(
        self,
        needs: Sequence[str],
        rows: Sequence[list[Any]],
        key: str,
        names: Sequence[str] = (),
        waited: Waited | None = None,
        span_ms: tuple[int, ...] = (),
    ) -> None:
        """`names`: of the events, where they have names."""
        self.needs, self.rows, self.key, self.count = tuple(needs), rows, key, len(rows)
        self.names, self.waited, self.span_ms = names, waited, span_ms
        self._at = {need: n for n, need in enumerate(needs)}

    @classmethod
    def of(cls, window: ClosedWindow) -> EventRows:
        rows = [_row.decode(event.row) for event in window.events]
        names = [event.name for event in window.events]
        return cls(window.needs, rows, window.key, names, window.waited, window.span_ms)

    def column(self, need: str) -> int:
        """Return the index of a column.

        Raises Invalid: the events were buffered without it.
        """
        at = self._at.get(need)
        if at is None:
            raise Invalid(f"the events were buffered without {need}", remedy="deploy the rule again as it was")
        return at


class RequiredFields:
    """Collects the values of an event that a rule's arguments refer to.

    It does so while the arguments are compiled.
    """

    def __init__(self, many: str = "", names: Sequence[str] = (), waits: bool = False) -> None:
        """Collect for a rule whose operator `many` fires with many events.

        "": each firing has one event. `names`: of the events, where the rule file has them.
        `waits`: the operator waits for certain events.
        """
        self._many, self._parts, self._waits = many, names, waits
        self._found: dict[str, tuple[str, Reference]] = {}  # with the name of the event that has it; "": all

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._found)

    def row(self, event: Event, name: str = "") -> list[Any]:
        """Return the values of one event. Raises Invalid: the event lacks a field.

        `name`: of the event. Those of events with other names are None.
        """
        return [each.render(event) if of in ("", name) else None for of, each in self._found.values()]

    @property
    def cost(self) -> Cost:
        """Cost of the values of one event."""
        return total(each.cost for _, each in self._found.values())

    def refer(self, text: str, place: str) -> Reference:
        """Compile `${text}` for EventRows.

        Filters of one event's value are applied when the event is stored. Raises ValueError.
        """
        if not self._many:
            return Reference(self._of(check_single(text), place, _first), Cost(references=1))
        expression = parse(text)
        word, _, path = text.partition(".")
        if word in _WHICH and path and simple_path(expression):
            return Reference(self._of(path, place, _WHICH[word]), Cost(references=1))
        if word == self._many and self._parts and simple_path(expression):
            return Reference(self._of_named(path, place), Cost(references=1))
        return Reference(checked(expression, place, lambda path: self._atom(path, place)), cost(expression))

    def _atom(self, text: str, place: str) -> Render:
        """Return the function that gets the value of a path in an expression."""
        if text in ("count", "key"):
            return _count if text == "count" else _key
        if self._waits and text in ("expected", "missing"):
            return _expected if text == "expected" else _missing
        if self._many == "window" and text in ("window.start", "window.end"):
            return _start if text == "window.start" else _end
        word, _, path = text.partition(".")
        if word == "each" and path:
            raise ValueError(f"${{{text}}} is a list: filters may follow it, but no arithmetic")
        if word in _WHICH and path:
            return self._of(path, place, _WHICH[word])
        if word == self._many and self._parts:
            return self._of_named(path, place)
        if path and (over := aggregate(word)) is not None:
            return self._of(path, place, lambda rows, column: over(_each(rows, column)))
        raise ValueError(
            f"a rule with `{self._many}` runs for many events, and ${{{text}}} is of one: use {REFERENCES}"
        )

    def _of_named(self, text: str, place: str) -> Render:
        """Return the function that gets a value of a named event.

        Raises ValueError.
        """
        name, _, path = text.partition(".")
        if name not in self._parts or not path:
            known = [f"{self._many}.{part}.data" for part in self._parts]
            raise ValueError(f"`{self._many}` has no {name!r}: {nearest(f'{self._many}.{text}', known)}")
        return self._of(path, place, lambda rows, column: _named(rows, column, name), name)

    def _of(self, path: str, place: str, which: Callable[[EventRows, int], Any], name: str = "") -> Render:
        need = f"{name}: {normalized(path)}" if name else normalized(path)
        if need not in self._found:
            self._found[need] = name, reference(path, place)
        return lambda rows: which(rows, rows.column(need))


def refer_to_event(text: str, place: str) -> Reference:
    """Compile `${text}` for one Event.

    Raises ValueError.
    """
    return reference(check_single(text), place)


def check_single(text: str) -> str:
    """Return a reference to one event.

    Raises ValueError: it is to one of many events.
    """
    word, _, path = text.partition(".")
    if (word in _WHICH or word in WORDS) and path:
        many = "rules that run for many events, as with `batch`"
        raise ValueError(f"${{{text}}} is for the arguments of {many}; of one event write ${{{path}}}")
    return text


def _each(rows: EventRows, column: int) -> Any:
    return [row[column] for row in rows.rows]


def _first(rows: EventRows, column: int) -> Any:
    return rows.rows[0][column]


def _last(rows: EventRows, column: int) -> Any:
    return rows.rows[-1][column]


def _named(rows: EventRows, column: int, name: str) -> Any:
    return next((row[column] for row, of in zip(rows.rows, rows.names, strict=True) if of == name), None)


def _expected(rows: EventRows) -> Any:
    return _plain(rows.waited.expected) if rows.waited is not None else []


def _missing(rows: EventRows) -> Any:
    return _plain(rows.waited.missing) if rows.waited is not None else []


def _plain(names: tuple[str, ...] | int) -> list[str] | int:
    return names if isinstance(names, int) else list(names)


def _start(rows: EventRows) -> str | None:
    return utc_text(rows.span_ms[0]) if rows.span_ms else None


def _end(rows: EventRows) -> str | None:
    return utc_text(rows.span_ms[1]) if rows.span_ms else None


def _count(rows: EventRows) -> int:
    return rows.count


def _key(rows: EventRows) -> str:
    return rows.key


_WHICH: dict[str, Callable[[EventRows, int], Any]] = {"each": _each, "first": _first, "last": _last}
