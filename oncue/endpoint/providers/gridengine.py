"""Provider of Grid Engine jobs: qsub, qstat, qacct, qdel.

`qstat` lists waiting and running jobs only. The end of a job is in the accounting, which `qacct`
reads; where that takes too long, the exit code that the job's script left behind counts.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence

from oncue.endpoint.options.providers import GridEngineOptions
from oncue.endpoint.providers.commands import CommandHung, Commands, user_name
from oncue.endpoint.providers.confirmation import Confirmation, exit_reason
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, clock, write_script
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobRequest,
    JobState,
    JobStatus,
    SchedulerAway,
    SubmissionRefused,
)
from oncue.endpoint.providers.submission import submitted

_JOB_ID = re.compile(r"^(\d+)\s*$", re.MULTILINE)
_QACCT_S = 10.0  # it reads a file that grows for years
_GONE = re.compile(r"does not exist|already in deletion|has deleted|registered the job", re.IGNORECASE)
#: `failed` in the accounting, see sge_status(5): 37 and 40 are limits that the scheduler enforced.
_LIMITS = frozenset({"37", "40"})
_KILLED = "100"  # the script ran, and was ended by a signal


class GridEngineProvider:
    """Jobs of Grid Engine. Their files are in `files`."""

    def __init__(self, options: GridEngineOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> None:
        self._options, self._files = options, files
        self._commands = Commands(options.command_timeout_ms / 1000, environ)
        self._confirmation = Confirmation(files, self._from_accounting, at_once=True)
        self._me = user_name()

    def submit(self, request: JobRequest) -> str:
        at = self._options
        if request.nodes > 1 and not at.parallel_environment:
            raise SubmissionRefused(
                f"a block of {request.nodes} nodes needs a parallel environment",
                remedy="name one in endpoint.yaml, `provider: {parallel_environment: ...}`; `qconf -spl` lists them",
            )
        launch = LaunchOptions(at.worker_init, at.launcher, at.launcher_options)
        script = write_script(self._files, request, self._directives(request), launch)
        job = submitted(self._commands, ["qsub", "-terse", "-N", request.mark, "-r", "n", script], _JOB_ID)
        self._files.bind(job, request.mark)
        return job

    def _directives(self, request: JobRequest) -> Iterable[str]:
        at, path = self._options, self._files.path
        memory, gpus = request.memory or at.memory_per_node, request.gpus or at.gpus_per_node
        yield "#$ -S /bin/bash"
        yield f"#$ -o {path(request.mark, '.out')}"
        yield f"#$ -e {path(request.mark, '.err')}"
        yield f"#$ -l h_rt={clock(request.walltime_s)}"
        if at.queue:
            yield f"#$ -q {at.queue}"
        if at.project:
            yield f"#$ -P {at.project}"
        slots = request.nodes * max(1, request.cores or at.cores_per_node)
        if at.parallel_environment:
            yield f"#$ -pe {at.parallel_environment} {slots}"
        if memory:
            yield f"#$ -l h_vmem={-(-memory // (1 << 20))}M"
        if gpus:
            yield f"#$ -l gpu={gpus}"
        yield at.scheduler_options.rstrip("\n")

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        listed = {job: status for job, (_, status) in self._qstat().items()}
        return self._confirmation.complete(ids, listed, whole=True)

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        found = {mark: job for job, (mark, _) in self._qstat().items() if mark in marks}
        for mark, job in found.items():
            self._files.bind(job, mark)
        return found

    def _qstat(self) -> dict[str, tuple[str, JobStatus]]:
        """Return the names and states of this user's jobs by id: one answer for all."""
        done = self._commands.run("qstat", "-xml", "-u", self._me)
        if done.code != 0:
            raise SchedulerAway(done.why, command="qstat")
        try:
            root = ET.fromstring(done.out)
        except ET.ParseError:
            raise SchedulerAway(f"qstat: its answer is not understood: {done.out[:200]!r}", command="qstat") from None
        jobs: dict[str, tuple[str, JobStatus]] = {}
        for row in root.iter("job_list"):
            state = row.findtext("state", "")
            jobs[row.findtext("JB_job_number", "")] = (
                row.findtext("JB_name", ""),
                _status(state, row.findtext("queue_name", "") or ""),
            )
        return jobs

    def _from_accounting(self, job: str) -> JobStatus | None:
        try:
            done = self._commands.run("qacct", "-j", job, timeout_s=_QACCT_S)
        except CommandHung:
            return None
        if done.code != 0:
            return None
        facts = {}
        for line in done.out.splitlines():
            name, _, value = line.partition(" ")
            facts[name] = value.strip()
        return _ending(facts)

    def cancel(self, ids: Sequence[str]) -> None:
        done = self._commands.run("qdel", *ids)
        said = [line for line in (done.out + done.err).splitlines() if line.strip() and not _GONE.search(line)]
        if done.code != 0 and said:
            raise SchedulerAway(done.why, command="qdel")
        self._confirmation.cancelled(ids)


def _status(state: str, queue: str) -> JobStatus:
    """Return the state of a listed job from its letters: qw, hqw, t, r, dr, Eqw ..."""
    nodes = (queue.partition("@")[2],) if "@" in queue else ()
    if "E" in state:
        return JobStatus(JobState.PENDING, state, f"error state {state}: `qstat -j` tells why; the job waits for ever")
    if "w" in state or state == "t":
        reason = "held" if "h" in state else "starting" if state == "t" else "waiting for free slots"
        return JobStatus(JobState.PENDING, state, reason, nodes)
    return JobStatus(JobState.RUNNING, state, "", nodes)


def _ending(facts: Mapping[str, str]) -> JobStatus:
    """Return the end of a job from its accounting record."""
    failed, _, why = facts.get("failed", "0").partition(" ")
    code_text = facts.get("exit_status", "").split(" ")[0]
    code = int(code_text) if code_text.isdigit() else None
    why = why.lstrip(" :").strip()
    if failed == "0":
        ending = JobEnding.COMPLETED if code == 0 else JobEnding.FAILED
    elif failed in _LIMITS:
        ending = JobEnding.WALLTIME
    else:
        ending = JobEnding.CANCELLED if failed == _KILLED else JobEnding.NODE
    reason = why or ("" if not code else exit_reason(code))
    return JobStatus(JobState.ENDED, f"failed {failed}", reason, (facts.get("hostname", ""),), ending, code)
