"""Providers of PBS jobs, PBS Professional and Torque: qsub, qstat, qselect, qdel.

Both have the same commands; the directives, the answers of qstat and the exit codes differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from oncue.endpoint.options.providers import PbsProOptions, TorqueOptions
from oncue.endpoint.providers.commands import Commands, user_name
from oncue.endpoint.providers.confirmation import Confirmation, exit_reason
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, clock, write_script
from oncue.endpoint.providers.jobs import JobEnding, JobRequest, JobState, JobStatus, SchedulerAway
from oncue.endpoint.providers.submission import submitted

_JOB_ID = re.compile(r"^(\d+(?:\[\])?(?:\.[\w.-]+)?)\s*$", re.MULTILINE)
_UNKNOWN_JOB = re.compile(r"unknown job id|job has finished|invalid state for job|already in exit", re.IGNORECASE)
_WAITING, _RUNNING, _ENDED = frozenset("QWHTM"), frozenset("RESUBE"), frozenset("FXC")
_TERMINATED = 91  # PBS Professional's substate of a job that qdel ended


class Dialect(Protocol):
    """Differences between the members of the PBS family."""

    finished: Sequence[str]  # options of qselect that include jobs that have ended
    question: Sequence[str]  # of qstat
    limits: Mapping[int, JobEnding]  # exit codes of jobs that the scheduler ended
    launcher_options: Mapping[str, str]  # by the launcher, for one process a node

    def directives(self, request: JobRequest) -> Iterable[str]:
        """Return lines of the script that name the size of the job."""
        ...

    def parse(self, out: str) -> dict[str, dict[str, Any]]:
        """Return the attributes of the jobs by id. Raises ValueError."""
        ...


class PbsPro:
    """PBS Professional and OpenPBS."""

    finished: Sequence[str] = ("-x",)
    question: Sequence[str] = ("qstat", "-x", "-f", "-F", "json")
    limits: Mapping[int, JobEnding] = {-29: JobEnding.WALLTIME, -27: JobEnding.MEMORY, -26: JobEnding.MEMORY}
    launcher_options: Mapping[str, str] = {}

    def __init__(self, options: PbsProOptions) -> None:
        self._options = options

    def directives(self, request: JobRequest) -> Iterable[str]:
        at = self._options
        chunk = [f"{request.nodes}"]
        if cores := request.cores or at.cores_per_node:
            chunk.append(f"ncpus={cores}")
        if memory := request.memory or at.memory_per_node:
            chunk.append(f"mem={-(-memory // (1 << 20))}mb")
        if gpus := request.gpus or at.gpus_per_node:
            chunk.append(f"ngpus={gpus}")
        if at.select_options:
            chunk.append(at.select_options.strip(":"))
        yield f"#PBS -l select={':'.join(chunk)}"
        if request.nodes > 1:
            yield "#PBS -l place=scatter"

    def parse(self, out: str) -> dict[str, dict[str, Any]]:
        answer = json.loads(out)
        jobs = answer.get("Jobs", {}) if isinstance(answer, dict) else None
        if not isinstance(jobs, dict) or not all(isinstance(job, dict) for job in jobs.values()):
            raise ValueError
        return jobs


class Torque:
    """Torque, whose qstat prints one attribute a line."""

    finished: Sequence[str] = ()
    question: Sequence[str] = ("qstat", "-f", "-1")
    limits: Mapping[int, JobEnding] = {-11: JobEnding.MEMORY, -12: JobEnding.WALLTIME, -13: JobEnding.WALLTIME}
    launcher_options: Mapping[str, str] = {"pbsdsh": "-u"}  # else it starts one for each core

    def __init__(self, options: TorqueOptions) -> None:
        self._options = options

    def directives(self, request: JobRequest) -> Iterable[str]:
        at = self._options
        nodes = f"nodes={request.nodes}"
        if cores := request.cores or at.cores_per_node:
            nodes += f":ppn={cores}"
        if gpus := request.gpus or at.gpus_per_node:
            nodes += f":gpus={gpus}"
        yield f"#PBS -l {nodes}"
        if memory := request.memory or at.memory_per_node:
            yield f"#PBS -l mem={-(-memory * request.nodes // (1 << 20))}mb"

    def parse(self, out: str) -> dict[str, dict[str, Any]]:
        jobs: dict[str, dict[str, Any]] = {}
        attributes: dict[str, Any] | None = None
        for line in out.splitlines():
            name, separator, value = line.strip().partition(" = ")
            if line.startswith("Job Id:"):
                attributes = jobs[line.partition(":")[2].strip()] = {}
            elif separator and attributes is not None:
                attributes[name] = value
            elif line.strip():
                raise ValueError
        return jobs


class PbsProvider:
    """Jobs of one member of the PBS family. Their files are in `files`."""

    def __init__(
        self,
        options: PbsProOptions | TorqueOptions,
        dialect: Dialect,
        files: JobFiles,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._options, self._dialect, self._files = options, dialect, files
        self._commands = Commands(options.command_timeout_ms / 1000, environ)
        self._confirmation = Confirmation(files)
        self._me = user_name()

    def submit(self, request: JobRequest) -> str:
        at = self._options
        more = f"{self._dialect.launcher_options.get(at.launcher, '')} {at.launcher_options}".strip()
        launch = LaunchOptions(at.worker_init, at.launcher, more)
        script = write_script(self._files, request, self._directives(request), launch)
        job = submitted(self._commands, ["qsub", "-N", request.mark, "-r", "n", script], _JOB_ID)
        self._files.bind(job, request.mark)
        return job

    def _directives(self, request: JobRequest) -> Iterable[str]:
        at, path = self._options, self._files.path
        yield "#PBS -S /bin/bash"
        yield "#PBS -m n"
        yield f"#PBS -o {path(request.mark, '.out')}"
        yield f"#PBS -e {path(request.mark, '.err')}"
        yield f"#PBS -l walltime={clock(request.walltime_s)}"
        yield from self._dialect.directives(request)
        if at.queue:
            yield f"#PBS -q {at.queue}"
        if at.account:
            yield f"#PBS -A {at.account}"
        yield at.scheduler_options.rstrip("\n")

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        done = self._commands.run(*self._dialect.question, *ids)
        if done.failed_but_for(_UNKNOWN_JOB):
            raise SchedulerAway(done.why, command="qstat")
        try:
            answers = self._dialect.parse(done.out) if done.out.strip() else {}
        except ValueError:
            raise SchedulerAway(f"qstat: its answer is not understood: {done.out[:200]!r}", command="qstat") from None
        # The server's name may be longer or shorter in the answer than in that of qsub.
        by_number = {job.partition(".")[0]: attributes for job, attributes in answers.items()}
        listed = {
            job: _status(attributes, self._dialect.limits)
            for job in ids
            if (attributes := by_number.get(job.partition(".")[0])) is not None
        }
        return self._confirmation.complete(ids, listed, whole=bool(done.out.strip() or done.err.strip()))

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for mark in marks:
            done = self._commands.run("qselect", *self._dialect.finished, "-u", self._me, "-N", mark)
            if done.code != 0:
                raise SchedulerAway(done.why, command="qselect")
            if job := _JOB_ID.search(done.out):
                found[mark] = job[1]
                self._files.bind(job[1], mark)
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        done = self._commands.run("qdel", *ids)
        if done.failed_but_for(_UNKNOWN_JOB):
            raise SchedulerAway(done.why, command="qdel")
        self._confirmation.cancelled(ids)


def pbspro(options: PbsProOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> PbsProvider:
    return PbsProvider(options, PbsPro(options), files, environ)


def torque(options: TorqueOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> PbsProvider:
    return PbsProvider(options, Torque(options), files, environ)


def _status(attributes: Mapping[str, Any], limits: Mapping[int, JobEnding]) -> JobStatus:
    state, reason = str(attributes.get("job_state", "")), str(attributes.get("comment", ""))
    hosts = str(attributes.get("exec_host", "")).split("+")
    nodes = tuple(dict.fromkeys(host.partition("/")[0] for host in hosts if host))
    if state in _WAITING:
        return JobStatus(JobState.PENDING, state, reason or {"H": "held", "W": "waiting for its time"}.get(state, ""))
    if state not in _ENDED:  # also an unknown letter: a job that has ended is shown as such
        return JobStatus(JobState.RUNNING, state, reason, nodes)
    text = str(attributes.get("Exit_status", attributes.get("exit_status", "")))
    status = int(text) if re.fullmatch(r"-?\d+", text) else None
    terminated = str(attributes.get("substate", "")) == str(_TERMINATED)
    ending = _ending(status, limits, terminated)
    code = status if status is None or 0 <= status < 256 else status - 256 + 128 if status > 256 else None
    words = f"exit status {status}" if code is None else exit_reason(code)
    return JobStatus(JobState.ENDED, state, reason or ("" if not status else words), nodes, ending, code)


def _ending(status: int | None, limits: Mapping[int, JobEnding], terminated: bool) -> JobEnding:
    if status is None or terminated:  # deleted before it ran, or while it did
        return JobEnding.CANCELLED
    if status in limits:
        return limits[status]
    if status == 0:
        return JobEnding.COMPLETED
    if status < 0:  # the node could not run it
        return JobEnding.NODE
    return JobEnding.CANCELLED if status in (256 + 9, 256 + 15) else JobEnding.FAILED
