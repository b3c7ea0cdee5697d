"""Provider of Slurm jobs: sbatch, squeue, scancel.

One squeue answers for all jobs. `sacct` is asked only for jobs that squeue and scontrol have
forgotten, a few at a time: it hangs where its database is slow, and some sites have none.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from oncue.endpoint.options.providers import SlurmOptions
from oncue.endpoint.providers.commands import Commands
from oncue.endpoint.providers.confirmation import Confirmation
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, write_script
from oncue.endpoint.providers.jobs import JobEnding, JobRequest, JobState, JobStatus, SchedulerAway
from oncue.endpoint.providers.node_names import expand_nodes
from oncue.endpoint.providers.submission import submitted

# https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES
_WAITING = frozenset(
    ["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"]
)
_RUNNING = frozenset(["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"])
_ENDED = {
    "COMPLETED": JobEnding.COMPLETED,
    "FAILED": JobEnding.FAILED,
    "CANCELLED": JobEnding.CANCELLED,
    "PREEMPTED": JobEnding.CANCELLED,
    "TIMEOUT": JobEnding.WALLTIME,
    "DEADLINE": JobEnding.WALLTIME,
    "NODE_FAIL": JobEnding.NODE,
    "BOOT_FAIL": JobEnding.NODE,
    "OUT_OF_MEMORY": JobEnding.MEMORY,
}
_FIELDS = "JobID:|,State:|,exit_code:|,StartTime:|,Name:|,NodeList:|,Reason:|"
_JOB_ID = re.compile(r"^(\d+(?:;[\w.-]+)?)\s*$", re.MULTILINE)  # 1234, or 1234;cluster
_UNKNOWN_JOB = re.compile("invalid job id|already completing or completed", re.IGNORECASE)
_SACCT_S = 10.0


class SlurmProvider:
    """Jobs of Slurm. Their files are in `files`."""

    def __init__(self, options: SlurmOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> None:
        self._options, self._files = options, files
        self._commands = Commands(options.command_timeout_ms / 1000, environ)
        self._confirmation = Confirmation(files, self._ask_again)
        self._me = str(os.getuid())

    # ------------------------------------------------------------ submission

    def submit(self, request: JobRequest) -> str:
        at = self._options
        launch = LaunchOptions(at.worker_init, at.launcher, at.launcher_options)
        # Steps get the variables of the script, even if the site submits with --export=NONE.
        variables = {"SLURM_EXPORT_ENV": "ALL"}
        script = write_script(self._files, request, self._directives(request), launch, variables)
        # On the command line, since variables of sbatch would override the script.
        command = ["sbatch", "--parsable", f"--job-name={request.mark}", "--no-requeue", script]
        job = submitted(self._commands, command, _JOB_ID)
        self._files.bind(job, request.mark)
        return job

    def _directives(self, request: JobRequest) -> Iterable[str]:
        at, path = self._options, self._files.path
        given = {
            "partition": at.partition,
            "account": at.account,
            "qos": at.qos,
            "constraint": at.constraint,
            "reservation": at.reservation,
            "clusters": at.clusters,
        }
        cores, gpus = request.cores or at.cores_per_node, request.gpus or at.gpus_per_node
        memory = request.memory or at.memory_per_node
        sized = {
            "cpus-per-task": str(cores or ""),
            "gpus-per-node": str(gpus or ""),
            # A node of one's own comes with the default share of its memory: 0 is all of it.
            "mem": f"{-(-memory // (1 << 20))}M" if memory else "0" if at.exclusive else "",
        }
        lines = {
            "job-name": request.mark,
            "output": _pattern(str(path(request.mark, ".out"))),
            "error": _pattern(str(path(request.mark, ".err"))),
            "nodes": str(request.nodes),
            "ntasks-per-node": "1",
            "time": str(max(1, -(-request.walltime_s // 60))),
        }
        for name, value in (lines | given | sized).items():
            if value:
                yield f"#SBATCH --{name}={value}"
        if at.exclusive:
            yield "#SBATCH --exclusive"
        if request.nodes > 1:  # a node that fails costs what ran there, not the block
            yield "#SBATCH --no-kill"
        yield at.scheduler_options.rstrip("\n")

    # ------------------------------------------------------------ questions

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        listed: dict[str, JobStatus] = {}
        whole = True
        for cluster, group in _by_cluster(ids).items():
            rows, all_read = self._squeue(cluster, f"--jobs={','.join(job.partition(';')[0] for job in group)}")
            whole &= all_read
            listed |= {job: _status(rows[number]) for job in group if (number := job.partition(";")[0]) in rows}
        unknown_states = {job for job, status in listed.items() if status is _NOT_UNDERSTOOD}
        known = {job: status for job, status in listed.items() if job not in unknown_states}
        return self._confirmation.complete([i for i in ids if i not in unknown_states], known, whole=whole)

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for cluster in self._options.clusters.split(","):
            rows, _ = self._squeue(cluster, f"--name={','.join(marks)}")
            suffix = f";{cluster}" if cluster else ""
            found |= {row[4]: number + suffix for number, row in rows.items() if row[4] in marks}
        for mark, job in found.items():
            self._files.bind(job, mark)
        return found

    def _squeue(self, cluster: str, *which: str) -> tuple[dict[str, list[str]], bool]:
        """Return rows of this user's jobs by number; True if all lines were understood."""
        where = [f"--clusters={cluster}"] if cluster else []
        done = self._commands.run(
            "squeue", "--noheader", "--states=all", f"--user={self._me}", *where, *which, f"--Format={_FIELDS}"
        )
        if done.code != 0 and not _UNKNOWN_JOB.search(done.err):
            raise SchedulerAway(done.why, command="squeue")
        rows: dict[str, list[str]] = {}
        strange = ""
        for line in done.out.splitlines():
            row = [field.strip() for field in line.split("|")]
            if len(row) >= 7 and row[0].isdigit():
                rows[row[0]] = [*row[:6], "|".join(row[6:]).rstrip("|")]
            elif line.strip() and not line.startswith("CLUSTER:"):
                strange = line
        if strange and not rows:
            raise SchedulerAway(f"squeue: its answer is not understood: {strange[:200]!r}", command="squeue")
        return rows, not strange

    def _ask_again(self, job: str) -> JobStatus | None:
        """Ask scontrol for one job, then sacct."""
        number, _, cluster = job.partition(";")
        where = [f"--clusters={cluster}"] if cluster else []
        done = self._commands.run("scontrol", *where, "--oneliner", "show", "job", number)
        if done.code == 0:
            facts = dict(word.partition("=")[::2] for word in done.out.split())
            names = ("JobId", "JobState", "ExitCode", "StartTime", "JobName", "NodeList", "Reason")
            return _status([facts.get(name, "") for name in names])
        if not _UNKNOWN_JOB.search(done.err):
            raise SchedulerAway(done.why, command="scontrol")
        fields = "JobIDRaw,State,ExitCode,Start,JobName,NodeList,Reason"
        try:
            done = self._commands.run(
                "sacct", *where, "-X", "-n", "-P", f"--jobs={number}", f"--format={fields}", timeout_s=_SACCT_S
            )
        except SchedulerAway:  # it is a luxury: the job has ended, and only the reason is not known
            return None
        rows = [line.split("|") for line in done.out.splitlines() if line.startswith(f"{number}|")]
        status = _status([*rows[0], *[""] * 7]) if done.code == 0 and rows else None
        return status if status is not None and status.state is JobState.ENDED else None

    # ------------------------------------------------------------ ends

    def cancel(self, ids: Sequence[str]) -> None:
        for cluster, group in _by_cluster(ids).items():
            where = [f"--clusters={cluster}"] if cluster else []
            done = self._commands.run("scancel", *where, *(job.partition(";")[0] for job in group))
            if done.failed_but_for(_UNKNOWN_JOB):
                raise SchedulerAway(done.why, command="scancel")
        self._confirmation.cancelled(ids)


