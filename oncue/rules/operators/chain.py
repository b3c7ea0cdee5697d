"""OperatorChain: the operators of one rule, in order.

It turns an event that matched into a Match.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.codec import encode
from oncue.protocol.event_types import chain_depth
from oncue.protocol.records import VERSION, Event
from oncue.rules.matching.conditions import Condition
from oncue.rules.matching.expression import NO_COST, Cost
from oncue.rules.matching.filters import as_text
from oncue.rules.matching.template import Template, compile_args
from oncue.rules.operators.base import AnyOperator
from oncue.rules.operators.catalog import CATALOGUE, operator_id
from oncue.rules.operators.event_rows import EventRows, RequiredFields, refer_to_event
from oncue.rules.operators.records import BufferedEvent, KeyedOperator, Match
from oncue.rules.operators.selection import NOT_NAMED, Selection, Selector
from oncue.strict_yaml.document import Node, Problems, nearest

KEY_CHARS = 1_000
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
        if self.key is None:
            return self.operator.default_key(event)
        key = as_text(self.key.render(event))
        if len(key) > KEY_CHARS:
            raise Invalid(f"the key has {len(key):,} characters", remedy=f"at most {KEY_CHARS:,}: choose a shorter one")
        return key


class OperatorChain(msgspec.Struct, frozen=True):
    """The operators of one rule in order.

    `needs`: the values of each event that its arguments refer to.
    """

    operators: tuple[CompiledOperator, ...]
    needs: RequiredFields

    @property
    def last(self) -> AnyOperator:
        return self.operators[-1].operator

    @property
    def ids(self) -> frozenset[str]:
        """Return the operator_id of each operator."""
        return frozenset(operator_id(o.operator, self.needs.names) for o in self.operators)

    def describe(self) -> str:
        return ", ".join(o.operator.describe() for o in self.operators)

    def rows(self, event: Event) -> EventRows:
        """Return what the arguments see when the rule fires for this event alone.

        Raises Invalid.
        """
        name, expected, buffered = self._select(event)
        rows = [self.needs.row(event, name)] if buffered else []
        waited = self.last.waited(name, expected) if self.last.WAITS else None
        return EventRows(self.needs.names, rows, self.operators[-1].key_of(event), [name] * len(rows), waited)

    def _select(self, event: Event) -> Selection:
        """Return the name of an event. Raises Invalid."""
        selector = self.operators[-1].selector
        return NOT_NAMED if selector is None else selector.select(event)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions of an event, beside those of `on` and `match`."""
        selector = self.operators[-1].selector if self.operators else None
        return () if selector is None else selector.conditions

    @property
    def select_cost(self) -> Cost:
        """Cost of the names of one event."""
        selector = self.operators[-1].selector
        return NO_COST if selector is None else selector.cost

    def match(self, rule: str, label: str, version: int, event: Event, at_ms: int, mark_us: int) -> Match:
        """Return the Match of an event.

        Raises Invalid: the event lacks a field that a key or the arguments need, or the values are
        too large.
        """
        stages = tuple(KeyedOperator(o.packed, o.key_of(event)) for o in self.operators)
        name, expected, is_buffered = self._select(event)
        row = _packed(self.needs.row(event, name)) if is_buffered else EMPTY_ROW
        size, depth = self.last.measure(event), chain_depth(event)
        buffered = BufferedEvent(-1, event.source, event.id, row, size, mark_us, name, depth)
        return Match(VERSION, rule, label, version, at_ms, stages, self.needs.names, buffered, expected)

    def partition_key(self, match: Match) -> bytes:
        """Return the record key of a match.

        Events with a common state are in one partition. Events of operators with different keys
        have only the rule in common.
        """
        keys = {o.operator.key for o in self.operators}
        return f"{match.rule}\0{match.stages[0].key if len(keys) == 1 and self._same_keys else ''}".encode()

    @property
    def _same_keys(self) -> bool:
        """False if several operators use their default keys, which differ."""
        return len(self.operators) == 1 or self.operators[0].key is not None


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


def parse_operators(rule: Node, problems: Problems) -> OperatorChain | None:
    """Return the operators of a rule that is a mapping; None: it has none.

    The required fields are collected later, while the rule's arguments are compiled.
    """
    found = [(member, rule.value[name]) for name, member in CATALOGUE.members.items() if name in rule.value]
    compiled = [_compiled(member, node, problems) for member, node in found]
    _check_order(rule, [member for member, _ in found], problems)
    if not found:
        return None
    operators = tuple(o for o in compiled if o)
    many = next((member.name() for member, _ in found if member.FIRES_MANY), "")
    selector = operators[-1].selector if operators else None
    names = selector.names if selector is not None else ()
    return OperatorChain(operators, RequiredFields(many, names, any(member.WAITS for member, _ in found)))


def _check_order(rule: Node, members: list[type[AnyOperator]], problems: Problems) -> None:
    """Add a problem for each operator that buffers events before another operator.

    A buffer fires the rule directly, so the operators after it would be skipped.
    """
    for member, following in pairwise(members):
        if member.BUFFERS:
            problem = f"`{member.name()}` buffers events, and `{following.name()}` would come after it"
            problems.add(rule.at_key(following.name()), problem, "leave one of them out, or use two rules")


def _compiled(member: type[AnyOperator], node: Node, problems: Problems) -> CompiledOperator | None:
    name = member.name()
    if not isinstance(node.value, dict):
        problems.add(node, f"`{name}` is a mapping, not {node.kind()}", f"{name}: {member.EXAMPLE}")
        return None
    options = ("key", *member.OPTIONS)
    for option in node.value:
        if option not in options:
            problems.add(node.at_key(option), f"`{name}` has no key {option!r}", nearest(option, options))
    template, text = _key(name, node.value.get("key"), problems)
    operator = member.parse(node, text, problems)
    if operator is None:
        return None
    return CompiledOperator(
        operator, template, msgspec.Raw(encode(operator)), member.selector(node, problems, refer_to_event)
    )


def _key(name: str, node: Node | None, problems: Problems) -> tuple[Template | None, str]:
    if node is None:
        return None, ""
    if not isinstance(node.value, str) or not node.value:
        problems.add(node, f"{name}.key is a text, not {node.kind()}", f'{name}: {{key: "${{data.path}}", ...}}')
        return None, ""
    return compile_args(node, problems, f"{name}.key", refer_to_event), node.value
