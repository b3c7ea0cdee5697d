"""What a group of records changes in the states of one partition, over what is stored: nothing is written before what fires
is durable. The hosts say what is stored, and write the changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import blake2b

from oncue.rules.operators.records import BufferedEvent
from oncue.rules.stateful.fold import DedupeState, State, StateKey, due_ms, held


class PendingChanges(ABC):
    """`States` of fold.py."""

    def __init__(self) -> None:
        self.changed: dict[StateKey, State] = {}
        self.released: set[StateKey] = set()  # what was stored of their events is held no longer
        self.fresh: dict[StateKey, dict[str, BufferedEvent]] = {}  # event_key -> what is held of it
        self._suppressed: dict[str, int] = {}

    # ------------------------------------------------------------ what is stored

    @abstractmethod
    def stored(self, where: StateKey) -> State | None: ...

    @abstractmethod
    def stored_event(self, where: StateKey, event: str) -> bool:
        """Whether the open window has this event (event_key)."""

    @abstractmethod
    def stored_held(self, where: StateKey) -> list[BufferedEvent]:
        """In the order of their places."""

    @abstractmethod
    def stored_due(self, at_ms: int, before: int, most: int) -> list[tuple[int, StateKey]]:
        """The first open windows by (due_ms, where) with 0 < due_ms <= at_ms and applied < before."""

    @abstractmethod
    def stored_open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        """The first open windows of a rule's operator, by key, with applied < before."""

    # ------------------------------------------------------------ States

    def get(self, where: StateKey) -> State | None:
        return self.changed[where] if where in self.changed else self.stored(where)

    def put(self, where: StateKey, state: State) -> None:
        before = self.get(where)
        if isinstance(state, DedupeState) and state.suppressed:
            more = state.suppressed - (before.suppressed if isinstance(before, DedupeState) else 0)
            self._suppressed[where.rule] = self._suppressed.get(where.rule, 0) + more
        self.changed[where] = state

    def holds(self, where: StateKey, source: str, id: str) -> bool:
        event = event_key(source, id)
        if event in self.fresh.get(where, ()):
            return True
        return where not in self.released and self.stored_event(where, event)

    def hold(self, where: StateKey, held: BufferedEvent) -> None:
        self.fresh.setdefault(where, {})[event_key(held.source, held.id)] = held

    def release(self, where: StateKey) -> list[BufferedEvent]:
        found: list[BufferedEvent] = []
        if where not in self.released:
            found = self.stored_held(where)
            self.released.add(where)
        return found + sorted(self.fresh.pop(where, {}).values(), key=lambda h: h.place)

    def due(self, at_ms: int, before: int, most: int) -> list[StateKey]:
        stored = self.stored_due(at_ms, before, most + len(self.changed))
        found = [(due, where) for due, where in stored if where not in self.changed]
        found += [(d, w) for w, s in self.changed.items() if 0 < (d := due_ms(s)) <= at_ms and s.applied < before]
        return [where for _, where in sorted(found)[:most]]

    def open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        stored = self.stored_open(rule, spec, before, most + len(self.changed))
        found = [where for where in stored if where not in self.changed]
        found += [w for w, s in self.changed.items() if w[:2] == (rule, spec) and held(s) and s.applied < before]
        return sorted(found)[:most]

    # ------------------------------------------------------------ the end of a group

    def take_suppressed(self) -> dict[str, int]:
        """Rule -> events that were doubles, since it was asked last."""
        taken, self._suppressed = self._suppressed, {}
        return taken

    def opened(self) -> Iterator[StateKey]:
        """Windows that are open and have new events."""
        return (where for where, state in self.changed.items() if held(state))


def event_key(source: str, id: str) -> str:
    return blake2b(f"{source}\0{id}".encode(), digest_size=16).hexdigest()
