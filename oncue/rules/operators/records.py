"""Records of `oncue.matches`: matches of stateful rules, ticks, retries.

    engine ──Match──►┐
    engine ─TaskEnd─►├── oncue.matches ──► fold (limits.py) ──► ClosedWindow ──► tasks
    runner ──Tick ──►┤
    `oncue dead retry` of a batch ──ClosedWindow──►┘

A Match is self-contained. It carries the operators by value, so that a record that is read again
has the same effect although the rule was changed meanwhile. It holds only the event's values that
the function's arguments need.
"""

from __future__ import annotations

import msgspec

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import Stored


class KeyedOperator(Stored, frozen=True):
    """One operator of the rule, and the key of this event there."""

    operator: msgspec.Raw  # catalog.resolve() decodes it
    key: str


class BufferedEvent(Stored, frozen=True):
    """One event, as far as a firing needs it."""

    place: int  # offset of its match; -1 until the log has assigned one
    source: str
    id: str
    row: bytes  # msgpack of the list of values, in the order of `needs`
    size_bytes: int = 0  # Operator.measure
    mark_us: int = 0  # when its cause happened
    name: str = ""  # under which the operator waits for it (Operator.selector)
    depth: int = 0  # in a chain of events that caused one another
    limit_keys: dict[str, str] | None = None  # limiter -> key of its firing there; None: the rule had no limiter


class Match(Stored, tag="match", frozen=True):
    """An event that matched, and the operators that it goes through."""

    v: int
    rule: str
    label: str
    version: int  # of the deployment that matched: label@version
    at_ms: int  # when the event was accepted
    stages: tuple[KeyedOperator, ...]
    needs: tuple[str, ...]  # names of the values in the row: "data.path | stem" ...
    event: BufferedEvent
    expected: tuple[str, ...] = ()  # names of events that the operator is to wait for
    limiters: tuple[msgspec.Raw, ...] = ()  # limiters.catalog decodes them


class RuleLimits(Stored, frozen=True):
    """Limiters of a rule in a version of its deployment."""

    rule: str
    label: str
    version: int
    limiters: tuple[bytes, ...]


class Tick(Stored, tag="tick", frozen=True):
    """The time in a partition; due windows close.

    `retired`: (rule, operator_id) of operators that no rule has any more. Their windows close too.
    A limiter's id is its name.
    """

    v: int
    at_ms: int
    retired: tuple[tuple[str, str], ...] = ()
    limits: tuple[RuleLimits, ...] = ()  # in force, of rules with firings that wait


class TaskEnd(Stored, tag="task_end", frozen=True):
    """A task of a rule with limiters has its outcome, or a firing has made none."""

    v: int
    rule: str
    firing: bytes  # the beginning of its tasks' ids
    index: int  # of the task
    of: int  # tasks of the firing
    status: int  # of the task: OK, ERROR ...
    at_ms: int


class Waited(Stored, frozen=True):
    """Events that an operator waited for, when its window closed: names, or a number."""

    expected: tuple[str, ...] | int
    missing: tuple[str, ...] | int
    end: str = ""  # "": the rule fires; DEAD: a dead letter; DROP: the events are only counted; TELL: see there
    why: str = ""  # in words
    overdue_ms: int = 0  # the deadline that has passed, of which an event tells; 0: none has


DEAD, DROP = "dead", "drop"
TELL = "tell"  # only an event tells of the deadline: the firing has to pass limiters


class ClosedWindow(Stored, tag="closed", frozen=True):
    """One firing with its events.

    As a record: a firing that failed and is retried.
    """

    v: int
    rule: str
    label: str
    version: int  # under which its newest event matched
    key: str
    needs: tuple[str, ...]
    partition: int
    opening: int  # offset of its first match
    opened_ms: int
    why: str  # first, count, bytes, wait, full, changed
    events: tuple[BufferedEvent, ...]
    waited: Waited | None = None  # None: the operator waits for no certain events
    span_ms: tuple[int, ...] = ()  # start and end of a window in time
    limited: bool = False  # it counts as running, until its tasks have their outcomes
    refused: str = ""  # why a limiter did not let it wait


MatchesRecord = Match | Tick | TaskEnd | ClosedWindow

build_decoders(globals())
