"""ChangelogStates: states of one partition of `oncue.matches`, as a table.

Its changes are the records of a changelog, the same partition of `oncue.windows`. The table is any
mutable mapping of bytes: a dict, or a Faust table.

key                                    value
("p",)                                 Progress: next offset to apply, and the newest time
("c",)                                 PartitionClaim: the last owner, for people
("h",)                                 present: servers run the partition, not stream workers
("t",)                                 id of the topic `oncue.matches` that Progress counts in
("s", rule, spec, key)                 OperatorState
("i", rule, spec, key, event)          one buffered event

Indexes in memory hold the open windows and their due times.
"""

from __future__ import annotations

import heapq
import logging
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence

from oncue.errors import Undecodable
from oncue.log.base import Record, RecordBatch
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Stored
from oncue.rules.limiters.base import LimiterState
from oncue.rules.operators.base import OperatorState
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.operators.records import BufferedEvent
from oncue.rules.stateful.fold import AHEAD_MS, MARGIN_MS, StateKey, by_clock
from oncue.rules.stateful.pending_changes import PendingChanges
from oncue.rules.stateful.record_group import MOST_QUEUES, Progress, Queue, RecordGroup, WindowSummary

Key = tuple[str, ...]
Change = tuple[Key, bytes]  # empty: the key is deleted
PROGRESS, CLAIM, BY_SERVERS, TOPIC = ("p",), ("c",), ("h",), ("t",)
STATE, ITEM = "s", "i"
FORGET = 2_000  # in one step
_log = logging.getLogger(__name__)


class PartitionClaim(Stored, frozen=True):
    """A worker or server claimed the partition.

    After this record no former owner writes here.
    """

    v: int
    worker: str
    at_us: int


