"""Limiter: the interface of the limits that the firings of a rule pass.

    operators ──firing──► limiter.admit ──► Verdict ─┬─ PASS ──► next limiter; after the last: tasks
                                                     ├─ QUEUE ─► it waits, in the buffer of its key
                                                     └─ DROP ──► suppressed
    outcome of a task, Tick, new options ──► firings of the queue that have room pass

A limiter is one file with two frozen Structs, as an operator is (operators/base.py), and one line
in catalog.py. Unlike an operator, it keeps its state when its options change: tasks that run are
counted on. So a state is stored under the limiter's name, and the options in force are stored once
for each rule (LimitsState). The queue of a key is the buffer of its state; each event in it holds
one firing (queue.py).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar, Generic, Self, TypeVar

from oncue.protocol.records import Stored
from oncue.rules.operators.base import OperatorFinding, OperatorState
from oncue.rules.operators.options import whole_number
from oncue.strict_yaml.document import Node, Problems, nearest

DROPPED = "dropped"  # reason of a refusal without a dead letter
FULL = ("dead", "drop")  # what becomes of a firing that finds a full queue
QUEUE = 10_000  # firings of a key that wait, unless the rule says less
MOST_QUEUE = 100_000
QUEUE_BYTES = 64 * 1024 * 1024  # of the firings of one key that wait


class Verdict(Enum):
    PASS = "pass"
    QUEUE = "queue"
    DROP = "drop"
    REPLACE = "replace"  # those that wait are dropped, and it waits


class LimiterState(OperatorState, frozen=True):
    """State of a limiter for one key."""

    at_ms: int = 0  # of the last record in it
    queued: int = 0  # firings that wait
    queued_bytes: int = 0
    entered: int = 0  # firings that have ever waited: the place of the next one in the queue

    def buffered(self) -> int:
        return self.queued


S = TypeVar("S", bound=LimiterState)


class Limiter(Stored, Generic[S], frozen=True):
    """One limit of a rule with its options. `S` is the Struct of its states."""

    key: str  # the template as written; "": all firings together
    queue: int = QUEUE
    full: str = "dead"

    STATE: ClassVar[type[LimiterState]]
    OPTIONS: ClassVar[tuple[str, ...]]  # keys of its mapping in the rule file, beside `key`
    EXAMPLE: ClassVar[str]
    # While it has no room, those that wait for later limiters wait too. It has no keys.
    PAUSES: ClassVar[bool] = False

    @classmethod
    def name(cls) -> str:
        return str(cls.__struct_config__.tag)

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        """Parse the limiter's mapping in a rule file, whose keys are checked."""
        raise NotImplementedError

    def counts_all(self) -> bool:
        """Return True if it needs all firings of a rule in one partition."""
        return True

    def admit(self, state: S, at_ms: int) -> Verdict:
        """Return what becomes of a firing that comes now."""
        raise NotImplementedError

    def has_room(self, state: S, at_ms: int) -> bool:
        """Return True if a firing of the queue may pass now."""
        raise NotImplementedError

    def enter(self, state: S, firing: bytes, at_ms: int) -> S:
        """Return the state with a firing that passes."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the limiter in words, as `oncue rules` shows it."""
        raise NotImplementedError

    def preview(self, state: S | None, key: str, at_ms: int) -> OperatorFinding:
        """Return what would become of a firing now, for `oncue rules explain`."""
        raise NotImplementedError

    def resumed(self, at_ms: int) -> Self:
        """Return the limiter of a rule that a person has resumed then."""
        return self

    def adapted(self, state: S) -> S:
        """Return the state with those options that it needs itself."""
        return state

    def waits(self, state: S, key: str, at_ms: int) -> str:
        """Return why the firings of a key wait, for `oncue rules show`."""
        raise NotImplementedError

    def by_key(self) -> str:
        return f" by {self.key}" if self.key else ""


AnyLimiter = Limiter[Any]


def key_text(limiter: AnyLimiter, key: str) -> str:
    """Return the key in words: by ${data.proposal} = cm123."""
    return f"{limiter.by_key()} = {key}" if limiter.key else ""


def one_of(node: Node | None, name: str, values: tuple[str, ...], problems: Problems) -> str:
    """Return one of these words, the first where the option is missing or wrong."""
    if node is None:
        return values[0]
    if node.value not in values:
        problems.add(node, f"{name} is one of {', '.join(values)}", nearest(str(node.value), values))
        return values[0]
    return str(node.value)


def parse_queue(name: str, node: Node, problems: Problems) -> tuple[int, str]:
    """Return `queue` and `full` of a limiter."""
    queue = whole_number(node.value.get("queue"), f"{name}.queue", MOST_QUEUE, problems) or QUEUE
    return queue, one_of(node.value.get("full"), f"{name}.full", FULL, problems)


class LimitsState(OperatorState, tag="limits", frozen=True):
    """Options of a rule's limiters, as of its last record in the partition."""

    limiters: tuple[bytes, ...] = ()
    label: str = ""
    version: int = 0


class PlaceState(OperatorState, tag="place", frozen=True):
    """Key under which a firing runs."""

    key: str = ""
    freed: bool = False

    def forget_ms(self) -> int:
        return 1 if self.freed else 0
