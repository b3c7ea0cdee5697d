"""PendingChanges: uncommitted changes of one partition's states.

They lie over a state store. Nothing is written before the firings are durable. Subclasses read the
store and write the changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import blake2b
from itertools import takewhile

from oncue.rules.operators.base import OperatorState
from oncue.rules.operators.records import BufferedEvent
from oncue.rules.stateful.fold import StateKey


class PendingChanges(ABC):
    """Implements `States` of fold.py."""

    def __init__(self) -> None:
        self.changed: dict[StateKey, OperatorState] = {}
        self.released: set[StateKey] = set()  # their stored events are to be deleted
        self.taken: dict[StateKey, dict[str, None]] = {}  # oldest stored events that are to be deleted
        self.fresh: dict[StateKey, dict[str, BufferedEvent]] = {}  # event_key -> event to be stored
        self._suppressed: dict[str, int] = {}

    # ------------------------------------------------------------ the state store

    @abstractmethod
    def stored(self, where: StateKey) -> OperatorState | None: ...

    @abstractmethod
    def stored_event(self, where: StateKey, event: str) -> bool:
        """Return True if the stored buffer has this event (event_key)."""

    @abstractmethod
    def stored_buffer(self, where: StateKey) -> list[BufferedEvent]:
        """Return the stored buffer in the order of places."""

    @abstractmethod
    def stored_oldest(self, where: StateKey, after: int) -> BufferedEvent | None:
        """Return the oldest event of the stored buffer behind so many."""

    @abstractmethod
    def stored_due(self, at_ms: int, before: int, most: int) -> list[tuple[int, StateKey]]:
        """Return stored states with 0 < due_ms <= at_ms and applied < before.

        The first `most` by (due_ms, key).
        """

    @abstractmethod
    def stored_open(self, rule: str, operator: str, before: int, most: int) -> list[StateKey]:
        """Return stored open windows of a rule's operator.

        The first `most` by key, with applied < before.
        """

    # ------------------------------------------------------------ States

    def get(self, where: StateKey) -> OperatorState | None:
        return self.changed[where] if where in self.changed else self.stored(where)

    def set_state(self, where: StateKey, state: OperatorState) -> None:
        self.changed[where] = state

    def count_suppressed(self, rule: str) -> None:
        self._suppressed[rule] = self._suppressed.get(rule, 0) + 1

    def is_buffered(self, where: StateKey, source: str, id: str) -> bool:
        event = event_key(source, id)
        if event in self.fresh.get(where, ()):
            return True
        if where in self.released or event in self.taken.get(where, ()):
            return False
        return self.stored_event(where, event)

    def buffer(self, where: StateKey, event: BufferedEvent) -> None:
        self.fresh.setdefault(where, {})[event_key(event.source, event.id)] = event

    def release(self, where: StateKey) -> list[BufferedEvent]:
        found: list[BufferedEvent] = []
        if where not in self.released:
            found = self.stored_buffer(where)[len(self.taken.pop(where, ())) :]
            self.released.add(where)
        return found + sorted(self.fresh.pop(where, {}).values(), key=lambda event: event.place)

    def take(self, where: StateKey) -> BufferedEvent | None:
        taken = self.taken.setdefault(where, {})
        oldest = None if where in self.released else self.stored_oldest(where, len(taken))
        if oldest is not None:
            taken[event_key(oldest.source, oldest.id)] = None
            return oldest
        fresh = self.fresh.get(where)
        if not fresh:
            return None
        place = next(iter(fresh.values())).place
        return fresh.pop(min(key for key, _ in takewhile(lambda item: item[1].place == place, fresh.items())))

    def drop(self, where: StateKey, before: int) -> None:
        for event in self.release(where):
            if event.place >= before:
                self.buffer(where, event)

    def due(self, at_ms: int, before: int, most: int) -> list[StateKey]:
        stored = self.stored_due(at_ms, before, most + len(self.changed))
        found = [(due, where) for due, where in stored if where not in self.changed]
        found += [(d, w) for w, s in self.changed.items() if 0 < (d := s.due_ms()) <= at_ms and s.applied < before]
        return [where for _, where in sorted(found)[:most]]

    def open(self, rule: str, operator: str, before: int, most: int) -> list[StateKey]:
        stored = self.stored_open(rule, operator, before, most + len(self.changed))
        found = [where for where in stored if where not in self.changed]
        found += [
            w for w, s in self.changed.items() if w[:2] == (rule, operator) and s.buffered() and s.applied < before
        ]
        return sorted(found)[:most]

    # ------------------------------------------------------------ the end of a group

    def drain_suppressed(self) -> dict[str, int]:
        """Return rule -> suppressed events since the last call."""
        drained, self._suppressed = self._suppressed, {}
        return drained

    def opened(self) -> Iterator[StateKey]:
        """Return the open windows that have new events."""
        return (where for where, state in self.changed.items() if state.buffered())


def event_key(source: str, id: str) -> str:
    return blake2b(f"{source}\0{id}".encode(), digest_size=16).hexdigest()
