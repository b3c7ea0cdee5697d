"""The `dedupe` and `batch` parts of a rule: parsed, and what makes a Match of an event."""

from __future__ import annotations

from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import VERSION, Event
from oncue.quantities import duration_ms, duration_text, size_bytes, size_text
from oncue.rules.matching.fields import getter
from oncue.rules.matching.template import Template, as_text, compile_args
from oncue.rules.operators.event_rows import EventRows, RequiredFields
from oncue.rules.operators.records import BatchSpec, BufferedEvent, DedupeSpec, Match, Spec, Stage, spec_hash
from oncue.rules.stateful.fold import WINDOW_EVENTS
from oncue.rules.yaml_document import Node, Problems, nearest

MEMORY_KEYS = ("dedupe", "batch")
DEDUPE_KEYS = ("key", "ttl")
BATCH_KEYS = ("key", "count", "bytes", "wait")
MOST_MS = 30 * 86_400_000  # of ttl and wait
KEY_CHARS = 1_000
MATCH_BYTES = 500_000  # of the values of one event
_size = getter("data.size")


class Operator(msgspec.Struct, frozen=True):
    spec: Spec
    key: Template | None  # of an event

    @property
    def default_key(self) -> str:
        return "source and id" if isinstance(self.spec, DedupeSpec) else "all in one"

    def key_of(self, event: Event) -> str:
        """Raises Invalid: the event lacks a field, or the key is too long."""
        if self.key is None:
            return as_text([event.source, event.id]) if isinstance(self.spec, DedupeSpec) else ""
        key = as_text(self.key.render(event))
        if len(key) > KEY_CHARS:
            raise Invalid(f"the key has {len(key):,} characters", remedy=f"at most {KEY_CHARS:,}: choose a shorter one")
        return key

    def text(self) -> str:
        """As `oncue rules` shows it."""
        spec, by = self.spec, f" by {self.spec.key}" if self.spec.key else ""
        if isinstance(spec, DedupeSpec):
            return f"dedupe{by} for {duration_text(spec.ttl_ms)}"
        return f"batch{by} of {limits(spec)}"


def limits(spec: BatchSpec) -> str:
    parts = [f"{spec.count:,} events"] if spec.count else []
    parts += [size_text(spec.size_bytes)] if spec.size_bytes else []
    parts += [duration_text(spec.wait_ms)] if spec.wait_ms else []
    return " or ".join(parts)


class OperatorChain(msgspec.Struct, frozen=True):
    """Of one rule: its operators in their order, and what its arguments need of each event."""

    operators: tuple[Operator, ...]
    needs: RequiredFields

    @property
    def batches(self) -> bool:
        return isinstance(self.operators[-1].spec, BatchSpec)

    @property
    def hashes(self) -> frozenset[str]:
        """Of the operators that are in force."""
        return frozenset(spec_hash(o.spec, self.needs.names) for o in self.operators)

    def text(self) -> str:
        return ", ".join(o.text() for o in self.operators)

    def rows(self, event: Event) -> EventRows:
        """As the arguments would see this event alone. Raises Invalid."""
        return EventRows(self.needs.names, [self.needs.row(event)], self.operators[-1].key_of(event))

    def match(self, rule: str, label: str, version: int, event: Event, at_ms: int, mark_us: int) -> Match:
        """Raises Invalid: the event lacks a field that a key or the arguments need, or they are too large."""
        stages = tuple(Stage(o.spec, o.key_of(event)) for o in self.operators)
        counted = any(isinstance(o.spec, BatchSpec) and o.spec.size_bytes for o in self.operators)
        row = _packed(self.needs.row(event))
        held = BufferedEvent(-1, event.source, event.id, row, _bytes_of(event) if counted else 0, mark_us)
        return Match(VERSION, rule, label, version, at_ms, stages, self.needs.names, held)

    def place(self, match: Match) -> bytes:
        """What the match's partition follows from: all that meets in one state is in one partition. Two operators with
        different keys meet in the rule."""
        keys = {o.spec.key for o in self.operators}
        return f"{match.rule}\0{match.stages[0].key if len(keys) == 1 and self._keyed else ''}".encode()

    @property
    def _keyed(self) -> bool:
        """With the default keys, too, a dedupe and a batch have different ones."""
        return len(self.operators) == 1 or self.operators[0].key is not None


