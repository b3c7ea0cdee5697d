"""Selector: names the events that an operator waits for.

It is compiled with the rule, and runs once for each event that matches. The fold sees the names
only.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.conditions import Condition
from oncue.rules.matching.expression import Cost
from oncue.rules.matching.filters import as_text
from oncue.rules.matching.template import Template, total

MOST_NAMES = 1_000  # of one list
NAME_CHARS = 1_000
NAMES_CHARS = 100_000  # together


class Selection(NamedTuple):
    """Name of an event among those that an operator waits for."""

    name: str = ""
    expected: tuple[str, ...] = ()  # the list of names that the event carries
    buffered: bool = True  # False: it only carries the list


class Selector(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the events, if the rule file has them."""
        ...

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions of an event, beside those of `on` and `match`."""
        ...

    @property
    def cost(self) -> Cost:
        """Cost of the templates for one event."""
        ...

    def select(self, event: Event) -> Selection:
        """Return the name of an event. Raises Invalid."""
        ...


NOT_NAMED = Selection()


class ValueSelector(NamedTuple):
    """Takes the name from a value of the event.

    The expected names are a list in it.
    """

    operator: str
    by: Template | None
    expected: Template | None

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return total(each.cost for each in (self.by, self.expected) if each is not None)

    def select(self, event: Event) -> Selection:
        """Return the name of an event.

        Raises Invalid: it has neither a name nor a list, or they are too long.
        """
        if self.expected is None:
            return NOT_NAMED if self.by is None else Selection(self._checked(self.by.render(event)))
        assert self.by is not None
        expected, why = _rendered(self.expected, event)
        names = self._names(expected) if why is None else ()
        value, why = _rendered(self.by, event)
        if why is None and (not names or as_text(value) in names):
            return Selection(self._checked(value), names)
        if not names and why is not None:
            raise why
        return Selection("", names, buffered=False)

    def _checked(self, value: object) -> str:
        name = as_text(value)
        if not name or len(name) > NAME_CHARS:
            raise Invalid(
                f"{self.operator}.by: the value has {len(name):,} characters", remedy=f"it takes 1 to {NAME_CHARS:,}"
            )
        return name

    def _names(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise Invalid(f"{self.operator}.list: the event has no list there", remedy="it takes a list of names")
        names = tuple(dict.fromkeys(as_text(item) for item in value))
        if len(names) > MOST_NAMES or sum(map(len, names)) > NAMES_CHARS:
            raise Invalid(
                f"{self.operator}.list: the event names {len(names):,}",
                remedy=f"at most {MOST_NAMES:,} names of {NAMES_CHARS:,} characters together",
            )
        return names


def _rendered(template: Template, event: Event) -> tuple[object, Invalid | None]:
    try:
        return template.render(event), None
    except Invalid as e:
        return None, e
