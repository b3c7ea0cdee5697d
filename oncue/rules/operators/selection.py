"""Selector: names the events that an operator waits for.

It is compiled with the rule, and runs once for each event that matches. The fold sees the names
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.conditions import Condition, ConditionGroup, Leaf, one_of, show
from oncue.rules.matching.expression import NO_COST, Cost
from oncue.rules.matching.filters import as_text
from oncue.rules.matching.template import Refer, Template, total
from oncue.strict_yaml.document import Node, Problems

MOST_NAMES = 1_000  # of one list
NAME_CHARS = 1_000
NAMES_CHARS = 100_000  # together


class Selection(NamedTuple):
    """Name of an event among those that an operator waits for."""

    name: str = ""
    expected: tuple[str, ...] = ()  # the list of names that the event carries
    buffered: bool = True  # False: it only carries the list


class Pattern(NamedTuple):
    """Events that a rule file names.

    `on` is as written; None: that of the rule.
    """

    on: Any
    conditions: tuple[Condition, ...]
    follows: tuple[str, ...] | None = None  # rules whose outcomes `on` is about, as in Rule


class Parsers(NamedTuple):
    """Parsers of parts of a rule file, for operators."""

    refer: Refer  # of ${...} of one event
    pattern: Callable[[Node, str, Problems], Pattern | None]  # with its place, such as join.all.raw


class Selector(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the events, if the rule file has them."""
        ...

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Patterns of the names."""
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
    def patterns(self) -> tuple[Pattern, ...]:
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


class PatternSelector(NamedTuple):
    """Takes the name of the first pattern that an event fits."""

    names: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    conditions: tuple[Condition, ...]
    cost: Cost = NO_COST
    all_names: bool = False  # of all patterns that it fits, joined by +
    buffered: str = ""  # the name whose events are buffered; "": all

    @classmethod
    def of(cls, found: Mapping[str, Pattern], all_names: bool = False, buffered: str = "") -> Self:
        patterns = tuple(found.values())
        fits_one = ConditionGroup("any", [ConditionGroup("all", pattern.conditions) for pattern in patterns])
        return cls(tuple(found), patterns, (*_shared(patterns), fits_one), NO_COST, all_names, buffered)

    def select(self, event: Event) -> Selection:
        fits = [
            name
            for name, pattern in zip(self.names, self.patterns, strict=True)
            if all(condition.test(event) for condition in pattern.conditions)
        ]
        name = "+".join(fits) if self.all_names else next(iter(fits), "")
        return Selection(name, buffered=not self.buffered or self.buffered in fits)


def _shared(patterns: Sequence[Pattern]) -> Iterator[Condition]:
    """Yield conditions of the events of all patterns, for the index of rules."""
    first, *others = [{c.path: c for c in p.conditions if isinstance(c, Leaf) and c.equals} for p in patterns]
    for path, leaf in first.items():
        leaves = [leaf, *(other[path] for other in others if path in other)]
        if len(leaves) == len(patterns):
            values = list(dict.fromkeys(value for each in leaves for value in each.equals or ()))
            check = one_of(values)
            yield Leaf(path, leaf.get, check, f"in {show(values)}", tuple(values), items=len(values))


def _rendered(template: Template, event: Event) -> tuple[object, Invalid | None]:
    try:
        return template.render(event), None
    except Invalid as e:
        return None, e
