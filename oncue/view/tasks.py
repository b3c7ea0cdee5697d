"""Stores tasks and their results as rows.

The same fold as task_lifecycle.py, over whole frames. Nearly all frames take the fast path: one
INSERT for a frame of new tasks, one UPDATE for a frame of results that close open tasks. For any
other frame (result before its task, retry, duplicate, late result) the states are loaded, folded
one by one, and written back together. The UPDATE's row count shows if all tasks were open; if not,
it raises NeedsFold, and the projector repeats the group on the careful path.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from oncue import task_lifecycle
from oncue.ids import DIGEST_BYTES
from oncue.protocol.codec import decode
from oncue.protocol.priority import known_priority
from oncue.protocol.records import OK, Call, Cancel, Ended, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.reports import Started
from oncue.protocol.retry_policy import retry_due
from oncue.task_lifecycle import CLOSED_AS, State, TaskState
from oncue.view import rows, use_rows
from oncue.view.bulk_sql import chunks, fetch, run, statement
from oncue.view.interning import CallInterner, CallRef
from oncue.view.spans import Spans

FRAME_BITS = 16  # a frame has at most 65,536 tasks

_ADD = (
    "INSERT INTO task (id, args, seq, call, endpoint, expires_us, accepted_us, known{more})"
    " SELECT column2, column3, ? + column1, ?, ?, ?, ?, 1{columns} FROM ({values}) WHERE true ON CONFLICT (id) DO NOTHING"
)
_ADD_PLAIN = _ADD.replace("{more}", "").replace("{columns}", "")
_ADD_FULL = _ADD.replace("{more}", ", event_source, event_id, retry_of, mark_us").replace(
    "{columns}", ", column4, column5, column6, column7"
)
# A task whose result, cancel or start came first.
_MOVED = "SELECT n FROM task JOIN ({values}) ON id = column1 WHERE known = 0 AND (call IS NOT ? OR accepted_us < ?) ORDER BY n"
_LEARN = (
    "UPDATE task SET known = 1, call = ?, endpoint = ?, expires_us = ?, accepted_us = ?, seq = ? + column1, args = column3,"
    " event_source = column4, event_id = column5, retry_of = column6, mark_us = column7"
    " FROM ({values}) WHERE id = column2 AND known = 0"
)
# Appended again by its owner, so that the log can be truncated before it.
_MOVE_UP = (
    "UPDATE task SET seq = ? + column1 FROM ({values})"
    " WHERE id = column2 AND known = 1 AND state = 0 AND endpoint = ? AND seq < ? + column1"
)
_CLOSE = (
    "UPDATE task SET state = column3 + 1, started_us = column4, ended_us = column5, value = column6, output = column7,"
    " due_us = 0 FROM ({values}) WHERE id = column1 AND state = 0 AND known = 1 AND attempt = column2"
)
_WRITE = (
    "INSERT INTO task (id, call, endpoint, expires_us, accepted_us, event_source, event_id, retry_of, mark_us, state,"
    " attempt, due_us, started_us, ended_us, value, output) {values}"
    " ON CONFLICT (id) DO UPDATE SET call = excluded.call, endpoint = excluded.endpoint, expires_us = excluded.expires_us,"
    " accepted_us = excluded.accepted_us, event_source = excluded.event_source, event_id = excluded.event_id,"
    " retry_of = excluded.retry_of, mark_us = excluded.mark_us, state = excluded.state, attempt = excluded.attempt,"
    " due_us = excluded.due_us, started_us = excluded.started_us, ended_us = excluded.ended_us, value = excluded.value,"
    " output = excluded.output"
)
_DROP_ATTEMPTS = "DELETE FROM attempt WHERE id IN ({values})"
_ADD_ATTEMPTS = "INSERT INTO attempt (id, pos, n, status, started_us, ended_us, value, output, superseded) {values}"
_NUMBERS = "SELECT n, id FROM task WHERE id IN ({values})"
_ADD_MEMBERS = "INSERT OR IGNORE INTO member (event, task) {values}"
_STUB = "INSERT INTO task (id) {values} ON CONFLICT (id) DO NOTHING"
_CANCEL = "UPDATE task SET cancel_us = ?, cancel_by = ? FROM ({values}) WHERE id = column1 AND cancel_us = 0"
_PRIORITIZE = "UPDATE task SET priority = ? FROM ({values}) WHERE id = column1 AND call = column2"
_START = (
    "UPDATE task SET running_attempt = column2, running_us = column3 FROM ({values})"
    " WHERE id = column1 AND (running_attempt, running_us) < (column2, column3)"
)


class NeedsFold(Exception):
    """A frame of results cannot take the fast path."""


class ClosedTask(msgspec.Struct, frozen=True, gc=False):
    """A task, and the result that closed it."""

    id: bytes
    state: State
    call: Call
    ended: Ended


class TaskRows:
    """Writes the tables `task`, `attempt` and `span`."""

    def __init__(self, db: sqlite3.Connection, calls: CallInterner) -> None:
        self._db, self._calls, self._spans = db, calls, Spans(db)
        self.stubs = 0  # tasks of the last group whose result came before them

    def reset(self) -> None:
        """Drop cached ids after a rollback, which may have removed their rows."""
        self._calls.reset()
        self._spans.reset()

    # ------------------------------------------------------------ tasks

    def accept(self, frame: TaskFrame, offset: int) -> None:
        """Store a frame of tasks."""
        tasks = frame.tasks
        if len(tasks) > 1 << FRAME_BITS:
            raise ValueError(f"a frame of {len(tasks)} tasks")
        ref = self._calls.ref(frame.call)
        seq = offset << FRAME_BITS
        shared = (ref.id, ref.endpoint, frame.call.expires_us, frame.accepted_us)
        added = self._add(tasks, seq, shared)
        if added:
            # Existing rows take no number, so the new rows are consecutive.
            last = self._db.execute("SELECT max(n) FROM task").fetchone()[0]
            self._spans.add(last - added + 1, last, frame.accepted_us, ref)
        if added < len(tasks):
            self._accept_again(frame, seq, shared, ref, len(tasks) - added)
        if frame.call.rule:
            self._add_members(tasks)
        if frame.call.priority:
            given = known_priority(frame.call.priority)
            run(self._db, _PRIORITIZE, [(t.id, ref.id) for t in tasks], (given,))

    def _add_members(self, tasks: Sequence[TaskRecord]) -> None:
        """Note which events the windows had beside the first."""
        with_others = [t for t in tasks if t.members]
        if with_others:
            run(self._db, _ADD_MEMBERS, [row for t in with_others for row in _members(t)])

    def _add(self, tasks: Sequence[TaskRecord], seq: int, shared: tuple[int, int, int, int]) -> int:
        plain = all(t.event is None and not t.mark_us and not t.retry_of for t in tasks)
        template, width = (_ADD_PLAIN, 2) if plain else (_ADD_FULL, 6)
        added = 0
        for start, size in chunks(len(tasks)):
            part = tasks[start : start + size]
            given: Iterable[Any] = (
                chain.from_iterable([(t.id, t.args) for t in part])
                if plain
                else chain.from_iterable([_full(t) for t in part])
            )
            text = statement(template, size, width, True)
            added += self._db.execute(text, (seq + start, *shared, *given)).rowcount
        return added

    def _accept_again(
        self, frame: TaskFrame, seq: int, shared: tuple[int, int, int, int], ref: CallRef, refused: int
    ) -> None:
        """Update tasks that have a row already."""
        first: dict[bytes, tuple[int, TaskRecord]] = {}
        for i, t in enumerate(frame.tasks):
            first.setdefault(t.id, (i, t))
        found = [(i, *_full(t)) for i, t in first.values()]
        ids = list(first)
        for start, size in chunks(len(ids)):
            text = statement(_MOVED, size, 1)
            for (n,) in self._db.execute(text, (*ids[start : start + size], ref.id, frame.accepted_us)).fetchall():
                self._spans.move(n, frame.accepted_us, ref)
        if run(self._db, _LEARN, found, (*shared, seq)) == refused:
            return
        numbered = [(i, task_id) for task_id, (i, _) in first.items()]
        for start, size in chunks(len(numbered)):
            text = statement(_MOVE_UP, size, 2)
            given = chain.from_iterable(numbered[start : start + size])
            self._db.execute(text, (seq, *given, ref.endpoint, seq))

    # ------------------------------------------------------------ ends

    def end(self, frame: ResultFrame, careful: bool) -> list[ClosedTask]:
        """Store a frame of results; return the tasks that it closed.

        Raises NeedsFold if the frame cannot take the fast path, unless `careful`.
        """
        call, ended = frame.call, frame.ended
        _check(ended)
        if not _all_close(frame):
            return self._fold(frame)
        if not careful:
            self._close(ended)
        else:
            self._db.execute("SAVEPOINT ends")
            try:
                self._close(ended)
            except NeedsFold:
                self._db.execute("ROLLBACK TO ends")
                return self._fold(frame)
            finally:
                self._db.execute("RELEASE ends")
        use_rows.store(self._db, frame, ended)
        return [ClosedTask(e.id, CLOSED_AS[e.status], call, e) for e in ended]

    def _close(self, ended: Sequence[Ended]) -> None:
        """Close open tasks.

        Raises NeedsFold unless each result ends the current attempt of another open task.
        """
        for start, size in chunks(len(ended)):
            part = ended[start : start + size]
            given = [(e.id, e.attempt, e.status, e.started_us, e.ended_us, e.value, e.output) for e in part]
            text = statement(_CLOSE, size, 7)
            if self._db.execute(text, tuple(chain.from_iterable(given))).rowcount != size:
                raise NeedsFold

    def _fold(self, frame: ResultFrame) -> list[ClosedTask]:
        call, accepted_us, ended = frame.call, frame.accepted_us, frame.ended
        calls: dict[int, Call] = {}
        stored = rows.load(self._db, list({e.id for e in ended}), lambda n: calls.get(n) or self._read_call(calls, n))
        before = {task_id: state for task_id, (_, state) in stored.items()}
        after: dict[bytes, TaskState] = {}
        closings, fresh = [], []
        for e in ended:
            old = after.get(e.id) or before.get(e.id)
            new = task_lifecycle.end(old, call, accepted_us, e)
            if new is old:
                continue
            after[e.id] = new
            fresh.append(e)
            if new.state.closed and (old is None or not old.state.closed):
                closings.append(ClosedTask(e.id, new.state, call, e))
        self._write(before, list(after.values()))
        use_rows.store(self._db, frame, fresh)
        return closings

    def _read_call(self, calls: dict[int, Call], number: int) -> Call:
        raw = self._db.execute("SELECT raw FROM call WHERE id = ?", (number,)).fetchone()[0]
        found = calls[number] = decode(Call, raw)
        return found

    def _write(self, before: dict[bytes, TaskState], after: list[TaskState]) -> None:
        run(self._db, _WRITE, [self._row(s) for s in after])
        fresh = [s for s in after if s.id not in before or before[s.id].call is None]
        if fresh:
            self._span(fresh, before)
        run(self._db, _DROP_ATTEMPTS, [(s.id,) for s in after if s.id in before and before[s.id].attempts])
        run(self._db, _ADD_ATTEMPTS, [a for s in after for a in _attempts(s)])
        self.stubs += sum(1 for s in after if not s.known)

    def _row(self, s: TaskState) -> tuple[Any, ...]:
        assert s.call is not None  # a result includes its call
        ref = self._calls.ref(s.call)
        source, event_id = s.event or (None, None)
        head = (
            s.id,
            ref.id,
            ref.endpoint,
            s.call.expires_us,
            s.accepted_us,
            source,
            event_id,
            s.retry_of or None,
            s.mark_us,
        )
        a = s.closing
        tail = (0, 0, None, None) if a is None else (a.started_us, a.ended_us, a.value, a.output)
        return (*head, s.state.value, s.attempt, s.due_us, *tail)

    def _span(self, fresh: list[TaskState], before: dict[bytes, TaskState]) -> None:
        by_id = {s.id: s for s in fresh}
        new = []
        for n, task_id in sorted(fetch(self._db, _NUMBERS, list(by_id))):
            s = by_id[task_id]
            assert s.call is not None
            new.append((n, s.accepted_us, self._calls.ref(s.call)))
        self._spans.add_rows(new)

    # ------------------------------------------------------------ cancel requests and starts

    def cancel(self, entry: Cancel) -> None:
        """Store a cancel request; the first one of a task stays."""
        ids = [(i,) for i in dict.fromkeys(entry.tasks)]
        run(self._db, _STUB, ids)
        run(self._db, _CANCEL, ids, (entry.at_us or 1, entry.by))

    def mark_started(self, report: Started) -> None:
        """Store which attempts run."""
        newest: dict[bytes, tuple[int, int]] = {}
        for task_id, attempt, started_us in report.tasks:
            newest[task_id] = max(newest.get(task_id, (0, 0)), (attempt, started_us))
        run(self._db, _STUB, [(i,) for i in newest])
        run(self._db, _START, [(i, *at) for i, at in newest.items()])
        use_rows.store_workers(self._db, report)


def _full(t: TaskRecord) -> tuple[Any, ...]:
    source, event_id = t.event or (None, None)
    return t.id, t.args, source, event_id, t.retry_of or None, t.mark_us


def _members(t: TaskRecord) -> list[tuple[bytes, bytes]]:
    return [(t.members[at : at + DIGEST_BYTES], t.id) for at in range(0, len(t.members), DIGEST_BYTES)]


def _attempts(s: TaskState) -> list[tuple[Any, ...]]:
    """Return rows of all attempts but the closing one."""
    closing = s.closing
    return [
        (s.id, pos, a.n, a.status, a.started_us, a.ended_us, a.value, a.output, a.superseded)
        for pos, a in enumerate(s.attempts)
        if a is not closing
    ]


def _all_close(frame: ResultFrame) -> bool:
    """True if no result is followed by a retry."""
    policy, accepted_us = frame.call.retry, frame.accepted_us
    return policy is None or all(e.status == OK or retry_due(policy, e, accepted_us) is None for e in frame.ended)


def _check(ended: Sequence[Ended]) -> None:
    for e in ended:
        if e.status not in CLOSED_AS or e.attempt < 1:
            raise ValueError(f"an end with status {e.status} of attempt {e.attempt}")
