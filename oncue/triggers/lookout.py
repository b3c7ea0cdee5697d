"""The thread of a file trigger. It alone owns watch, ledger and waiting files, so nothing here needs a lock.

    watch ──notices──► noticed ──► ready? ──► changed since the ledger? ──► pending in the ledger ──► publish(Batch)
    walk  ──found────►    ▲           └─ not yet: settling ─┘ (due)                                       │
                                                          ledger.done ◄── done(batch), from the loop ◄── emit

All that is noticed while a batch is on its way goes into the next one. When the process dies anywhere here, the walk at
the next start finds what is not in the ledger, and pending batches are published again as they were.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from oncue import ids
from oncue.errors import OncueError
from oncue.messages import Event
from oncue.triggers.baseline import Baseline
from oncue.triggers.diary import Diary
from oncue.triggers.file_event import EventMaker
from oncue.triggers.file_options import Spec
from oncue.triggers.ledger import FIRED, KNOWN, PASSED, Found, Ledger, Pending, Row
from oncue.triggers.settle import Key, Print, fingerprint
from oncue.triggers.sieve import Noticed, Sieve
from oncue.triggers.walk import NOT_UTF8, Walk, is_utf8
from oncue.triggers.watch import (
    CLOSED,
    CREATED,
    ENTERED,
    FOUND,
    HINT,
    LOST,
    OVERFLOW,
    RENAMED,
    Notice,
    Watch,
    network_mount,
    open_watch,
)

BATCH = 1_000  # files in one batch
ON_THEIR_WAY = 4  # batches
LINGER_S = 0.002  # between small batches, while one is on its way
MOST_NOTICED = 200_000  # files remembered as noticed; beyond, a walk finds them
WALK_ROOM = 4 * BATCH  # a walk pauses while so many wait
CHECK_S = 1.0  # how often the watched folder itself is looked at
WALK_STEP_S = 0.02  # at once
MOST_TOLD = 10_000
LINK_S = 0.2  # how long after its creation a file that nobody closed is looked at: a link?
RESCAN_S, RESCAN_NETWORK_S, RESCAN_UNWATCHED_S = 300.0, 10.0, 30.0
RESCAN_SHARE = 50  # a walk takes at most one part in so many of the time
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


log = logging.getLogger(__name__)


class Batch(NamedTuple):
    number: int
    events: Sequence[Event]


class _Gone(OSError):
    """The watched folder went away."""


class Lookout:
    def __init__(self, name: str, spec: Spec, file: Path, diary: Diary, publish: Callable[[Batch], None]) -> None:
        """`publish` is called in the thread with each batch; `done` answers it."""
        self._spec, self._file, self._diary, self._publish = spec, file, diary, publish
        self._make = EventMaker(name, spec).make
        self._root = os.fspath(spec.root)
        self._noticed: dict[Key, Noticed] = {}
        self._created: dict[Key, float] = {}
        self._sieve = Sieve(spec, diary)
        self._on_way: dict[int, Pending] = {}
        self._finished: deque[tuple[int, frozenset[int]]] = deque()
        self._walks: deque[tuple[Walk, Iterator[None], float]] = deque()
        self._next_batch = 1
        self._next_walk = self._next_check = self._sent = 0.0
        self._lost_notices = False
        self._was_there: list[Row] = []  # met by the walk's step, not yet in the ledger
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._waker = threading.Event()
        self._watch: Watch | None = None
        self._ledger: Ledger
        self._baseline: Baseline
        self._identity = (0, 0)
        self._failures = 0

    # ------------------------------------------------------------ called from elsewhere

    def done(self, batch: int, refused: frozenset[int] = frozenset()) -> None:
        """The batch is durable (but for the events at these indexes, which nobody will take)."""
        self._finished.append((batch, refused))
        self._wake()

    def stop(self) -> None:
        self._stop.set()
        self._wake()

    def run(self) -> None:
        """The thread's body: until `stop`."""
        while not self._stop.is_set():
            try:
                self._ledger = Ledger(self._file)
                try:
                    self._with_ledger()
                finally:
                    self._ledger.close()
            except (OncueError, OSError, sqlite3.Error) as e:
                self._fail(e)
            except Exception as e:
                if self._stop.is_set():  # the loop is closed
                    return
                log.exception("the lookout of %s", self._root)
                self._fail(e)

    # ------------------------------------------------------------ sessions

    def _with_ledger(self) -> None:
        self._baseline = Baseline(self._spec, self._ledger)
        self._publish_left()
        while not self._stop.is_set():
            try:
                self._session()
            except (OSError, sqlite3.Error) as e:
                if isinstance(e, FileNotFoundError) and not os.path.exists(self._root):
                    self._baseline.nothing_there()
                self._fail(e)
        self._finish()

    def _publish_left(self) -> None:
        """What an earlier process did not get to the end of."""
        for number, pending in self._ledger.pending():
            self._next_batch = max(self._next_batch, number + 1)
            if number not in self._on_way:
                self._send(number, pending)

    def _session(self) -> None:
        self._was_there = []
        st = os.stat(self._root)
        if not stat.S_ISDIR(st.st_mode):
            raise NotADirectoryError(20, "not a folder", self._root)
        self._identity = (st.st_dev, st.st_ino)
        self._sieve.network = network_mount(self._spec.root)
        watch = self._watch = open_watch(self._spec.root)
        try:
            self._walks.clear()
            self._begin_walk("")
            self._describe(0)
            while not self._stop.is_set():
                self._take(watch.read(self._timeout()))
                self._turn()
        finally:
            self._watch = None
            watch.close()

    def _turn(self) -> None:
        now = time.monotonic()
        self._finish()
        if self._created or len(self._sieve.settling):
            self._look_again(now)
        if self._walks and self._room():
            self._walk_step(now)
        elif not self._walks and (now >= self._next_walk or self._lost_notices) and self._room():
            self._lost_notices = False
            self._begin_walk("")
        while self._noticed and self._may_send():
            self._batch()
        if now >= self._next_check:
            self._next_check = now + CHECK_S
            self._check_root()
            self._failures = 0

    def _timeout(self) -> float:
        if self._finished or (self._noticed and self._may_send()):
            return 0.0
        if self._room() and (self._walks or self._lost_notices):
            return 0.0
        now = time.monotonic()
        wait = min(self._next_check, self._next_walk if not self._walks else self._next_check) - now
        due = self._sieve.settling.next_due()
        if due is not None and len(self._noticed) < WALK_ROOM:
            wait = min(wait, due - now)
        if self._created:
            wait = min(wait, LINK_S)
        if self._noticed and len(self._on_way) < ON_THEIR_WAY:
            wait = min(wait, LINGER_S)
        return max(0.002, wait)

    def _may_send(self) -> bool:
        """A batch goes at once when none is on its way; else it may wait a moment for company."""
        if not self._on_way:
            return True
        full = len(self._noticed) >= BATCH // 4 or time.monotonic() - self._sent >= LINGER_S
        return full and len(self._on_way) < ON_THEIR_WAY

    def _check_root(self) -> None:
        st = os.stat(self._root)
        if (st.st_dev, st.st_ino) != self._identity:
            raise _Gone(2, "another folder is at its place now", self._root)

    def _fail(self, e: Exception) -> None:
        self._diary.state = "failed"
        what = e.strerror if isinstance(e, OSError) and e.strerror else e
        self._diary.detail = f"{self._root}: {what}" if isinstance(e, OSError) else f"{what}"
        pause = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        end = time.monotonic() + pause
        while not self._stop.is_set() and time.monotonic() < end:
            self._waker.wait(end - time.monotonic())
            self._waker.clear()

    def _wake(self) -> None:
        self._waker.set()
        watch = self._watch
        if watch is not None:
            watch.wake()

    def _describe(self, unwatched: int) -> None:
        notes = []
        if self._sieve.network:
            notes.append(
                f"on a network mount ({self._sieve.network}): what other machines write there is found by looking every"
                f" {self._rescan_s(0):g} s, and is ready when unchanged for a while"
            )
        if self._watch is not None and not self._watch.tells_closes:
            notes.append(
                "this system does not tell when a writer closes a file: it is ready when unchanged for a while"
            )
        if unwatched:
            notes.append(
                f"{unwatched} folders are not watched, only looked at every {self._rescan_s(unwatched):g} s:"
                " raise the kernel's fs.inotify.max_user_watches"
            )
        self._diary.state, self._diary.detail = "running", "; ".join(notes)

    # ------------------------------------------------------------ noticing

    def _take(self, notices: list[Notice]) -> None:
        matches, noticed = self._spec.matches, self._noticed
        for kind, folder, name, at_us in notices:
            if not (is_utf8(name) and is_utf8(folder)):
                self._tell_once(f"{folder}/{name}" if folder else name, NOT_UTF8)
                continue
            if kind & (CLOSED | RENAMED | HINT):
                key = (folder, name)
                if self._created:
                    self._created.pop(key, None)
                if matches(folder, name):
                    old = noticed.get(key)
                    noticed[key] = Noticed(kind | old.bits if old else kind, at_us, None)
            elif kind == CREATED:
                self._created[folder, name] = time.monotonic() + LINK_S
            elif kind == ENTERED:
                if self._spec.enter(folder):
                    self._begin_walk(folder)
            elif kind == OVERFLOW:
                self._lost_notices = True
                self._diary.waits(".", "the kernel lost notices: everything is looked at again")
            elif kind == LOST:
                raise _Gone(2, "the folder was moved, removed or unmounted", self._root)
        if len(noticed) > MOST_NOTICED:
            self._lost_notices = True
            for key in list(islice(noticed, len(noticed) - MOST_NOTICED)):
                del noticed[key]
        if len(self._created) > MOST_NOTICED:
            self._created.clear()

    def _look_again(self, now: float) -> None:
        """Files that have kept still, or may have; and those that were created and not closed: links?"""
        if len(self._noticed) < WALK_ROOM:
            for key, waiting in self._sieve.settling.take_due(now, BATCH):
                self._noticed[key] = Noticed(
                    waiting.bits, waiting.at_us, waiting.seen if waiting.still else None, not waiting.still
                )
        while self._created:  # in the order of their time
            key, due = next(iter(self._created.items()))
            if due > now:
                break
            del self._created[key]
            if self._spec.matches(*key):
                self._created_unclosed(key)

    def _created_unclosed(self, key: Key) -> None:
        try:
            st = os.lstat(self._sieve.path(key))
        except OSError:
            return
        at_us = ids.now_us()
        if stat.S_ISLNK(st.st_mode) or (stat.S_ISREG(st.st_mode) and st.st_nlink > 1):
            self._noticed.setdefault(key, Noticed(RENAMED, at_us, None))
        elif stat.S_ISREG(st.st_mode) and not (self._spec.required or self._spec.any):
            self._noticed.setdefault(key, Noticed(FOUND, at_us, None))

    def _room(self) -> bool:
        return len(self._noticed) < WALK_ROOM and len(self._sieve.settling) < MOST_NOTICED

    def _tell_once(self, path: str, why: str) -> None:
        """For what each walk meets again."""
        if path not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(path)
            self._diary.skips(path, why)

    # ------------------------------------------------------------ walks

    def _begin_walk(self, folder: str) -> None:
        watch = self._watch
        assert watch is not None
        if any(walk.full and step == 0.0 for walk, _, step in self._walks):
            return  # one that has not begun finds it
        walk = Walk(folder, self._spec, watch, self._ledger, self._met, self._tell_once)
        self._walks.append((walk, iter(walk), 0.0))

    def _walk_step(self, now: float) -> None:
        walk, steps, began = self._walks[0]
        if not began:
            began = now
            self._walks[0] = (walk, steps, began)
        ended = False
        while not ended and self._room() and time.monotonic() - now < WALK_STEP_S:
            ended = next(steps, self) is self
        if self._was_there:
            self._ledger.store(self._was_there)
            self._was_there = []
        if not ended:
            return
        self._walks.popleft()
        if walk.full:
            self._baseline.finished()
            self._describe(walk.unwatched)
            took = time.monotonic() - began
            self._next_walk = time.monotonic() + max(self._rescan_s(walk.unwatched), RESCAN_SHARE * took)

    def _rescan_s(self, unwatched: int) -> float:
        if self._spec.rescan_s:
            return self._spec.rescan_s
        return RESCAN_NETWORK_S if self._sieve.network else RESCAN_UNWATCHED_S if unwatched else RESCAN_S

    def _met(self, folder: str, name: str, st: os.stat_result, known: Found | None) -> None:
        """A walk met a file that is meant."""
        if not stat.S_ISREG(st.st_mode):
            return
        key, seen = (folder, name), fingerprint(st)
        if known is not None and not (self._spec.existing and known.state == KNOWN):
            if known.seen == seen or (known.state == FIRED and self._spec.never):
                return
        elif self._baseline.was_there(folder, name, st, lambda: self._sieve.writers(key)):
            self._was_there.append(Row(*key, KNOWN, *seen, ids.now_us()))
            return
        if key in self._sieve.settling or self._sieve.on_way.get(key) == seen or key in self._noticed:
            return
        self._noticed[key] = Noticed(FOUND, ids.now_us(), None)

    # ------------------------------------------------------------ deciding

    def _batch(self) -> None:
        keys = list(islice(self._noticed, BATCH))
        remembered = self._ledger.find(keys)
        rows: list[Row] = []
        events: list[Event] = []
        now_us = ids.now_us()
        for key in keys:
            noticed = self._noticed.pop(key)
            ready = self._sieve.decide(key, noticed, remembered.get(key))
            if ready is None:
                continue
            st, seen, why = ready
            events.append(self._make(key, st, seen, why, noticed.at_us, now_us))
            rows.append(Row(*key, FIRED, *seen, now_us))
            self._diary.fires(self._sieve.relative(key), why, now_us)
        self._ledger.store(self._sieve.take_passed())
        if events:
            number, pending = self._next_batch, Pending(rows, events)
            self._next_batch += 1
            self._ledger.pend(number, pending)
            self._send(number, pending)

    def _send(self, number: int, pending: Pending) -> None:
        self._on_way[number] = pending
        for row in pending.rows:
            self._sieve.on_way[row.folder, row.name] = Print(row.ino, row.size, row.mtime_ns)
        self._sent = time.monotonic()
        self._publish(Batch(number, pending.events))

    # ------------------------------------------------------------ answers

    def _finish(self) -> None:
        while self._finished:
            number, refused = self._finished[0]
            pending = self._on_way.get(number)
            if pending is not None:
                rows = [r._replace(state=PASSED) if i in refused else r for i, r in enumerate(pending.rows)]
                self._ledger.done(number, rows)  # when this fails, it is tried again
                del self._on_way[number]
                for row in rows:
                    key = (row.folder, row.name)
                    if self._sieve.on_way.get(key) == (row.ino, row.size, row.mtime_ns):
                        del self._sieve.on_way[key]
            self._finished.popleft()
