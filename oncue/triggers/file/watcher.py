"""FileWatcher: the thread of a file trigger.

It alone owns watch, ledger and pending files, without locks.

    watch ──notices──► PendingFiles ──► FileEvaluator ──► Ledger.store_pending ──► publish(batch)
    scan  ──files────►      ▲                └──► StabilityQueue (not ready)            │
                            └─────────── due ───────────┘                               │
                                       Ledger.complete ◄── on_durable(batch) ◄── emit (loop)

Files noticed while MAX_IN_FLIGHT batches are being published go into the next one. If the process
dies at any point, the scan at the next start finds the files that are not in the ledger, and
pending batches are published again unchanged.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from oncue.clocks.process import now_us
from oncue.disk.permissions import READ_FOLDER, explain
from oncue.errors import Forbidden, OncueError, TriggerFailed
from oncue.protocol.api import Backfilled, BackfillRequest
from oncue.protocol.records import Event
from oncue.triggers.activity import ActivityLog
from oncue.triggers.base import ItemExplanation
from oncue.triggers.file.backfill import Backfill, BackfillQueue
from oncue.triggers.file.baseline import Baseline
from oncue.triggers.file.evaluator import FileEvaluator
from oncue.triggers.file.event import EventMaker
from oncue.triggers.file.explain import explain_file
from oncue.triggers.file.ledger import (
    EXISTING,
    FIRED,
    SKIPPED_FILE,
    FileRow,
    Ledger,
    LedgerListener,
    PendingBatch,
    known_file,
)
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.pending_files import BATCH, FolderGone, PendingFiles
from oncue.triggers.file.renamed_content import RenamedContent
from oncue.triggers.file.scanner import Scanner
from oncue.triggers.file.stability import FileKey, Fingerprint
from oncue.triggers.file.thread_calls import ThreadCalls
from oncue.triggers.file.watch import scan_only
from oncue.triggers.file.watch.base import FolderWatch
from oncue.triggers.file.watch.open import network_mount, open_watch
from oncue.triggers.file.watch.scan_only import ScanOnlyWatch
from oncue.triggers.file.watch_notes import watch_notes

MAX_IN_FLIGHT = 4  # batches published and not durable
LINGER_S = 0.002  # pause between small batches, while one is in flight
CHECK_S = 1.0  # interval of checks of the watched folder itself
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
MISSING_S = 2.0  # longest interval of checks of a folder that does not exist

log = logging.getLogger(__name__)
T = TypeVar("T")


class EventBatch(NamedTuple):
    """Events that are published together."""

    number: int
    events: Sequence[Event]


class FileWatcher:
    """Runs `run` in a thread.

    The other public methods may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        spec: FileSpec,
        file: Path,
        activity: ActivityLog,
        publish: Callable[[EventBatch], None],
        on_scanned: Callable[[], None] = lambda: None,
        deployed_us: int = 0,
        listener: LedgerListener | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`publish` is called with each batch, and answered by `on_durable`.

        `on_scanned` is called when the initial scan has ended or is blocked. Both are called in the
        watcher's thread.
        """
        self._spec, self._file, self._activity, self._publish = spec, file, activity, publish
        self._on_scanned, self._deployed_us, self._listener = on_scanned, deployed_us, listener
        self._check_rights, self._name = check, name
        self._make = EventMaker(name, spec).make
        self._root = os.fspath(spec.root)
        self._evaluator = FileEvaluator(spec, activity)
        self._pending_files = PendingFiles(spec, self._evaluator, activity)
        self._in_flight: dict[int, PendingBatch] = {}
        self._renames: RenamedContent | None = None  # with `refire: content`
        self._durable: deque[tuple[int, frozenset[int]]] = deque()
        self._next_batch = 1
        self._next_check = self._sent = 0.0
        self._deploy_answered = threading.Event()
        self._stop = threading.Event()
        self._waker = threading.Event()
        self._watch: FolderWatch | None = None
        self._ledger: Ledger
        self._opened = self._ledger_open = False  # the ledger was opened before; it is open now
        self._calls = ThreadCalls()
        self._backfills = BackfillQueue()
        self._scanner: Scanner | None = None  # of the current session
        self._identity = (0, 0)
        self._failures = 0
        self._existing = 0  # existing files, without those that this session finds

    # ------------------------------------------------------------ from any thread

    def on_deployed(self) -> None:
        """Note that the deploy is about to be answered: see `Trigger.on_deployed`."""
        self._deploy_answered.set()

    def on_durable(self, batch: int, refused: frozenset[int] = frozenset()) -> None:
        """Note that the batch is durable, except the events at `refused`."""
        self._durable.append((batch, refused))
        self._wake()

    def explain(self, path: str) -> Future[ItemExplanation]:
        """Explain why this file fired or did not.

        The future waits while the thread is blocked.
        """
        return self._call(partial(self._explain, path))

    def backfill(self, request: BackfillRequest) -> Future[Future[Backfilled]]:
        """Start a backfill. The inner future waits for all of it."""
        return self._call(partial(self._start_backfill, request))

    def handled_of(self, keys: Sequence[FileKey]) -> Future[set[FileKey]]:
        """Return those of the files that fired, or were passed over."""
        return self._call(partial(self._handled_of, keys))

    def _call(self, call: Callable[[], T]) -> Future[T]:
        future = self._calls.submit(call)
        self._wake()
        return future

    def stop(self) -> None:
        self._stop.set()
        self._wake()

    def run(self) -> None:
        """Watch until `stop`: the body of the thread."""
        while not self._stop.is_set():
            try:
                self._ledger = Ledger(self._file, self._listener)
                self._ledger_open = True
                try:
                    self._with_ledger()
                finally:
                    self._ledger_open = False
                    self._ledger.close()
            except (OncueError, OSError, sqlite3.Error) as e:
                self._fail(e)
            except Exception as e:
                if self._stop.is_set():  # the loop is closed
                    return
                log.exception("the watcher of %s", self._root)
                self._fail(e)

    # ------------------------------------------------------------ sessions

    def _with_ledger(self) -> None:
        """Run sessions while the ledger is open."""
        baseline = Baseline(self._spec, self._ledger, self._deployed_us, self._deploy_answered.is_set)
        if baseline.resumed and not self._opened:  # its deploy may have been answered
            self._deploy_answered.set()
        self._opened = True
        if self._spec.content:
            self._renames = RenamedContent(self._spec, self._ledger, self._evaluator, self._activity)
        self._activity.existing = 0 if self._spec.existing else self._ledger.count(EXISTING)
        self._activity.scanned = not baseline.open
        self._publish_left()
        while not self._stop.is_set():
            try:
                self._session(baseline)
            except (FileNotFoundError, FolderGone) as e:
                self._missing(baseline, e)
            except (OSError, sqlite3.Error, Forbidden) as e:
                self._fail(e)
        self._complete()

    def _publish_left(self) -> None:
        """Publish the batches that an earlier process did not complete."""
        for number, pending in self._ledger.pending():
            self._next_batch = max(self._next_batch, number + 1)
            if number not in self._in_flight:
                self._send(number, pending)

    def _session(self, baseline: Baseline) -> None:
        """Watch the folder until `stop`, or until a watch may be free.

        Raises OSError when the folder is missing or replaced.
        """
        if self._activity.state == "starting":
            self._activity.detail = f"{self._root}: no answer from its filesystem yet"
        self._check_rights()
        st = os.stat(self._root)
        if not stat.S_ISDIR(st.st_mode):
            raise NotADirectoryError(20, "not a folder", self._root)
        self._identity = (st.st_dev, st.st_ino)
        self._evaluator.network = network_mount(self._spec.root)
        baseline.network = bool(self._evaluator.network)
        baseline.folder_found()
        watch = self._watch = open_watch(self._spec.root)
        self._evaluator.hears_closes = watch.reports_closes and not self._evaluator.network
        self._evaluator.hears_opens = watch.reports_opens and not self._evaluator.network
        try:
            scanner = self._scanner = Scanner(
                self._spec, watch, self._ledger, baseline, self._pending_files, self._evaluator
            )
            self._describe(baseline, scanner)
            self._existing = self._activity.existing
            until = time.monotonic() + scan_only.WATCH_AGAIN_S if isinstance(watch, ScanOnlyWatch) else math.inf
            while not self._stop.is_set() and time.monotonic() < until:
                for folder, bits in self._pending_files.apply(watch.read(self._timeout())):
                    scanner.enter(folder, bits)
                self._complete()
                self._calls.run()
                self._step_backfill(scanner)
                self._pending_files.requeue_due(time.monotonic())
                ended = scanner.step(time.monotonic())
                self._activity.existing = self._existing + scanner.existing
                if ended:
                    baseline.scan_finished()
                    self._describe(baseline, scanner)
                self._send_due()
        finally:
            self._watch = self._scanner = None
            watch.close()
            self._backfills.fail()

    def _send_due(self) -> None:
        while self._pending_files.noticed and self._may_send():
            self._send_batch()
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_S
            self._check_root()
            self._failures = 0

    def _timeout(self) -> float:
        """Return the seconds that the watch may wait for notices."""
        noticed = bool(self._pending_files.noticed)
        if self._durable or self._backfills or (noticed and self._may_send()):
            return 0.0
        now = time.monotonic()
        waits = [self._next_check - now]
        walk = self._scanner.due_s(now) if self._scanner is not None else None
        if walk is not None:
            if walk <= 0.0:
                return 0.0
            waits.append(walk)
        again = self._pending_files.due_s(now)
        if again is not None:
            waits.append(again)
        if noticed and len(self._in_flight) < MAX_IN_FLIGHT:
            waits.append(LINGER_S)
        return max(0.002, min(waits))

    def _may_send(self) -> bool:
        """Return True if a batch may be sent.

        At once when none is in flight; else when it is large enough, or after LINGER_S.
        """
        if not self._in_flight:
            return True
        full = len(self._pending_files.noticed) >= BATCH // 4 or time.monotonic() - self._sent >= LINGER_S
        return full and len(self._in_flight) < MAX_IN_FLIGHT

    def _check_root(self) -> None:
        self._check_rights()  # a folder on the way may be a symbolic link by now
        st = os.stat(self._root)
        if (st.st_dev, st.st_ino) != self._identity:
            raise FolderGone(2, "another folder has taken its place", self._root)

    # ------------------------------------------------------------ status

    def _describe(self, baseline: Baseline, scanner: Scanner) -> None:
        self._activity.detail = "; ".join(watch_notes(self._evaluator.network, self._watch, scanner))
        self._activity.state = "looking" if baseline.open else "running"
        if not baseline.open:
            self._on_scan_end()

    def _on_scan_end(self) -> None:
        if not self._activity.scanned:
            self._activity.scanned = True
            found = f"{self._activity.existing:,} files existed before the trigger"
            why = f"{found}: they fire when they change (existing: false)"
            self._activity.record_waiting(".", "files that exist fire (existing: true)" if self._spec.existing else why)
        self._on_scanned()

    def _missing(self, baseline: Baseline, e: OSError) -> None:
        """Handle a watched folder that is missing, or that another one has replaced."""
        if os.path.exists(self._root):
            self._fail(e)
            return
        baseline.folder_missing()
        self._activity.state = "waiting"
        self._activity.detail = f"{self._root} does not exist: it is checked every {MISSING_S:g} s" + (
            "" if baseline.open else ", and new files in it fire then"
        )
        if not baseline.open:
            self._activity.scanned = True
        self._on_scanned()
        self._pause(MISSING_S)

    def _fail(self, e: Exception) -> None:
        self._activity.state = "failed"
        what = explain(e, READ_FOLDER) if isinstance(e, OSError) else e
        place = e.filename if isinstance(e, OSError) and isinstance(e.filename, str) else self._root
        self._activity.detail = f"{place}: {what}" if isinstance(e, OSError) else f"{what}"
        self._on_scanned()
        self._pause(BACKOFF_S[-1])

    def _pause(self, longest_s: float) -> None:
        pause = min(longest_s, BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1
        end = time.monotonic() + pause
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            self._waker.wait(left)
            self._waker.clear()
            self._calls.run()

    def _wake(self) -> None:
        self._waker.set()
        watch = self._watch
        if watch is not None:
            watch.wake()

    # ------------------------------------------------------------ deciding

    def _send_batch(self) -> None:
        """Decide about the first pending files; publish the events of those that fire."""
        noticed = self._pending_files.noticed
        keys = list(islice(noticed, BATCH))
        known = self._ledger.find(keys)
        rows: list[FileRow] = []
        events: list[Event] = []
        now = now_us()
        for key in keys:
            pending_file = noticed.pop(key)
            ready = self._evaluator.decide(key, pending_file, known.get(key))
            if ready is None or (self._renames is not None and self._renames.fired(key, ready)):
                continue
            st, seen, why, again = ready
            events.append(self._make(key, st, seen, why, pending_file.at_us, now, again))
            rows.append(FileRow(*key, FIRED, *seen, now, st.st_ctime_ns))
            if self._renames is not None:
                self._renames.sent[seen] = key
            self._activity.record_fired(self._evaluator.relative(key), why, now)
        self._ledger.store(self._evaluator.drain_handled())
        if events:
            number, pending = self._next_batch, PendingBatch(rows, events)
            self._next_batch += 1
            self._ledger.store_pending(number, pending)
            self._send(number, pending)

    def _send(self, number: int, pending: PendingBatch) -> None:
        self._in_flight[number] = pending
        for row in pending.rows:
            self._evaluator.in_flight[row.folder, row.name] = known_file(row)
        self._sent = time.monotonic()
        self._publish(EventBatch(number, pending.events))

    # ------------------------------------------------------------ answers to other threads

    def _explain(self, path: str) -> ItemExplanation:
        status = self._activity.status()
        if not self._ledger_open:
            raise TriggerFailed(status.detail, remedy="`oncue triggers list` shows its state")
        rescan_s = self._scanner.rescan_s if self._scanner is not None else 0.0
        return explain_file(path, self._spec, status, self._ledger, self._evaluator, self._pending_files, rescan_s)

    def _start_backfill(self, request: BackfillRequest) -> Future[Backfilled]:
        status = self._activity.status()
        if self._scanner is None or status.state != "running":
            raise TriggerFailed(
                f"the trigger is {status.state}: {status.detail}",
                remedy="try again when it runs: `oncue triggers list`",
            )
        return self._backfills.add(Backfill(self._name, request, self._spec, self._ledger, self._evaluator))

    def _step_backfill(self, scanner: Scanner) -> None:
        ended = self._backfills.step()
        if ended is not None and ended.finish().files and not ended.dry_run:
            self._existing -= ended.count
            self._pending_files.backfilled |= ended.files
            scanner.enter("")

    def _handled_of(self, keys: Sequence[FileKey]) -> set[FileKey]:
        """Return those of the files that fired, or were passed over."""
        if not self._ledger_open:
            return set()
        return {key for key, known in self._ledger.find(keys).items() if known.state != EXISTING}

    def _complete(self) -> None:
        """Record the durable batches in the ledger."""
        while self._durable:
            number, refused = self._durable[0]
            pending = self._in_flight.get(number)
            if pending is not None:
                rows = [r._replace(state=SKIPPED_FILE) if i in refused else r for i, r in enumerate(pending.rows)]
                self._ledger.complete(number, rows)  # if this raises, the batch stays queued
                del self._in_flight[number]
                for row in rows:
                    key = (row.folder, row.name)
                    if self._renames is not None:
                        self._renames.sent.pop(Fingerprint(row.ino, row.size, row.mtime_ns), None)
                    if self._evaluator.in_flight.get(key) == known_file(row._replace(state=FIRED)):
                        del self._evaluator.in_flight[key]
            self._durable.popleft()