class ChangelogStates:
    def __init__(self, data: MutableMapping[bytes, bytes] | None = None) -> None:
        self._data: MutableMapping[bytes, bytes] = {} if data is None else data
        self.progress = Progress()
        self.started = False  # the partition was started or handed over
        self.by_servers = False  # servers run the partition, not stream workers
        self.topic = ""  # id of the topic that `progress` counts in; "" if it is not known
        self._open: set[StateKey] = set()  # states with buffered events
        self._due_ms: dict[StateKey, int] = {}  # of states that wait for a tick
        self._items: dict[StateKey, set[bytes]] = {}
        self._queues: dict[StateKey, list[tuple[int, bytes]]] = {}  # buffers that are taken from: by place
        self._due: list[tuple[int, StateKey]] = []  # heaps; outdated entries are skipped
        self._forget: list[tuple[int, StateKey]] = []
        for key, value in list(self._data.items()):
            self._index(decode(Key, key), key, value)

    # ------------------------------------------------------------ changes

    def apply_record(self, key: bytes, value: bytes) -> None:
        """Apply one record of the changelog; leave out one that is not of oncue.

        Raises Undecodable: the value of a state.
        """
        found = _key(key)
        if found is None:
            _log.warning("a record of oncue.windows is left out: its key is not of oncue: %.80r", key)
            return
        if value:
            self._data[key] = value
        else:
            self._data.pop(key, None)
        self._index(found, key, value)

    def _index(self, found: Key, key: bytes, value: bytes) -> None:
        kind, *parts = found
        if kind == STATE:
            self._index_state(StateKey(*parts), _state(value))
        elif kind == ITEM:
            where = StateKey(*parts[:3])
            if (queue := self._queues.get(where)) is not None:
                self._requeue(queue, key, bool(value))
            if value:
                self._items.setdefault(where, set()).add(key)
            elif where in self._items:
                self._items[where].discard(key)
        elif kind == PROGRESS[0]:
            self.started = bool(value)
            self.progress = Progress(*decode(tuple[int, int], value)) if value else Progress()
        elif kind == BY_SERVERS[0]:
            self.by_servers = bool(value)
        elif kind == TOPIC[0]:
            self.topic = decode(str, value) if value else ""

    def _index_state(self, where: StateKey, state: OperatorState | None) -> None:
        if state is None or not state.buffered():
            self._open.discard(where)
            self._queues.pop(where, None)
            if not self._items.get(where):
                self._items.pop(where, None)
        else:
            self._open.add(where)
        if state is not None and (due := state.due_ms()):
            self._due_ms[where] = due
            heapq.heappush(self._due, (due, where))
        else:
            self._due_ms.pop(where, None)
        if state is not None and (at := state.forget_ms()):
            heapq.heappush(self._forget, (at, where))

    def forgotten(self, newest_ms: int) -> list[Change]:
        """Return deletions of states without effect, at most FORGET."""
        deleted: dict[StateKey, int] = {}
        while self._forget and self._forget[0][0] < newest_ms - MARGIN_MS and len(deleted) < FORGET:
            at, where = heapq.heappop(self._forget)
            state = self.state(where)
            if state is not None and state.forget_ms() == at:
                deleted[where] = at
        for where, at in deleted.items():  # until the deletion is applied
            heapq.heappush(self._forget, (at, where))
        return [((STATE, *where), b"") for where in deleted]

    def follow_clock(self, now_ms: int) -> int:
        """Move states from the future to now; return their number. See SqliteStates."""
        if self.progress.newest_ms <= now_ms + AHEAD_MS:
            return 0
        self.progress = Progress(self.progress.next, now_ms)
        moved: list[Change] = []
        for raw, value in self._data.items():
            key = decode(Key, raw)
            state = by_clock(CATALOGUE.decode_state(value), now_ms) if key[0] == STATE and value else None
            if state is not None:
                moved.append((key, encode(state)))
        self.apply(moved)
        return len(moved)

    # ------------------------------------------------------------ queries

    def state(self, where: StateKey) -> OperatorState | None:
        return _state(self._data.get(encode((STATE, *where))))

    def has(self, where: StateKey, event: str) -> bool:
        return encode((ITEM, *where, event)) in self._data

    def buffered(self, where: StateKey) -> list[BufferedEvent]:
        found = [decode(BufferedEvent, self._data[key]) for key in self._items.get(where, ())]
        return sorted(found, key=lambda event: event.place)

    def oldest(self, where: StateKey, after: int) -> BufferedEvent | None:
        """Return the oldest buffered event behind so many."""
        queue = self._queues.get(where)
        if queue is None:
            queue = self._queues[where] = sorted(self._place(key) for key in self._items.get(where, ()))
        return decode(BufferedEvent, self._data[queue[after][1]]) if len(queue) > after else None

    def _requeue(self, queue: list[tuple[int, bytes]], key: bytes, present: bool) -> None:
        """Add a buffered event to a queue, or remove it: it is the first."""
        if present:
            insort(queue, self._place(key))
        elif (at := next((n for n, (_, other) in enumerate(queue) if other == key), None)) is not None:
            del queue[at]

    def _place(self, key: bytes) -> tuple[int, bytes]:
        return decode(BufferedEvent, self._data[key]).place, key

    def item_keys(self, where: StateKey) -> Iterator[Key]:
        return (decode(Key, key) for key in self._items.get(where, ()))

    def due(self, at_ms: int, before: int, most: int) -> list[tuple[int, StateKey]]:
        found: dict[tuple[int, StateKey], None] = {}
        examined: list[tuple[int, StateKey]] = []
        while self._due and self._due[0][0] <= at_ms and len(found) < most:
            due, where = heapq.heappop(self._due)
            if self._due_ms.get(where) == due and (due, where) not in found:
                examined.append((due, where))
                state = self.state(where)
                if state is not None and state.applied < before:
                    found[due, where] = None
        for item in dict.fromkeys(examined):
            heapq.heappush(self._due, item)
        return list(found)

    def next_due_ms(self) -> int:
        while self._due and self._due_ms.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else 0

    def open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        found = sorted(where for where in self._open if where[:2] == (rule, spec))
        return [w for w in found if (s := self.state(w)) is not None and s.applied < before][:most]

    def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]:
        """Return the first queues of a rule's limiters."""
        wheres = [sorted(w for w in self._open if w[:2] == (rule, name))[:MOST_QUEUES] for name in limiters]
        states = [(where, self.state(where)) for part in wheres for where in part]
        return [(where, state) for where, state in states if isinstance(state, LimiterState)]

    def open_windows(self) -> Iterable[StateKey]:
        return self._open

    def open_specs(self) -> set[tuple[str, str]]:
        return {where[:2] for where in self._open}

    def summary(self) -> dict[str, WindowSummary]:
        """Return rule -> summary, of rules with open windows."""
        found: dict[str, WindowSummary] = {}
        for where in self._open:
            windows, events, next_due = found.get(where.rule, WindowSummary(0, 0, 0))
            next_due = min(filter(None, (next_due, self._due_ms.get(where, 0))), default=0)
            found[where.rule] = WindowSummary(windows + 1, events + len(self._items.get(where, ())), next_due)
        return found

    def entries(self) -> Iterator[Change]:
        return ((decode(Key, key), value) for key, value in self._data.items())

    def __len__(self) -> int:
        return len(self._data)

    # ------------------------------------------------------------ a group

    def fold(self, batches: Iterable[RecordBatch]) -> tuple[RecordGroup, list[Change]]:
        """Fold batches of this partition; return the group and its changes.

        The table is unchanged: firings and changes have to be durable first (see `apply`).
        """
        group, states = RecordGroup(), ChangelogChanges(self)
        part = -1
        for batch in batches:
            part = batch.partition
            group.add(batch, states, self.progress)
        place = group.next[part]
        return group, [*self.forgotten(place.newest_ms), *states.changes(), (PROGRESS, encode(tuple(place)))]

    def apply(self, changes: Iterable[Change]) -> None:
        for key, value in changes:
            self.apply_record(encode(key), value)