def _packed(row: list[Any]) -> bytes:
    try:
        packed = msgspec.msgpack.encode(row)
    except (OverflowError, UnicodeEncodeError) as e:
        raise Invalid(f"a value cannot be held: {e}", remedy="numbers of 64 bits and texts of UTF-8 can") from None
    if len(packed) > MATCH_BYTES:
        raise Invalid(
            f"the values for the arguments have {len(packed):,} bytes; at most {MATCH_BYTES:,} are held an event",
            remedy="take less of the event into `args`",
        )
    return packed


def _bytes_of(event: Event) -> int:
    size = _size(event)
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1 << 62:
        raise Invalid(
            "batch.bytes: the event has no data.size that is a number of bytes", remedy="use `count` or `wait`"
        )
    return int(size)


# ---------------------------------------------------------------- parsing


def parse_memory(rule: Node, problems: Problems) -> OperatorChain | None:
    """Of a rule that is a mapping. The needs are gathered afterwards, while its arguments are compiled."""
    found = {key: rule.value[key] for key in MEMORY_KEYS if key in rule.value}
    operators = [_operator(key, node, problems) for key, node in found.items() if _mapping(key, node, problems)]
    return OperatorChain(tuple(o for o in operators if o), RequiredFields("batch" in found)) if found else None


def _mapping(key: str, node: Node, problems: Problems) -> bool:
    if not isinstance(node.value, dict):
        example = "{ttl: 10m}" if key == "dedupe" else "{count: 100, wait: 30s}"
        problems.add(node, f"`{key}` is a mapping, not {node.kind()}", f"{key}: {example}")
    return isinstance(node.value, dict)


def _operator(name: str, node: Node, problems: Problems) -> Operator | None:
    keys = DEDUPE_KEYS if name == "dedupe" else BATCH_KEYS
    for key in node.value:
        if key not in keys:
            problems.add(node.at_key(key), f"`{name}` has no key {key!r}", nearest(key, keys))
    key, text = _key(name, node.value.get("key"), problems)
    if name == "dedupe":
        if "ttl" not in node.value:
            problems.add(node, "`dedupe` lacks the key 'ttl'")
            return None
        return Operator(DedupeSpec(text, _span(node.value["ttl"], "dedupe.ttl", problems)), key)
    if not any(k in node.value for k in BATCH_KEYS[1:]):
        problems.add(
            node, "`batch` needs at least one of `count`, `bytes` and `wait`", "batch: {count: 100, wait: 30s}"
        )
    count, nbytes, wait = (node.value.get(k) for k in BATCH_KEYS[1:])
    spec = BatchSpec(text, _count(count, problems), _bytes(nbytes, problems), _span(wait, "batch.wait", problems))
    return Operator(spec, key)


def _key(name: str, node: Node | None, problems: Problems) -> tuple[Template | None, str]:
    if node is None:
        return None, ""
    if not isinstance(node.value, str) or not node.value:
        problems.add(node, f"{name}.key is a text, not {node.kind()}", f'{name}: {{key: "${{data.path}}", ...}}')
        return None, ""
    return compile_args(node, problems, f"{name}.key"), node.value


def _span(node: Node | None, place: str, problems: Problems) -> int:
    if node is None:
        return 0
    try:
        found = duration_ms(node.value)
        if not 0 < found <= MOST_MS:
            raise ValueError(f"it takes more than 0 and at most {duration_text(MOST_MS)}")
        return found
    except ValueError as e:
        problems.add(node, f"{place}: {e}")
        return 0


def _count(node: Node | None, problems: Problems) -> int:
    if node is None:
        return 0
    if type(node.value) is not int:
        problems.add(node, f"batch.count is a whole number, not {node.kind()}")
    elif not 0 < node.value <= WINDOW_EVENTS:
        problems.add(node, f"batch.count is {node.value}; it takes 1 to {WINDOW_EVENTS:,}")
    else:
        return int(node.value)
    return 0


def _bytes(node: Node | None, problems: Problems) -> int:
    if node is None:
        return 0
    try:
        found = size_bytes(node.value)
        if not found:
            raise ValueError("it takes more than 0")
        return found
    except ValueError as e:
        problems.add(node, f"batch.bytes: {e}")
        return 0
