"""Operator: the interface of the stateful steps of a rule.

    event that matched ──► operator.step ──► Step ─┬─ passes ─► next operator; after the last: fire
                                                   └─ effects: BUFFER the event, DISCARD or Fire the
                                                      buffer, DropBefore
    Tick, at state.due_ms() ──► state.tick ──► Step

An operator is one file with two frozen Structs, and one line in catalog.py:
- The Operator holds its options. Each Match carries them by value, so a record that is read again
  has the same effect although the rule was changed meanwhile.
- The OperatorState is stored per rule, operator and key. Its tag is the operator's.

Both are pure: the time comes from the record, and the event's values too. The class names are free,
but tags and the order of the fields are stored: append fields, with defaults, and never remove any.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from oncue.protocol.records import Event, Stored
from oncue.rules.operators.records import Match, Waited
from oncue.rules.operators.selection import Parsers, Selector
from oncue.strict_yaml.document import Node, Problems


class BufferEffect(Enum):
    BUFFER = "buffer"
    DISCARD = "discard"


BUFFER = BufferEffect.BUFFER  # add the event to the buffer of its key
DISCARD = BufferEffect.DISCARD  # empty the buffer; nothing fires


class Fire(NamedTuple):
    """Effect: fire the rule with all events of the buffer, and empty it."""

    reason: str  # for `oncue dead` and the record: count, wait ...
    opening: int  # offset of the first match; the ids of the tasks follow from it
    opened_ms: int
    label: str  # the deployment under which the newest event matched: label@version
    version: int
    needs: tuple[str, ...]  # names of the values of a buffered event

    def moved(self, by_ms: int) -> Self:
        """Return the firing with its time moved."""
        return self._replace(opened_ms=self.opened_ms + by_ms)

    @classmethod
    def of(cls, reason: str, match: Match, offset: int) -> Self:
        """Return the firing of a buffer with this match alone."""
        return cls(reason, offset, match.at_ms, match.label, match.version, match.needs)


class Close(NamedTuple):
    """Effect: end the wait for certain events.

    The rule fires, or not, as `waited` says.
    """

    fire: Fire
    waited: Waited
    only: tuple[str, ...] = ()  # names of the events that take part; (): all


class BufferAt(NamedTuple):
    """Effect: add the event to the buffer of its key, with its time.

    The time is stored as `size_bytes`.
    """

    time_ms: int


class FireSpan(NamedTuple):
    """Effect: fire the rule with the events of a time span.

    Those before `keep_from` leave the buffer.
    """

    fire: Fire
    start: int
    end: int
    keep_from: int
    waited: Waited | None = None  # why the rule does not fire


class DropBefore(NamedTuple):
    """Effect: remove the events before an offset from the buffer."""

    place: int


Effect = BufferEffect | BufferAt | Fire | FireSpan | Close | DropBefore


class OperatorState(Stored, frozen=True):
    """State of one operator for one key."""

    applied: int  # offset of the last match or tick in it; the fold ignores records up to it

    def due_ms(self) -> int:
        """Return the time at which `tick` is wanted; 0: never."""
        return 0

    def forget_ms(self) -> int:
        """Return the time from which the state has no effect; 0: not known yet."""
        return 0

    def buffered(self) -> int:
        """Return the number of events in the buffer.

        While there are some, the window is open.
        """
        return 0

    def since_ms(self) -> int:
        """Return the time from which `due_ms` and `forget_ms` count; 0: none."""
        return 0

    def moved(self, by_ms: int) -> Self:
        """Return the state with all its times moved."""
        return self

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        """Apply the time, or the removal of the operator (`reason` "changed").

        None: no change.
        """
        return None


S = TypeVar("S", bound=OperatorState)


class Step(NamedTuple):
    """Result of one match or tick."""

    state: OperatorState
    effects: tuple[Effect, ...] = ()  # in order
    passes: bool = False  # to the next operator
    suppressed: bool = False  # the event is counted as suppressed in the rule's counters


class OperatorFinding(NamedTuple):
    """Preview of one operator for an event, in words."""

    passes: bool
    found: str
    wanted: str
    why: str = ""  # for an event that passes: what happens to it


class Operator(Stored, Generic[S], frozen=True):
    """One operator of a rule with its options. `S` is the Struct of its states."""

    key: str  # the template as written; "": `default_key`

    STATE: ClassVar[type[OperatorState]]
    OPTIONS: ClassVar[tuple[str, ...]]  # keys of its mapping in the rule file, beside `key`
    EXAMPLE: ClassVar[str]  # of that mapping, for error messages
    # It buffers events, so it must be the rule's last operator. Its states depend on the buffered
    # values too.
    BUFFERS: ClassVar[bool] = False
    # The option that a plain value stands for, in place of a mapping.
    PLAIN: ClassVar[str] = ""
    # Events in its buffer stay there when options or arguments of the rule change.
    KEEPS_STATES: ClassVar[bool] = False
    # Number of fields that former versions stored. Later ones at their defaults are not in its id.
    FORMER: ClassVar[int] = 0
    # A firing has several events; arguments use ${each.PATH}, ${count} ...
    FIRES_MANY: ClassVar[bool] = False
    # It waits for certain events: arguments use ${expected} and ${missing}.
    WAITS: ClassVar[bool] = False
    # It may suppress an event: then it is in no firing.
    SUPPRESSES: ClassVar[bool] = True
    # Why buffered events may stay in the buffer, for tests of rule files.
    UNFIRED: ClassVar[str] = ""

    @classmethod
    def name(cls) -> str:
        return str(cls.__struct_config__.tag)

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        """Parse the operator's mapping in a rule file, whose keys are checked.

        Errors go to `problems`; None: no operator can be made.
        """
        raise NotImplementedError

    @classmethod
    def selector(cls, node: Node, problems: Problems, parsers: Parsers) -> Selector | None:
        """Return what names the events of the mapping; None: it needs no names."""
        return None

    def waited(self, name: str, expected: tuple[str, ...]) -> Waited:
        """Return what it would wait for, had an event with this name and list come alone."""
        raise NotImplementedError

    def default_key(self, event: Event) -> str:
        """Return the key of an event where the rule gives no template."""
        return ""

    def measures(self) -> bool:
        """Return True if it has to be the last operator, for which `measure` is called."""
        return False

    def measure(self, event: Event) -> int:
        """Return a number of the event that `step` needs, as `match.event.size_bytes`.

        Raises Invalid.
        """
        return 0

    def by_event_time(self) -> bool:
        """Return True if times in the events count, not those at which they were accepted."""
        return False

    def step(self, state: S | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        """Fold one match into the state of its key.

        `known()`: the buffer has the event already.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """Return the operator in words, as `oncue rules` shows it."""
        raise NotImplementedError

    def preview(self, state: S | None, match: Match, key: str, known: bool) -> OperatorFinding:
        """Return what `step` would do with the match now, for `oncue rules explain`."""
        raise NotImplementedError

    def by_key(self) -> str:
        return f" by {self.key}" if self.key else ""


AnyOperator = Operator[Any]
