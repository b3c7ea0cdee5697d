"""Waits until a job is in a state, polling its provider as the agent does."""

from __future__ import annotations

import time

from oncue.endpoint.providers.jobs import JobProvider, JobState, JobStatus, SchedulerAway

LIMIT_S = 60.0


def wait(
    provider: JobProvider, job: str, *states: JobState, may_be_away: bool = False, limit_s: float = LIMIT_S
) -> JobStatus:
    """Poll a job until it is in one of these states. `may_be_away`: also while the scheduler is away."""
    end = time.monotonic() + limit_s
    status: JobStatus | str | None = None
    while time.monotonic() < end:
        try:
            status = provider.jobs([job]).get(job)
        except SchedulerAway as e:
            if not may_be_away:
                raise
            status = str(e)
        if isinstance(status, JobStatus) and status.state in states:
            return status
        time.sleep(0.05)
    raise AssertionError(f"job {job} is {status} after {limit_s:.0f} s")
