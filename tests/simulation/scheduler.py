"""A batch scheduler on virtual time, with the faults that real ones have."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from oncue.endpoint.providers.jobs import JobEnding, JobState, JobStatus
from tests.simulation.clock import Clock

SECOND = 1_000_000


class SimJob(msgspec.Struct, eq=False):
    id: str
    mark: str
    nodes: int
    walltime_s: float
    submitted_us: int
    started_us: int = 0
    state: JobState = JobState.PENDING
    ending: JobEnding | None = None
    exit: int | None = None
    reason: str = "Resources"
    dies: bool = False  # before a worker has registered
    late_us: int = 0  # not listed before


class SubmitError(Exception):
    def __init__(self, why: str, *, transient: bool, unclear: bool) -> None:
        super().__init__(why)
        self.why, self.transient, self.unclear = why, transient, unclear


class SimScheduler:
    """`on_state` is told of each job that starts or ends."""

    def __init__(self, clock: Clock, rng: random.Random, on_state: Callable[[SimJob], None]) -> None:
        self.clock, self.rng, self._on_state = clock, rng, on_state
        self.all: dict[str, SimJob] = {}
        self.away = False  # nothing is answered
        self.refuses = ""  # why every submission is refused
        self.lost_answers = 0.0  # share of the submissions whose answer is lost
        self.swallowed = 0.0  # share of those that never arrived
        self.dying = 0.0  # share of the jobs that die at once
        self.queue_s: tuple[float, float] = (1.0, 30.0)
        self._n = 0

    def submit(self, mark: str, nodes: int, walltime_s: float) -> str:
        if self.away:
            raise SubmitError("Unable to contact slurm controller", transient=True, unclear=False)
        if self.refuses:
            raise SubmitError(self.refuses, transient=False, unclear=False)
        lost = self.rng.random() < self.lost_answers
        if lost and self.rng.random() < self.swallowed:
            raise SubmitError("sbatch did not end within 30 s", transient=True, unclear=True)
        self._n += 1
        job = SimJob(str(self._n), mark, nodes, walltime_s, self.clock.now_us, dies=self.rng.random() < self.dying)
        self.all[job.id] = job
        if lost:  # and the controller takes its time
            job.late_us = self.clock.now_us + self.rng.randrange(100 * SECOND)
        wait = self.rng.uniform(*self.queue_s) * SECOND
        self.clock.at(max(int(self.clock.now_us + wait), job.late_us), lambda: self._start(job))
        if lost:
            raise SubmitError("sbatch did not end within 30 s", transient=True, unclear=True)
        return job.id

    def _start(self, job: SimJob) -> None:
        if job.state is not JobState.PENDING:
            return
        job.state, job.reason, job.started_us = JobState.RUNNING, "", self.clock.now_us
        self.clock.note(f"job {job.id} starts ({job.mark})")
        if job.dies:
            self.clock.after(self.rng.randrange(1, 3 * SECOND), lambda: self.end(job, JobEnding.FAILED, 127))
        self.clock.after(job.walltime_s * SECOND, lambda: self.end(job, JobEnding.WALLTIME, None))
        self._on_state(job)

    def end(self, job: SimJob, ending: JobEnding, exit_code: int | None) -> None:
        if job.state is JobState.ENDED:
            return
        job.state, job.ending, job.exit, job.reason = JobState.ENDED, ending, exit_code, "NonZeroExitCode"
        self.clock.note(f"job {job.id} ends: {ending.value}")
        self._on_state(job)

    def jobs(self, ids: tuple[str, ...]) -> dict[str, JobStatus]:
        """A listing that leaves out what it does not know yet, and now and then something more."""
        found = {}
        for job in (self.all[i] for i in ids if i in self.all):
            if job.late_us > self.clock.now_us or self.rng.random() < 0.05:
                continue
            tail = "bash: oncue: command not found\n" if job.dies else ""
            found[job.id] = JobStatus(
                job.state, job.state.name, job.reason, ending=job.ending, exit=job.exit, stderr_tail=tail
            )
        return found

    def find(self, marks: tuple[str, ...]) -> dict[str, str]:
        return {j.mark: j.id for j in self.all.values() if j.mark in marks and j.late_us <= self.clock.now_us}

    def cancel(self, ids: tuple[str, ...]) -> None:
        for job in [self.all[i] for i in ids if i in self.all]:
            self.end(job, JobEnding.CANCELLED, None)

    def live(self) -> list[SimJob]:
        return [j for j in self.all.values() if j.state is not JobState.ENDED]
