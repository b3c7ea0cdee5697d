"""Events that the job thread reports to the agent's loop."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from oncue.endpoint.providers.jobs import JobStatus


class Submitted(msgspec.Struct, frozen=True):
    """The scheduler has accepted the job with this mark."""

    mark: str
    job: str


class SubmitFailed(msgspec.Struct, frozen=True):
    """The job with this mark was not accepted, or nobody knows.

    `transient`: the same submission may succeed later. `unclear`: the job may have been accepted
    all the same; see SETTLE_S in jobs.py.
    """

    mark: str
    why: str
    command: str = ""  # that failed, such as sbatch
    transient: bool = False
    unclear: bool = False


class JobsPolled(msgspec.Struct, frozen=True):
    """States of jobs, by id; unknown ones are left out."""

    jobs: Mapping[str, JobStatus]


class MarksSearched(msgspec.Struct, frozen=True):
    """Result of a search: the ids of the jobs that were found, by their marks."""

    found: Mapping[str, str]
    missing: tuple[str, ...]


class JobsCancelled(msgspec.Struct, frozen=True):
    """The scheduler will end these jobs. JobsPolled says when it has."""

    jobs: tuple[str, ...]


JobEvent = Submitted | SubmitFailed | JobsPolled | MarksSearched | JobsCancelled