_NOT_UNDERSTOOD = JobStatus(JobState.PENDING, native="?")


def _status(row: Sequence[str]) -> JobStatus:
    """Return the state of a job from its fields, in the order of _FIELDS."""
    _, words, exit_field, start, _, nodes, reason = row[:7]
    state = words.split()[0].rstrip("+") if words.split() else ""  # "CANCELLED by 1000"
    reason = "" if reason in ("None", "N/A") else reason
    names = expand_nodes("" if nodes in ("(null)", "None assigned", "None") else nodes)
    if state in _WAITING:
        if start not in ("", "N/A", "Unknown"):
            reason = f"{reason or state}; expected to start at {start}"
        return JobStatus(JobState.PENDING, state, reason or state)
    if state in _RUNNING:
        return JobStatus(JobState.RUNNING, state, reason, names)
    if state in _ENDED:
        return JobStatus(JobState.ENDED, state, reason or state, names, _ENDED[state], _exit_code(exit_field, state))
    return _NOT_UNDERSTOOD


def _exit_code(field: str, state: str) -> int | None:
    """Return the code in `3:0` (exit:signal) or 768 (a wait status).

    None if the scheduler ended the job's script.
    """
    code, _, number = field.partition(":")
    if not code.isdigit() or state not in ("COMPLETED", "FAILED", "OUT_OF_MEMORY"):
        return None
    if not number:  # squeue
        code, number = str(int(code) >> 8), str(int(code) & 127)
    return 128 + int(number) if number.isdigit() and int(number) else int(code)


def _by_cluster(ids: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for job in ids:
        groups.setdefault(job.partition(";")[2], []).append(job)
    return groups


def _pattern(path: str) -> str:
    """Return a path as sbatch reads file names: % begins a field there."""
    return shlex.quote(path.replace("%", "%%"))
