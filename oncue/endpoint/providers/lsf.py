"""Provider of LSF jobs (IBM Spectrum LSF 9.1 or newer): bsub, bjobs, bkill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from oncue.endpoint.options.providers import LsfOptions
from oncue.endpoint.providers.commands import Commands
from oncue.endpoint.providers.confirmation import Confirmation, exit_reason
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, write_script
from oncue.endpoint.providers.jobs import JobEnding, JobRequest, JobState, JobStatus, SchedulerAway
from oncue.endpoint.providers.submission import submitted

_JOB_ID = re.compile(r"^Job <(\d+)> is submitted to", re.MULTILINE)
_FIELDS = ("jobid", "stat", "exit_code", "exec_host", "job_name", "exit_reason", "pend_reason")
_FORMAT = f"{' '.join(_FIELDS)} delimiter='|'"
_UNKNOWN_JOB = re.compile(r"is not found|no matching job|no unfinished job|already finished", re.IGNORECASE)
_WAITING = frozenset({"PEND", "PSUSP", "WAIT", "FWD_PEND"})
#: UNKWN: the job's host does not answer; it may come back with the job still running.
_RUNNING = frozenset({"RUN", "USUSP", "SSUSP", "PROV", "UNKWN", "ZOMBI"})
_KILLED = {
    "TERM_RUNLIMIT": JobEnding.WALLTIME,
    "TERM_DEADLINE": JobEnding.WALLTIME,
    "TERM_MEMLIMIT": JobEnding.MEMORY,
    "TERM_SWAP": JobEnding.MEMORY,
    "TERM_OWNER": JobEnding.CANCELLED,
    "TERM_ADMIN": JobEnding.CANCELLED,
    "TERM_FORCE": JobEnding.CANCELLED,
    "TERM_PREEMPT": JobEnding.CANCELLED,
    "TERM_ORPHAN": JobEnding.CANCELLED,
    "TERM_ZOMBIE": JobEnding.NODE,
    "TERM_UNKNOWN": JobEnding.NODE,
}


class LsfProvider:
    """Jobs of LSF. Their files are in `files`."""

    def __init__(self, options: LsfOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> None:
        self._options, self._files = options, files
        self._commands = Commands(options.command_timeout_ms / 1000, environ)
        self._confirmation = Confirmation(files)

    def submit(self, request: JobRequest) -> str:
        at = self._options
        launch = LaunchOptions(at.worker_init, at.launcher, at.launcher_options)
        script = write_script(self._files, request, self._directives(request), launch)
        with open(script, encoding="utf-8") as file:
            text = file.read()
        # bsub copies what it reads from stdin: the file may be gone when the job starts.
        job = submitted(self._commands, ["bsub", "-J", request.mark, "-rn"], _JOB_ID, stdin=text)
        self._files.bind(job, request.mark)
        return job

    def _directives(self, request: JobRequest) -> Iterable[str]:
        at, path = self._options, self._files.path
        cores, gpus = request.cores or at.cores_per_node, request.gpus or at.gpus_per_node
        yield "#BSUB -L /bin/bash"
        yield f"#BSUB -o {path(request.mark, '.out')}"
        yield f"#BSUB -e {path(request.mark, '.err')}"
        yield f"#BSUB -W {max(1, -(-request.walltime_s // 60))}"
        if at.request_by_nodes:
            yield f"#BSUB -nnodes {request.nodes}"
        else:
            yield f"#BSUB -n {request.nodes * max(1, cores)}"
            yield f'#BSUB -R "span[ptile={max(1, cores)}]"'
        if memory := request.memory or at.memory_per_node:
            yield f'#BSUB -R "rusage[mem={-(-memory // (1 << 20))}MB]"'
        if gpus:
            yield f'#BSUB -gpu "num={gpus}"'
        if at.queue:
            yield f"#BSUB -q {at.queue}"
        if at.project:
            yield f"#BSUB -P {at.project}"
        yield at.scheduler_options.rstrip("\n")

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        rows, whole = self._bjobs(*ids)
        return self._confirmation.complete(ids, {row[0]: _status(row) for row in rows}, whole=whole)

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for mark in marks:
            rows, _ = self._bjobs("-J", mark)
            for row in rows:
                if row[4] == mark:
                    found[mark] = row[0]
                    self._files.bind(row[0], mark)
        return found

    def _bjobs(self, *which: str) -> tuple[list[list[str]], bool]:
        """Return rows of this user's jobs; True if all lines were understood."""
        done = self._commands.run("bjobs", "-a", "-noheader", "-o", _FORMAT, *which)
        if done.failed_but_for(_UNKNOWN_JOB):
            raise SchedulerAway(done.why, command="bjobs")
        lines = [line.split("|", len(_FIELDS) - 1) for line in done.out.splitlines() if line.strip()]
        rows = [line for line in lines if len(line) == len(_FIELDS) and line[0].isdigit()]
        if lines and not rows:
            raise SchedulerAway(f"bjobs: its answer is not understood: {done.out[:200]!r}", command="bjobs")
        return rows, len(rows) == len(lines)

    def cancel(self, ids: Sequence[str]) -> None:
        done = self._commands.run("bkill", *ids)
        if done.failed_but_for(_UNKNOWN_JOB):
            raise SchedulerAway(done.why, command="bkill")
        self._confirmation.cancelled(ids)


def _status(row: Sequence[str]) -> JobStatus:
    """Return the state of a job from its fields, in the order of _FIELDS; - is none."""
    _, state, code_text, host, _, exit_words, pending_words = ("" if field == "-" else field for field in row)
    # 4*n01:4*n02, or n01:n01
    nodes = tuple(dict.fromkeys(part.rpartition("*")[2] for part in host.split(":") if part))
    if state in _WAITING:
        return JobStatus(JobState.PENDING, state, pending_words)
    if state == "DONE":
        return JobStatus(JobState.ENDED, state, "", nodes, JobEnding.COMPLETED, 0)
    if state != "EXIT":
        reason = "the job's host does not answer" if state == "UNKWN" else ""
        return JobStatus(JobState.RUNNING, state, reason, nodes)
    code = int(code_text) if code_text.isdigit() else None
    killed = next((ending for word, ending in _KILLED.items() if word in exit_words), None)
    return JobStatus(
        JobState.ENDED,
        state,
        exit_words or ("" if code is None else exit_reason(code)),
        nodes,
        killed or JobEnding.FAILED,
        code,
    )
