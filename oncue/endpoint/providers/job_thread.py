"""Thread that calls a provider of jobs, off the agent's loop.

    loop ──submit, poll, find, cancel──► waiting calls ──one at a time──► provider ──► scheduler
    loop ◄──drain() after a byte on `fd`── events ◄───────────────────────────┘

Calls of the same kind are merged while they wait: a scheduler that is slow is asked for all jobs
at once, not once for each time that the loop wanted to know. A call that fails because the
scheduler is away is tried again, after pauses that grow. A submission is not: its caller decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from oncue.endpoint.providers.job_events import (
    JobEvent,
    JobsCancelled,
    JobsPolled,
    MarksSearched,
    SubmitFailed,
    Submitted,
)
from oncue.endpoint.providers.jobs import (
    JobProvider,
    JobRequest,
    SchedulerAway,
    SchedulerError,
    SubmissionRefused,
)
from oncue.errors import OncueError

log = logging.getLogger("oncue.agent")


class Call(Enum):
    """Kind of a call; a free thread takes the kinds in turn."""

    SUBMIT = "submitting a job"
    FIND = "looking for a job"
    POLL = "asking for the states of jobs"
    CANCEL = "cancelling jobs"


class Pauses(msgspec.Struct, frozen=True):
    """Seconds before a failed call is tried again: doubled with each failure in a row."""

    first_s: float = 2.0
    longest_s: float = 60.0

    def after(self, failures: int, jitter: float) -> float:
        """Return the pause after so many failures in a row; `jitter` is from 0 to 1."""
        return float(min(self.longest_s, self.first_s * 2 ** min(failures - 1, 20))) * (0.75 + 0.25 * jitter)


class _Failures(msgspec.Struct):
    count: int = 0  # in a row
    why: str = ""
    command: str = ""
    next_s: float = 0.0  # the monotonic clock's


class JobThread:
    """One thread, which calls one provider. All methods but close return at once."""

    def __init__(self, provider: JobProvider, pauses: Pauses | None = None) -> None:
        self._provider, self._pauses = provider, pauses or Pauses()
        self._waiting: dict[Call, dict[str, JobRequest | None]] = {call: {} for call in Call}
        self._failures = {call: _Failures() for call in Call}
        self._last = Call.CANCEL
        self._events: list[JobEvent] = []
        self._changed = threading.Condition()
        self._closing = False
        self.fd, self._wake = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._run, name="oncue-jobs", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ for the loop

    def submit(self, request: JobRequest) -> None:
        """Submit a job. Answered by Submitted or SubmitFailed."""
        self._add(Call.SUBMIT, {request.mark: request})

    def find(self, marks: Iterable[str]) -> None:
        """Look for jobs by their marks. Answered by MarksSearched."""
        self._add(Call.FIND, dict.fromkeys(marks))

    def poll(self, ids: Iterable[str]) -> None:
        """Ask for the states of jobs. Answered by JobsPolled."""
        self._add(Call.POLL, dict.fromkeys(ids))

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs. Answered by JobsCancelled."""
        self._add(Call.CANCEL, dict.fromkeys(ids))

    def _add(self, call: Call, what: Mapping[str, JobRequest | None]) -> None:
        with self._changed:
            self._waiting[call].update(what)
            self._changed.notify()

    def drain(self) -> list[JobEvent]:
        """Return the events since the last time, in order."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        with self._changed:
            events, self._events = self._events, []
        return events

    def trouble(self) -> str:
        """Return which calls fail, why, and when they are tried again; "" if none does."""
        now = time.monotonic()
        with self._changed:
            return "; ".join(_sentence(c, f, now) for c, f in self._failures.items() if f.count)

    def retry_now(self) -> None:
        """End all pauses: the user says that the cause is gone."""
        with self._changed:
            self._failures = {call: _Failures() for call in Call}
            self._changed.notify()

    def close(self, limit_s: float) -> bool:
        """Begin no further call. Return False if the running one does not end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            return False
        os.close(self.fd)
        os.close(self._wake)
        return True

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while (due := self._next_call()) is not None:
            call, what = due
            try:
                self._report(call, self._call(call, what))
            except Exception as e:
                self._failed(call, what, e)

    def _next_call(self) -> tuple[Call, dict[str, JobRequest | None]] | None:
        """Wait until a call is due, and take it. None: the thread shall end."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                waiting = [c for c in self._in_turn() if self._waiting[c]]
                due = [c for c in waiting if self._failures[c].next_s <= now]
                if due:
                    self._last = due[0]
                    return due[0], self._take(due[0])
                next_s = min((self._failures[c].next_s for c in waiting), default=None)
                self._changed.wait(None if next_s is None else next_s - now)
            return None

    def _in_turn(self) -> list[Call]:
        calls = list(Call)
        at = calls.index(self._last) + 1
        return calls[at:] + calls[:at]

    def _take(self, call: Call) -> dict[str, JobRequest | None]:
        """Take what waits for this call: one job to submit, or all names."""
        waiting = self._waiting[call]
        if call is Call.SUBMIT:
            mark = next(iter(waiting))
            return {mark: waiting.pop(mark)}
        self._waiting[call] = {}
        return waiting

    def _call(self, call: Call, what: Mapping[str, JobRequest | None]) -> JobEvent:
        names = tuple(what)
        if call is Call.POLL:
            return JobsPolled(self._provider.jobs(names))
        if call is Call.FIND:
            found = self._provider.find(names)
            return MarksSearched(found, tuple(m for m in names if m not in found))
        if call is Call.CANCEL:
            self._provider.cancel(names)
            return JobsCancelled(names)
        (request,) = what.values()
        assert request is not None, "a submission has its request"
        return Submitted(request.mark, self._provider.submit(request))

    def _failed(self, call: Call, what: Mapping[str, JobRequest | None], e: Exception) -> None:
        """Report a failed submission; let another call wait for its next try."""
        if not isinstance(e, SchedulerError):
            log.exception("%s failed unexpectedly", call.value)
        why, command = (e.message, e.details.get("command", "")) if isinstance(e, OncueError) else (repr(e), "")
        if call is Call.SUBMIT:
            unclear = not isinstance(e, SchedulerAway | SubmissionRefused)
            transient = unclear or isinstance(e, SchedulerAway)
            self._append(SubmitFailed(next(iter(what)), why, command, transient, unclear))
            return
        with self._changed:
            count = self._failures[call].count + 1
            next_s = time.monotonic() + self._pauses.after(count, random.random())
            self._failures[call] = _Failures(count, why, command, next_s)
            self._waiting[call] = dict(what) | self._waiting[call]

    def _report(self, call: Call, event: JobEvent) -> None:
        with self._changed:
            self._failures[call] = _Failures()
        self._append(event)

    def _append(self, event: JobEvent) -> None:
        with self._changed:
            self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the loop will be woken anyhow
            os.write(self._wake, b"1")


def _sentence(call: Call, failures: _Failures, now_s: float) -> str:
    times = "once" if failures.count == 1 else f"{failures.count} times"
    left_s = max(0.0, failures.next_s - now_s)
    when = f"in {left_s:.0f} s" if left_s < 100 else f"in {left_s / 60:.0f} min"
    return f"{failures.command or call.value} failed {times}: {failures.why}; next try {when}"