class ChangelogChanges(PendingChanges):
    def __init__(self, table: ChangelogStates) -> None:
        super().__init__()
        self._table = table

    def stored(self, where: StateKey) -> OperatorState | None:
        return self._table.state(where)

    def stored_event(self, where: StateKey, event: str) -> bool:
        return self._table.has(where, event)

    def stored_buffer(self, where: StateKey) -> list[BufferedEvent]:
        return self._table.buffered(where)

    def stored_oldest(self, where: StateKey, after: int) -> BufferedEvent | None:
        return self._table.oldest(where, after)

    def stored_due(self, at_ms: int, before: int, most: int) -> list[tuple[int, StateKey]]:
        return self._table.due(at_ms, before, most)

    def stored_open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        return self._table.open(rule, spec, before, most)

    def changes(self) -> Iterator[Change]:
        """Return the changes, events before the states that count them."""
        for where in self.released:
            again = self.fresh.get(where, {})
            yield from ((key, b"") for key in self._table.item_keys(where) if key[-1] not in again)
        for where, taken in self.taken.items():
            yield from (((ITEM, *where, event), b"") for event in taken)
        for where, events in self.fresh.items():
            yield from (((ITEM, *where, event), encode(buffered_event)) for event, buffered_event in events.items())
        yield from (((STATE, *where), encode(state)) for where, state in self.changed.items())


def _key(raw: bytes) -> Key | None:
    """Return the key; None if it is not of oncue."""
    try:
        key = decode(Key, raw)
    except Undecodable:
        return None
    return key if key and len(key) == {STATE: 4, ITEM: 5}.get(key[0], len(key)) else None


def _state(value: bytes | None) -> OperatorState | None:
    return CATALOGUE.decode_state(value) if value else None


def records(changes: Iterable[Change]) -> list[Record]:
    """Return the changes as records of the changelog."""
    return [Record(value, encode(key)) for key, value in changes]


def states_in(
    changelog: Mapping[bytes, bytes], wheres: Iterable[StateKey], event: str
) -> list[tuple[OperatorState | None, bool]]:
    """Return (state, True if its buffer has the event) of each key.

    `changelog`: the newest records by key.
    """
    found: list[tuple[OperatorState | None, bool]] = []
    for where in wheres:
        state = _state(changelog.get(encode((STATE, *where))))
        found.append((state, bool(changelog.get(encode((ITEM, *where, event))))))
    return found


def wanted_keys(wheres: Iterable[StateKey], event: str) -> set[bytes]:
    """Return the changelog keys that `states_in` reads."""
    return {key for where in wheres for key in (encode((STATE, *where)), encode((ITEM, *where, event)))}
