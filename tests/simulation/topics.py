"""A log that several servers share: ordered partitions, and the fold of their entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from oncue import task_lifecycle
from oncue.protocol.codec import decode
from oncue.protocol.records import Ended, ResultFrame, TaskFrame
from oncue.task_lifecycle import TaskState

RESULTS = "results"


class Claimed(msgspec.Struct, frozen=True):
    server: str


class Fenced(msgspec.Struct, frozen=True):
    epochs: tuple[tuple[str, int], ...]


class CancelRequested(msgspec.Struct, frozen=True):
    """A request to cancel tasks."""

    ids: tuple[bytes, ...]
    at_us: int


Entry = TaskFrame | bytes | Claimed | Fenced | CancelRequested  # bytes: a ResultFrame


class Written(msgspec.Struct, frozen=True):
    entry: Entry
    by: str


def tasks_of(endpoint: str) -> str:
    return "tasks." + endpoint


def control_of(endpoint: str) -> str:
    return "control." + endpoint


class Topics:
    def __init__(self) -> None:
        self.partitions: dict[str, list[Written]] = defaultdict(list)
        self.blobs: dict[str, bytes] = {}
        self.functions: dict[str, bytes] = {}
        self.announces_servers = True  # agents get the list of servers

    def ends(self, names: Iterable[str]) -> dict[str, int]:
        return {name: len(self.partitions[name]) for name in names}


class Fold:
    """State of a reader that has read each partition up to an offset."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self.reached: dict[str, int] = defaultdict(int)
        self.states: dict[bytes, TaskState] = {}
        self.place: dict[bytes, str] = {}
        self.seq: dict[bytes, int] = {}
        self.claims: dict[str, tuple[int, str]] = {}  # endpoint -> (epoch, server)
        self._fences: dict[str, int] = {}

    def apply(self, partition: str, upto: int) -> list[tuple[int, Written]]:
        """Apply and return the next entries, up to an offset."""
        begin = self.reached[partition]
        fresh = list(enumerate(self._topics.partitions[partition][begin:upto], begin))
        for offset, written in fresh:
            self._one(partition, offset, written.entry)
        self.reached[partition] = begin + len(fresh)
        return fresh

    def apply_all(self) -> Fold:
        for name in sorted(self._topics.partitions):
            self.apply(name, len(self._topics.partitions[name]))
        return self

    def servers(self) -> tuple[tuple[str, str], ...]:
        """Return the servers that own endpoints, as channels announce them."""
        if not self._topics.announces_servers:
            return ()
        return tuple(sorted({(server, server) for _, server in self.claims.values()}))

    def has(self, ends: dict[str, int]) -> bool:
        return all(self.reached[name] >= end for name, end in ends.items())

    def _one(self, partition: str, offset: int, entry: Entry) -> None:
        if isinstance(entry, TaskFrame):
            for i, t in enumerate(entry.tasks):
                self.place.setdefault(t.id, entry.call.endpoint)
                self.seq.setdefault(t.id, (offset << 16) + i)
                self.states[t.id] = task_lifecycle.accept(self.states.get(t.id), entry.call, t, entry.accepted_us)
        elif isinstance(entry, bytes):
            frame = decode(ResultFrame, entry)
            if frame.epoch and frame.epoch < self._fences.get(frame.call.endpoint, 0):
                return
            for e in frame.ended:
                self.states[e.id] = task_lifecycle.end(self.states.get(e.id), frame.call, frame.accepted_us, e)
        elif isinstance(entry, Claimed):
            self.claims[partition.partition(".")[2]] = (offset + 1, entry.server)
        elif isinstance(entry, Fenced):
            for endpoint, epoch in entry.epochs:
                self._fences[endpoint] = max(epoch, self._fences.get(endpoint, 0))
        else:
            for task_id in entry.ids:
                self.states[task_id] = task_lifecycle.cancel(self.states.get(task_id), task_id, entry.at_us, "me")

    def closing(self, task_id: bytes) -> Ended | None:
        """The end that counts, as it was recorded."""
        state = self.states.get(task_id)
        a = state.closing if state is not None else None
        if a is None:
            return None
        return Ended(task_id, a.n, a.status, a.started_us, a.ended_us, a.value, a.output)

    def open_of(self, endpoint: str) -> list[TaskState]:
        found = [s for i, s in self.states.items() if self.place.get(i) == endpoint and s.known and not s.state.closed]
        return sorted(found, key=lambda s: self.seq[s.id])
