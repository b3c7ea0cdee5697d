"""OperatorChain: the operators of one rule, in order.

It turns an event that matched into a Match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.codec import encode
from oncue.protocol.event_types import chain_depth
from oncue.protocol.records import VERSION, Event
from oncue.rules.limiters.base import AnyLimiter
from oncue.rules.limiters.catalog import SECTIONS as LIMITERS
from oncue.rules.limiters.failures import FailuresLimiter
from oncue.rules.matching.conditions import Condition
from oncue.rules.matching.expression import NO_COST, Cost
from oncue.rules.matching.filters import as_text
from oncue.rules.matching.template import Template, compile_args
from oncue.rules.operators.base import AnyOperator
from oncue.rules.operators.catalog import CATALOGUE, operator_id
from oncue.rules.operators.event_rows import EventRows, RequiredFields, refer_to_event
from oncue.rules.operators.records import BufferedEvent, KeyedOperator, Match
from oncue.rules.operators.selection import NOT_NAMED, Parsers, Pattern, Selection, Selector
from oncue.strict_yaml.document import Node, Problems, nearest

KEY_CHARS = 1_000
PatternParser = Callable[[Node, str, Problems], Pattern | None]
MATCH_BYTES = 500_000  # of the values of one event
EMPTY_ROW = b"\x90"


class CompiledOperator(msgspec.Struct, frozen=True):
    """An operator with the template of its key."""

    operator: AnyOperator
    key: Template | None
    packed: msgspec.Raw  # as a Match carries it
    selector: Selector | None = None

    def key_of(self, event: Event) -> str:
        """Return the key of an event.

        Raises Invalid: the event lacks a field, or the key is too long.
        """
        return self.operator.default_key(event) if self.key is None else _rendered(self.key, event)


class CompiledLimiter(msgspec.Struct, frozen=True):
    """A limiter with the template of its key."""

    limiter: AnyLimiter
    key: Template | None
    packed: msgspec.Raw  # as a Match carries it


def _rendered(template: Template, event: Event) -> str:
    """Return a key. Raises Invalid."""
    key = as_text(template.render(event))
    if len(key) > KEY_CHARS:
        raise Invalid(f"the key has {len(key):,} characters", remedy=f"at most {KEY_CHARS:,}: choose a shorter one")
    return key


class OperatorChain(msgspec.Struct, frozen=True):
    """The operators of one rule in order, and the limiters of its firings.

    `needs`: the values of each event that its arguments refer to.
    """

    operators: tuple[CompiledOperator, ...]
    needs: RequiredFields
    limiters: tuple[CompiledLimiter, ...] = ()

    @property
    def last(self) -> AnyOperator | None:
        return self.operators[-1].operator if self.operators else None

    @property
    def ids(self) -> frozenset[str]:
        """Return the operator_id of each operator, and the name of each limiter."""
        limiters = [each.limiter.name() for each in self.limiters]
        return frozenset([*(operator_id(o.operator, self.needs.names) for o in self.operators), *limiters])

    @property
    def key_templates(self) -> list[Template]:
        """Return the templates of all keys."""
        keys = [*(each.key for each in self.operators), *(each.key for each in self.limiters)]
        return [key for key in keys if key is not None]

    @property
    def pauses(self) -> bool:
        """True if the rule may pause itself."""
        return any(isinstance(o.limiter, FailuresLimiter) for o in self.limiters)

    def resumed(self, at_ms: int) -> OperatorChain:
        """Return the chain of a rule that a person has resumed then."""
        limiters = tuple(
            CompiledLimiter(each, o.key, msgspec.Raw(encode(each)))
            for o in self.limiters
            for each in [o.limiter.resumed(at_ms)]
        )
        return msgspec.structs.replace(self, limiters=limiters)

    def describe(self) -> str:
        operators = [each.operator.describe() for each in self.operators]
        return ", ".join([*operators, *(each.limiter.describe() for each in self.limiters)])

    def rows(self, event: Event) -> EventRows:
        """Return what the arguments see when the rule fires for this event alone.

        Raises Invalid.
        """
        name, expected, buffered = self._select(event)
        rows = [self.needs.row(event, name)] if buffered else []
        waited = self.last.waited(name, expected) if self.last is not None and self.last.WAITS else None
        key = self.operators[-1].key_of(event) if self.operators else ""
        return EventRows(self.needs.names, rows, key, [name] * len(rows), waited)

    def takes(self, event: Event) -> bool:
        """Return False if the event takes part in no firing. Raises Invalid."""
        return self._select(event).buffered

    @property
    def _selector(self) -> Selector | None:
        return self.operators[-1].selector if self.operators else None

    def _select(self, event: Event) -> Selection:
        """Return the name of an event. Raises Invalid."""
        return NOT_NAMED if self._selector is None else self._selector.select(event)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions of an event, beside those of `on` and `match`."""
        return () if self._selector is None else self._selector.conditions

    @property
    def patterns(self) -> dict[str, Pattern]:
        """Return the patterns of events that the rule file names."""
        selector = self._selector
        return {} if selector is None else dict(zip(selector.names, selector.patterns, strict=True))

    @property
    def select_cost(self) -> Cost:
        """Cost of the names of one event."""
        return NO_COST if self._selector is None else self._selector.cost

    def match(self, rule: str, label: str, version: int, event: Event, at_ms: int, mark_us: int) -> Match:
        """Return the Match of an event.

        Raises Invalid: the event lacks a field that a key or the arguments need, or the values are
        too large.
        """
        stages = tuple(KeyedOperator(o.packed, o.key_of(event)) for o in self.operators)
        name, expected, is_buffered = self._select(event)
        row = _packed(self.needs.row(event, name)) if is_buffered else EMPTY_ROW
        size, depth = self.last.measure(event) if self.last is not None else 0, chain_depth(event)
        keys = None
        if self.limiters:
            keys = {o.limiter.name(): _rendered(o.key, event) for o in self.limiters if o.key and is_buffered}
        buffered = BufferedEvent(-1, event.source, event.id, row, size, mark_us, name, depth, keys)
        limiters = tuple(each.packed for each in self.limiters)
        return Match(VERSION, rule, label, version, at_ms, stages, self.needs.names, buffered, expected, limiters)

    def partition_key(self, match: Match) -> bytes:
        """Return the record key of a match.

        Events with a common state are in one partition. Events of operators with different keys
        have only the rule in common, and so have the events and outcomes of a rule with limiters.
        """
        if not self.operators or any(each.limiter.counts_all() for each in self.limiters):
            return limited_key(match.rule)
        keys = {o.operator.key for o in self.operators}
        return f"{match.rule}\0{match.stages[0].key if len(keys) == 1 and self._same_keys else ''}".encode()

    @property
    def _same_keys(self) -> bool:
        """False if several operators use their default keys, which differ."""
        return len(self.operators) == 1 or self.operators[0].key is not None


