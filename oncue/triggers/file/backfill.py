"""Backfill: lets files fire that existed before the trigger.

The ledger forgets them, page by page. A scan then finds them as new files, also after a crash.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from oncue.errors import TriggerFailed
from oncue.protocol.api import Backfilled, BackfillRequest
from oncue.triggers.file.evaluator import FileEvaluator
from oncue.triggers.file.ledger import EXISTING, FIRED, FileRow, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.selection import Selection, folders_to, read_selection
from oncue.triggers.file.stability import FileKey

PAGE = 500  # rows of one step
MOST_KEPT = 100_000  # files whose event says "backfill"; that of the others says "rescan"
FIRST = 10  # files that the answer names


class Backfill:
    """One backfill. `step` it in the watcher's thread, until it returns True."""

    def __init__(
        self, name: str, request: BackfillRequest, spec: FileSpec, ledger: Ledger, evaluator: FileEvaluator
    ) -> None:
        """Raises Invalid for a wrong glob."""
        self.answer: Future[Backfilled] = Future()
        self.dry_run = request.dry_run
        self.count = 0  # files to fire
        self.files: set[FileKey] = set()  # ... the first MOST_KEPT of them
        self._name, self._request, self._spec = name, request, spec
        self._ledger, self._evaluator = ledger, evaluator
        self._bytes = self._fired = 0
        self._first: list[str] = []
        self._selects = self._selection()
        self._pages = iter(self._run())

    def _selection(self) -> Callable[[str, str], bool]:
        """Return whether the request's glob selects a file: (folder, name)."""
        if not self._request.glob:
            return lambda folder, name: True
        own = read_selection(self._spec.selects)
        glob = "**/" + self._request.glob if "/" not in self._request.glob else self._request.glob
        return Selection(glob, (), own.any_case, any_form=True).compile()[0]

    def step(self) -> bool:
        """Handle one page; return True if it was the last one, or nobody waits any more."""
        return self.answer.cancelled() or next(self._pages, None) is None

    def finish(self) -> Backfilled:
        """Answer, and return the answer."""
        found = self._result()
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(found)
        return found

    def _result(self) -> Backfilled:
        return Backfilled(
            trigger=self._name,
            dry_run=self._request.dry_run,
            files=self.count,
            bytes=self._bytes,
            fired_before=self._fired,
            first=self._first,
        )

    def _run(self) -> Iterator[bool]:
        after: FileKey | None = None
        while rows := self._ledger.page(after, PAGE):
            after = rows[-1][:2]
            keys = [row[:2] for row in rows if self._wants(row)]
            self.count += len(keys)
            self.files.update(keys[: MOST_KEPT - len(self.files)])
            if keys and not self._request.dry_run:
                self._ledger.forget(keys)
            yield True

    def _wants(self, row: FileRow) -> bool:
        folder, name = row.folder, row.name
        if not self._selects(folder, name):
            return False
        if row.state == FIRED and self._in_period(row.mtime_ns):
            self._fired += 1
        if row.state != EXISTING or not self._spec.matches(folder, name):
            return False
        if not all(map(self._spec.enter, folders_to(folder))):
            return False
        try:
            st = os.lstat(self._evaluator.path((folder, name)))
        except OSError:
            return False
        # The time of now: the ledger may not know yet that the time alone was changed.
        if not self._in_period(st.st_mtime_ns) or not (stat.S_ISREG(st.st_mode) or self._spec.links):
            return False
        self._bytes += st.st_size
        if len(self._first) < FIRST:
            self._first.append(self._evaluator.relative((folder, name)))
        return True

    def _in_period(self, mtime_ns: int) -> bool:
        mtime_us, until_us = mtime_ns // 1_000, self._request.until_us
        return mtime_us >= self._request.since_us and not (until_us and mtime_us >= until_us)


class BackfillQueue:
    """Backfills that wait or run, one at a time. Used in the watcher's thread only."""

    def __init__(self) -> None:
        self._queue: deque[Backfill] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, backfill: Backfill) -> Future[Backfilled]:
        self._queue.append(backfill)
        return backfill.answer

    def step(self) -> Backfill | None:
        """Handle one page of the first; return it if it has ended, for `finish`."""
        return self._queue.popleft() if self._queue and self._queue[0].step() else None

    def fail(self) -> None:
        """End all, with an error. What they have let fire fires in the next session."""
        while self._queue:
            answer = self._queue.popleft().answer
            if answer.set_running_or_notify_cancel():
                answer.set_exception(TriggerFailed("the trigger was interrupted", remedy="do it again"))
