"""join: waits for all of certain events of a key, and fires for them together.

It waits for a number of events, for those of a list of names, or for one of each pattern. The time
to the deadline begins with the first of them. What then has not come is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import msgspec

from oncue.ids import DIGEST_BYTES, event_digest
from oncue.quantities import duration_text
from oncue.rules.matching.template import Refer, Template, compile_args
from oncue.rules.operators.base import BUFFER, Close, Effect, Fire, Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.batch import WINDOW_BYTES, stored_bytes
from oncue.rules.operators.options import about, duration, require, whole_number
from oncue.rules.operators.patterns import named_patterns, pattern_hash
from oncue.rules.operators.records import DEAD, DROP, Match, Waited
from oncue.rules.operators.selection import MOST_NAMES, Parsers, Selector, ValueSelector
from oncue.strict_yaml.document import Node, Problems, nearest

FIRE = "fire"
ENDS = (FIRE, DEAD, DROP)
SHOWN = 20  # names in a text


class JoinState(OperatorState, tag="join", frozen=True):
    """The events of a key that have come.

    Once the join has ended, what is still known of them.
    """

    deadline_ms: int = 0  # how long it waits
    then: str = DEAD
    count: int = 0  # of events to wait for; 0: `expected` names them
    expected: tuple[str, ...] = ()  # names; (): not told yet
    until: int = 0  # the deadline; once it has ended, when it is forgotten
    first: Fire | None = None  # None: it has ended
    names: tuple[str, ...] = ()  # of the events that have come
    came: int = 0  # events
    nbytes: int = 0
    marks: bytes = b""  # of the events that have come
    before: bytes = b""  # of the events of the former join of the key
    late: tuple[str, ...] = ()  # names that had not come at its end

    def due_ms(self) -> int:
        return self.until if self.first else 0

    def forget_ms(self) -> int:
        return 0 if self.first else self.until or 1

    def buffered(self) -> int:
        return self.came if self.first else 0

    def since_ms(self) -> int:
        return self.until - self.deadline_ms

    def moved(self, by_ms: int) -> Self:
        first = self.first and self.first.moved(by_ms)
        return msgspec.structs.replace(self, until=self.until + by_ms, first=first)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if self.first is None:
            return None
        state, close = self.ended(at_ms, offset, "deadline" if reason == "wait" else reason)
        return Step(state, (close,))

    @property
    def missing(self) -> tuple[str, ...] | int:
        """Return the names that have not come, or the number of events."""
        if self.count:
            return max(0, self.count - self.came)
        came = set(self.names)
        return tuple(name for name in self.expected if name not in came)

    @property
    def is_complete(self) -> bool:
        return not self.missing and bool(self.count or self.expected)

    @property
    def has_some(self) -> bool:
        """Return True if one of the expected events has come."""
        return self.came > 0 and (not self.expected or not set(self.names).isdisjoint(self.expected))

    def has(self, mark: bytes) -> bool:
        """Return True if this event came before, in this join or the former one."""
        return _has(self.marks, mark) or _has(self.before, mark)

    def progress(self) -> str:
        """Return in words what has come and what has not."""
        if not self.count and not self.expected:
            return f"{self.came:,} have come, and no event has told the list"
        missing = self.missing
        if isinstance(missing, int):
            return f"{self.came:,} of {self.count:,}" + (f": {missing:,} missing" if missing else "")
        text = f"{len(self.expected) - len(missing):,} of {len(self.expected):,}"
        return f"{text}: missing {listed(missing)}" if missing else text

    def ended(self, at_ms: int, offset: int, reason: str) -> tuple[JoinState, Close]:
        """End the wait: `complete`, `deadline`, `full` or `changed`."""
        assert self.first is not None
        missing, complete = self.missing, reason == "complete"
        end = "" if complete or (self.then == FIRE and self.has_some) else DROP if self.then == DROP else DEAD
        end = DEAD if reason == "full" else end
        why = "" if complete else f"join: {self.progress()} {_when(reason, self.deadline_ms)}"
        waited = Waited(
            self.count or self.expected, missing, end, why, overdue_ms=self.until if reason == "deadline" else 0
        )
        state = JoinState(
            offset,
            self.deadline_ms,
            until=at_ms + self.deadline_ms,
            before=self.marks,
            late=missing if isinstance(missing, tuple) else (),
        )
        return state, Close(self.first._replace(reason=reason), waited, self.expected)


def _when(reason: str, deadline_ms: int) -> str:
    return {
        "deadline": f"within {duration_text(deadline_ms)}",
        "full": f"when it was full: it holds {MOST_NAMES:,} events with values of 1 MB for `args`",
        "changed": "when the rule was changed",
    }.get(reason, "")


def _has(marks: bytes, mark: bytes) -> bool:
    at = marks.find(mark)
    while at >= 0 and at % DIGEST_BYTES:
        at = marks.find(mark, at + 1)
    return at >= 0


def listed(names: tuple[str, ...]) -> str:
    """Return names in words, the first of many."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class JoinOperator(Operator[JoinState], tag="join", frozen=True):
    deadline_ms: int
    then: str = DEAD
    count: int = 0  # 0: names
    by: str = ""  # the template of the name, as written
    list: str = ""  # the template of the list, as written
    names: tuple[str, ...] = ()  # of `all`
    patterns: str = ""  # hash of `all`: others begin anew

    STATE = JoinState
    OPTIONS = ("all", "count", "list", "by", "deadline", "then")
    EXAMPLE = '{key: "${data.scan}", count: 3, deadline: 10m}'
    BUFFERS = True
    FIRES_MANY = True
    WAITS = True

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        get = node.value.get
        given = [option for option in ("all", "count", "list") if option in node.value]
        if len(given) > 1:
            what = "`join` waits for `all` patterns, for a `count` or for a `list`"
            problems.add(node.at_key(given[1]), what, "leave the others out")
        elif not given:
            problems.add(node, "`join` lacks what it waits for: `all`, `count` or `list`", f"join: {cls.EXAMPLE}")
        if "all" in node.value and "by" in node.value:
            problems.add(node.at_key("by"), "`join.by` is for `count` and `list`", "the names are those of `all`")
        if "list" in node.value and "by" not in node.value:
            problems.add(node, "`join.list` needs `by`", 'the name of an event in the list: by: "${data.name}"')
        require(node, "join", cls.EXAMPLE, ("deadline",), problems)
        then = get("then")
        if then is not None and then.value not in ENDS:
            problems.add(then, f"join.then is {then.value!r}", nearest(str(then.value), ENDS))
        by, names, patterns = get("by"), get("list"), get("all")
        return cls(
            key,
            duration(get("deadline"), "join.deadline", problems),
            DEAD if then is None else str(then.value),
            whole_number(get("count"), "join.count", MOST_NAMES, problems),
            "" if by is None else str(by.plain()),
            "" if names is None else names.value if isinstance(names.value, str) else _names(names.plain()),
            tuple(patterns.value) if patterns is not None and isinstance(patterns.value, dict) else (),
            pattern_hash(patterns),
        )

    @classmethod
    def selector(cls, node: Node, problems: Problems, parsers: Parsers) -> Selector | None:
        if "all" in node.value:
            return named_patterns(node.value["all"], "join.all", problems, parsers)
        by, expected = (_template(node, option, problems, parsers.refer) for option in ("by", "list"))
        return ValueSelector("join", by, expected) if by or expected else None

    def step(self, state: JoinState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        now, effects = state, list[Effect]()
        if now is not None and match.at_ms >= now.until:
            if now.first is not None:
                now, close = now.ended(now.until, offset, "deadline")
                effects.append(close)
            now = now if match.at_ms < now.until else None
        mark = event_digest(match.event.source, match.event.id)
        now = now or JoinState(offset)
        if now.has(mark) or (now.first is None and match.event.name in now.late):
            return Step(msgspec.structs.replace(now, applied=offset), tuple(effects), suppressed=True)
        now = self._opened(now, match, offset)
        expected = now.expected or match.expected or self.names
        if not self._is_named or self._takes(match.event.name, now, expected):
            arrived = 0 if self._only_tells(match) else 1
            nbytes = now.nbytes + (stored_bytes(match.event) if arrived else 0)
            names = (*now.names, match.event.name) if self._is_named and arrived else now.names
            came, marks = now.came + arrived, now.marks + mark
            now = msgspec.structs.replace(
                now, names=names, came=came, nbytes=nbytes, marks=marks, expected=expected,
                first=now.first and now.first._replace(label=match.label, version=match.version),
            )  # fmt: skip
            effects += [BUFFER] if arrived else []
            reason = "complete" if now.is_complete else "full" if self._is_full(now) else ""
            if reason:
                now, close = now.ended(match.at_ms, offset, reason)
                effects.append(close)
            return Step(now, tuple(effects))
        return Step(now, tuple(effects), suppressed=True)

    @property
    def _is_named(self) -> bool:
        return bool(self.by or self.names)

    def _opened(self, now: JoinState, match: Match, offset: int) -> JoinState:
        """Return the open join of the key; a new one still knows the events of the former."""
        if now.first is not None:
            return msgspec.structs.replace(now, applied=offset)
        first = Fire.of("deadline", match, offset)
        return JoinState(
            offset, self.deadline_ms, self.then, self.count, (), match.at_ms + self.deadline_ms, first,
            before=now.before,
        )  # fmt: skip

    def _only_tells(self, match: Match) -> bool:
        """Return True if the event only carries the list."""
        return bool(self.by) and not match.event.name

    def _takes(self, name: str, now: JoinState, expected: tuple[str, ...]) -> bool:
        """Return True if the event is waited for, or is the first to tell the list."""
        if not name:
            return not now.expected
        return name not in now.names and (not expected or name in expected)

    def _is_full(self, now: JoinState) -> bool:
        return now.nbytes > WINDOW_BYTES or now.came >= MOST_NAMES

    def waited(self, name: str, expected: tuple[str, ...]) -> Waited:
        if self.count:
            return Waited(self.count, self.count - 1)
        names = expected or self.names
        return Waited(names, tuple(other for other in names if other != name))

    def describe(self) -> str:
        return f"join{self.by_key()} of {self._wanted()}"

    def _wanted(self) -> str:
        what = listed(self.names) if self.names else f"the events in {self.list}"
        what = f"{self.count:,} events" if self.count else what
        by = f" by {self.by}" if self.by else ""
        return f"{what}{by} within {duration_text(self.deadline_ms)}, else {self.then}"

    def preview(self, state: JoinState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        wanted, step = self._wanted(), self.step(state, match, (state.applied if state else 0) + 1, lambda: known)
        assert isinstance(step.state, JoinState)
        if step.suppressed:
            found = "the event, or one of its name, has come already, or its name is not waited for"
            return OperatorFinding(False, f"{found}{_now(state, match.at_ms)}", wanted)
        if step.state.first is None:
            return OperatorFinding(True, "it is the last that lacks", wanted, "it makes the rule fire")
        found = step.state.progress()
        rest = about(step.state.until - match.at_ms)
        return OperatorFinding(True, found, wanted, f"with it there are {found}; the deadline is in {rest}")


def _now(state: JoinState | None, at_ms: int) -> str:
    if state is None or state.first is None:
        return ""
    return f"; {state.progress()}, the deadline is in {about(state.until - at_ms)}"


def _names(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _template(parent: Node, option: str, problems: Problems, refer: Refer) -> Template | None:
    node, place = parent.value.get(option), f"join.{option}"
    if node is None:
        return None
    if not isinstance(node.value, str | list) or not node.value:
        problems.add(node, f"{place} is a text with ${{...}}, not {node.kind()}", f'{place}: "${{data.name}}"')
        return None
    return compile_args(node, problems, place, refer)