def limited_key(rule: str) -> bytes:
    """Return the key of all records of a rule with limiters."""
    return f"{rule}\0".encode()


def _packed(row: list[Any]) -> bytes:
    try:
        packed = msgspec.msgpack.encode(row)
    except (OverflowError, UnicodeEncodeError) as e:
        raise Invalid(
            f"a value cannot be buffered: {e}", remedy="use numbers of at most 64 bits and texts that are UTF-8"
        ) from None
    if len(packed) > MATCH_BYTES:
        raise Invalid(
            f"the values for the arguments have {len(packed):,} bytes; at most {MATCH_BYTES:,} are buffered per event",
            remedy="take less of the event into `args`",
        )
    return packed


# ---------------------------------------------------------------- parsing


def parse_operators(
    rule: Node, problems: Problems, pattern: PatternParser, first: Sequence[AnyLimiter] = ()
) -> OperatorChain | None:
    """Return the operators of a rule that is a mapping; None: it has none.

    The required fields are collected later, while the rule's arguments are compiled.
    """
    found = [(member, rule.value[name]) for name, member in CATALOGUE.members.items() if name in rule.value]
    parsers = Parsers(refer_to_event, pattern)
    compiled = [_compiled(member, node, problems, parsers) for member, node in found]
    _check_order(rule, [member for member, _ in found], problems)
    limiters: list[CompiledLimiter | None] = [CompiledLimiter(each, None, msgspec.Raw(encode(each))) for each in first]
    limiters += [
        _limiter(member, rule.value[name], problems) for name, member in LIMITERS.items() if name in rule.value
    ]
    if not found and not limiters:
        return None
    operators = tuple(o for o in compiled if o)
    for each in operators[:-1]:
        if each.operator.measures():
            name = each.operator.name()
            problems.add(rule.value[name], f"`{name}` with `of` has to be the last operator", "use two rules")
    many = next((member.name() for member, _ in found if member.FIRES_MANY), "")
    selector = operators[-1].selector if operators else None
    names = selector.names if selector is not None else ()
    needs = RequiredFields(many, names, any(member.WAITS for member, _ in found))
    return OperatorChain(operators, needs, tuple(o for o in limiters if o))


def _check_order(rule: Node, members: list[type[AnyOperator]], problems: Problems) -> None:
    """Add a problem for each operator that buffers events before another operator.

    A buffer fires the rule directly, so the operators after it would be skipped.
    """
    for member, following in pairwise(members):
        if member.BUFFERS:
            problem = f"`{member.name()}` buffers events, and `{following.name()}` would come after it"
            problems.add(rule.at_key(following.name()), problem, "leave one of them out, or use two rules")


def _compiled(member: type[AnyOperator], node: Node, problems: Problems, parsers: Parsers) -> CompiledOperator | None:
    name = member.name()
    if member.PLAIN and isinstance(node.value, str | int | float) and not isinstance(node.value, bool):
        node = Node({member.PLAIN: node}, node.line, node.column)
    if not _has_options(name, node, member.OPTIONS, member.EXAMPLE, problems):
        return None
    template, text = _key(name, node.value.get("key"), problems)
    operator = member.parse(node, text, problems)
    if operator is None:
        return None
    return CompiledOperator(operator, template, msgspec.Raw(encode(operator)), member.selector(node, problems, parsers))


def _limiter(member: type[AnyLimiter], node: Node, problems: Problems) -> CompiledLimiter | None:
    name = member.name()
    if not _has_options(name, node, member.OPTIONS, member.EXAMPLE, problems):
        return None
    template, text = _key(name, node.value.get("key"), problems)
    limiter = member.parse(node, text, problems)
    return CompiledLimiter(limiter, template, msgspec.Raw(encode(limiter))) if limiter else None


def _has_options(name: str, node: Node, keys: Sequence[str], example: str, problems: Problems) -> bool:
    """Return True for a mapping; add a problem for each key that it may not have."""
    if not isinstance(node.value, dict):
        problems.add(node, f"`{name}` is a mapping, not {node.kind()}", f"{name}: {example}")
        return False
    options = ("key", *keys)
    for option in node.value:
        if option not in options:
            problems.add(node.at_key(option), f"`{name}` has no key {option!r}", nearest(option, options))
    return True


def _key(name: str, node: Node | None, problems: Problems) -> tuple[Template | None, str]:
    if node is None:
        return None, ""
    if not isinstance(node.value, str) or not node.value:
        problems.add(node, f"{name}.key is a text, not {node.kind()}", f'{name}: {{key: "${{data.path}}", ...}}')
        return None, ""
    return compile_args(node, problems, f"{name}.key", refer_to_event), node.value
