"""Interface of a provider of jobs: submits, polls, finds and cancels jobs.

A job is what a scheduler runs for one block: a script that starts a pool on each of its nodes.

    submit(request) ──► PENDING ──the scheduler starts it──► RUNNING ──its end is confirmed──► ENDED

The contract of every provider:

- *Calls block*, for at most the time that a provider gives its commands. So they are made in a
  thread of their own (job_thread.py), one at a time.
- *One job for one mark.* The caller records `JobRequest.mark` before it calls `submit`, and the
  provider writes it into the job's name. A submission whose answer was lost raises
  SubmissionUnclear: the caller asks `find` for the mark until SETTLE_S seconds have passed, and
  does not submit again before.
- *Jobs in bulk.* `jobs` asks the scheduler once for all jobs, never once a job. A job that the
  answer leaves out is unknown: its last state holds.
- *ENDED is final.* It is reported only when it is confirmed: by the scheduler's own record of the
  end, by the exit code that the job's script left behind, or after the scheduler has not listed
  the job in several answers. A job that is not listed yet is not ENDED, nor is any job while the
  scheduler does not answer.
- *`reason` is for the user*: why a job waits or has ended, in the scheduler's own words.
- *Strangers' jobs are never taken for one's own*: `find` looks at the jobs of this user only.
- *Errors.* SubmissionRefused: nothing was submitted, and asking again as before is useless.
  SchedulerAway: nothing was done; the same call may succeed later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from oncue.errors import OncueError

# A submission whose answer was lost is found within this time, or never arrived.
SETTLE_S = 120.0


class SchedulerError(OncueError):
    """The batch scheduler did not do what the endpoint asked for."""

    code = "scheduler"


class SchedulerAway(SchedulerError):
    """The batch scheduler does not answer. The endpoint tries again later."""

    code = "scheduler-away"


class SubmissionRefused(SchedulerError):
    """The batch scheduler refused the job; nothing was submitted."""

    code = "submission-refused"


class SubmissionUnclear(SchedulerError):
    """The answer to a submission was lost. The job is looked for by its name."""

    code = "submission-unclear"


class JobState(Enum):
    """State of a job."""

    PENDING = "pending"  # queued, held, or its nodes are being prepared
    RUNNING = "running"  # also while it is suspended, or being ended
    ENDED = "ended"  # final


class JobEnding(Enum):
    """Kind of a job's end."""

    COMPLETED = "completed"  # exit code 0
    FAILED = "failed"  # another exit code, or a signal
    CANCELLED = "cancelled"  # by the user, an administrator, or a preemption
    WALLTIME = "walltime"
    NODE = "node"  # a node failed, or could not be prepared
    MEMORY = "memory"
    UNKNOWN = "unknown"  # the scheduler has forgotten the job, and no exit code was left behind


class JobRequest(msgspec.Struct, frozen=True):
    """Job to submit."""

    mark: str  # its name, unique: letters, digits and hyphens, a letter first
    command: str  # for a shell; the launcher runs it once on each node
    nodes: int = 1
    walltime_s: int = 3600
    environment: Mapping[str, str] = {}  # exported by the job's script, which only its user can read
    cores: int = 0  # a node; 0 leaves it to the scheduler
    memory: int = 0  # bytes a node
    gpus: int = 0  # a node
    cleanup: str = ""  # for a shell; the script runs it on its node when the command has ended


class JobStatus(msgspec.Struct, frozen=True):
    """State of a job, and what a user should know of it."""

    state: JobState
    native: str = ""  # the scheduler's word for the state
    reason: str = ""
    nodes: tuple[str, ...] = ()  # names, as far as known
    ending: JobEnding | None = None  # if ENDED
    exit: int | None = None  # as a shell says it: 128 + n for signal n
    stderr_tail: str = ""  # the last lines that the job's script wrote, if ENDED
    position: int | None = None  # in the queue, where the scheduler says it


class JobProvider(Protocol):
    """A scheduler's jobs. See the contract above. All methods raise SchedulerAway."""

    def submit(self, request: JobRequest) -> str:
        """Submit a job and return its id. Raises SubmissionRefused, SubmissionUnclear."""
        ...

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the states of these jobs, except unknown ones."""
        ...

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        """Return {mark: job id} of this user's listed jobs with these marks."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask the scheduler to end these jobs. Ended and unknown ones are left alone."""
        ...
