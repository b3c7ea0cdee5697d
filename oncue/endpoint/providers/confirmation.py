"""Confirms that jobs have ended which the scheduler lists no more.

A scheduler forgets an ended job within minutes, lists a new one late, and sometimes answers with
half of its jobs. So a job that is missing has ended only if

- its script left an exit code behind, or
- the provider's second way of asking knows its end, or
- it was missing from ANSWERS whole answers over MISSING_S seconds, or since the endpoint has
  cancelled it, and the second way does not find it either.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.jobs import JobEnding, JobState, JobStatus, SchedulerAway

ANSWERS, MISSING_S = 3, 30.0
MOST_QUESTIONS = 5  # asked the second way in one call

FORGOTTEN = JobStatus(
    JobState.ENDED,
    reason="the scheduler does not list the job any more, and no exit code was left behind",
    ending=JobEnding.UNKNOWN,
)
CANCELLED = JobStatus(JobState.ENDED, reason="cancelled by the endpoint", ending=JobEnding.CANCELLED)


class Confirmation:
    """Jobs of one provider that are missing.

    `ask_again` asks for one job in a second way: its state, or None if it is not found; raises
    SchedulerAway. `at_once`: it is asked as soon as a job is missing. `clock` returns seconds.
    """

    def __init__(
        self,
        files: JobFiles,
        ask_again: Callable[[str], JobStatus | None] = lambda job: None,
        *,
        at_once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._ask_again, self._at_once, self._clock = files, ask_again, at_once, clock
        self._missing: dict[str, tuple[int, float]] = {}  # number of answers, time of the first
        self._cancelled: set[str] = set()

    def cancelled(self, ids: Sequence[str]) -> None:
        """Expect these jobs to end: a scheduler keeps no record of one that had not begun."""
        self._cancelled |= set(ids)

    def complete(self, ids: Sequence[str], listed: Mapping[str, JobStatus], *, whole: bool) -> dict[str, JobStatus]:
        """Return the states of these jobs, as far as they are known.

        `listed` is the scheduler's answer; `whole`: a job that is not in it is not listed.
        """
        known: dict[str, JobStatus] = {}
        questions = 0
        for job in ids:
            status = listed.get(job)
            if status is not None:
                self._missing.pop(job, None)
            elif whole:
                status, asked = self._look(job, may_ask=questions < MOST_QUESTIONS)
                questions += asked
            if status is not None:
                known[job] = self._with_files(job, status)
        return known

    def _look(self, job: str, may_ask: bool) -> tuple[JobStatus | None, bool]:
        """Return a missing job's state, if known, and True if the scheduler was asked."""
        if (code := self._files.exit_code(job)) is not None:
            return self._left_behind(job, code, may_ask)
        now_s = self._clock()
        count, since_s = self._missing.get(job, (0, now_s))
        self._missing[job] = (count + 1, since_s)
        over = count + 1 >= ANSWERS and (job in self._cancelled or now_s - since_s >= MISSING_S)
        if not may_ask or not (over or self._at_once):
            return None, False
        try:
            status = self._ask_again(job)
        except SchedulerAway:
            return None, True
        if status is None and over:
            status = CANCELLED if job in self._cancelled else FORGOTTEN
        if status is not None:
            self._missing.pop(job, None)
        return status, True

    def _left_behind(self, job: str, code: int, may_ask: bool) -> tuple[JobStatus, bool]:
        """Return the end of a job whose script left its exit code."""
        self._missing.pop(job, None)
        ending = JobEnding.COMPLETED if code == 0 else JobEnding.FAILED
        status = JobStatus(JobState.ENDED, reason=exit_reason(code) if code else "", ending=ending, exit=code)
        if code > 128 and job in self._cancelled:
            return msgspec.structs.replace(CANCELLED, exit=code), False
        if code <= 128 or not may_ask:
            return status, False
        with contextlib.suppress(SchedulerAway):  # a signal: the scheduler may know whose
            known = self._ask_again(job)
            if known is not None and known.state is JobState.ENDED:
                return known, True
        return status, True

    def _with_files(self, job: str, status: JobStatus) -> JobStatus:
        """Add to an ended job what its script left behind."""
        if status.state is not JobState.ENDED:
            return status
        self._cancelled.discard(job)
        code = self._files.exit_code(job) if status.exit is None else status.exit
        return msgspec.structs.replace(status, exit=code, stderr_tail=self._files.stderr_tail(job))


def exit_reason(code: int) -> str:
    """Return an exit code in words."""
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
