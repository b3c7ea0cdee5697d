"""Provider of HTCondor jobs: condor_submit, condor_q, condor_history, condor_rm.

A job's file carries its mark as an attribute, by which it is found. Jobs stay in the queue for an
hour after their end, then condor_history knows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from oncue.endpoint.options.providers import CondorOptions
from oncue.endpoint.providers.commands import Commands
from oncue.endpoint.providers.confirmation import Confirmation, exit_reason
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, write_script
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobRequest,
    JobState,
    JobStatus,
    SchedulerAway,
    SubmissionRefused,
)
from oncue.endpoint.providers.submission import submitted

_CLUSTER = re.compile(r"submitted to cluster (\d+)")
_FIELDS = ("JobStatus", "ExitCode", "ExitBySignal", "ExitSignal", "RemoteHost", "OncueMark", "HoldReason")
_UNKNOWN_JOB = re.compile(r"not found|couldn't find|already marked|does not exist", re.IGNORECASE)
_IDLE, _RUNNING, _REMOVED, _COMPLETED, _HELD, _OUTPUT, _SUSPENDED = range(1, 8)


class CondorProvider:
    """Jobs of HTCondor, each on one slot. Their files are in `files`."""

    def __init__(self, options: CondorOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> None:
        self._options, self._files = options, files
        self._commands = Commands(options.command_timeout_ms / 1000, environ)
        self._confirmation = Confirmation(files, self._from_history)

    def submit(self, request: JobRequest) -> str:
        at = self._options
        if request.nodes > 1:
            raise SubmissionRefused(
                f"HTCondor gives one slot a job, and a block has {request.nodes} nodes",
                remedy="set `blocks: {nodes: 1}` in endpoint.yaml, and a larger max",
            )
        launch = LaunchOptions(at.worker_init, at.launcher, at.launcher_options)
        script = write_script(self._files, request, [], launch)
        text = "\n".join((*self._description(request, script), "queue", ""))
        try:
            description = self._files.write(request.mark, ".submit", text)
        except OSError as e:
            raise SubmissionRefused(f"the job's description cannot be written: {e.strerror}") from None
        job = submitted(self._commands, ["condor_submit", str(description)], _CLUSTER) + ".0"
        self._files.bind(job, request.mark)
        return job

    def _description(self, request: JobRequest, script: str) -> Iterable[str]:
        at, path = self._options, self._files.path
        yield "universe = vanilla"
        yield f"executable = {script}"
        yield f"output = {path(request.mark, '.out')}"
        yield f"error = {path(request.mark, '.err')}"
        yield f"log = {path(request.mark, '.log')}"
        yield "should_transfer_files = YES"
        yield "when_to_transfer_output = ON_EXIT_OR_EVICT"
        yield f'+OncueMark = "{request.mark}"'
        yield "leave_in_queue = (JobStatus == 4) && ((time() - EnteredCurrentStatus) < 3600)"
        yield "max_retries = 0"
        yield "on_exit_remove = True"
        # A job that was evicted, or has run for its time, does not run again.
        walltime = f"JobStatus == 2 && (time() - EnteredCurrentStatus) > {request.walltime_s}"
        yield f"periodic_remove = (NumJobStarts > 1) || ({walltime})"
        if cores := request.cores or at.cores_per_node:
            yield f"request_cpus = {cores}"
        if memory := request.memory or at.memory_per_node:
            yield f"request_memory = {-(-memory // (1 << 20))}"
        if gpus := request.gpus or at.gpus_per_node:
            yield f"request_gpus = {gpus}"
        if at.requirements:
            yield f"requirements = {at.requirements}"
        if at.project:
            yield f'+ProjectName = "{at.project}"'
        yield at.scheduler_options.rstrip("\n")

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        rows, whole = self._ask("condor_q", *ids)
        return self._confirmation.complete(ids, {job: _status(row) for job, row in rows.items()}, whole=whole)

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        wanted = " || ".join(f'OncueMark == "{mark}"' for mark in marks)
        rows, _ = self._ask("condor_q", "-constraint", wanted)
        found = {row[5]: job for job, row in rows.items() if row[5] in marks}
        for mark, job in found.items():
            self._files.bind(job, mark)
        return found

    def _ask(self, command: str, *which: str) -> tuple[dict[str, list[str]], bool]:
        """Return the fields of this user's jobs by id; True if all lines were understood."""
        done = self._commands.run(command, *which, "-af:jr", *_FIELDS)
        if done.code != 0:
            raise SchedulerAway(done.why, command=command)
        lines = [[part.strip('"') for part in line.split(None, len(_FIELDS))] for line in done.out.splitlines()]
        rows = {line[0]: line[1:] for line in lines if len(line) > len(_FIELDS) and line[1].isdigit()}
        if lines and not rows:
            raise SchedulerAway(f"{command}: its answer is not understood: {done.out[:200]!r}", command=command)
        return rows, len(rows) == len(lines)

    def _from_history(self, job: str) -> JobStatus | None:
        rows, _ = self._ask("condor_history", job, "-limit", "1")
        return _status(rows[job]) if job in rows else None

    def cancel(self, ids: Sequence[str]) -> None:
        done = self._commands.run("condor_rm", *ids)
        if done.code != 0 and not _UNKNOWN_JOB.search(done.out + done.err):
            raise SchedulerAway(done.why, command="condor_rm")
        self._confirmation.cancelled(ids)


def _status(row: Sequence[str]) -> JobStatus:
    """Return the state of a job from its fields, in the order of _FIELDS."""
    state, code_text, by_signal, signal_text, host, _, held = ("" if f == "undefined" else f for f in row)
    number = int(state)
    nodes = (host.rpartition("@")[2],) if host else ()
    if number == _HELD:
        return JobStatus(JobState.PENDING, "held", f"held: {held}")
    if number == _REMOVED:
        return JobStatus(JobState.ENDED, "removed", held, nodes, JobEnding.CANCELLED)
    if number == _COMPLETED:
        code = 128 + int(signal_text) if by_signal == "true" and signal_text.isdigit() else None
        code = int(code_text) if code is None and code_text.isdigit() else code
        ending = JobEnding.COMPLETED if code == 0 else JobEnding.FAILED
        return JobStatus(JobState.ENDED, "completed", "" if not code else exit_reason(code), nodes, ending, code)
    if number in (_RUNNING, _OUTPUT, _SUSPENDED):
        return JobStatus(JobState.RUNNING, "running", "", nodes)
    return JobStatus(JobState.PENDING, "idle", "no slot has matched yet")
