"""Provider of jobs by any provider of Parsl, for clouds above all.

Every call is a process of its own (parsl_call.py), so a call that hangs is ended. Parsl reports
jobs as ended that it has lost sight of: an end counts only after several answers say so.

A submission whose answer was lost cannot be found: Parsl has no search by name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from oncue.endpoint.options.providers import ParslOptions
from oncue.endpoint.providers.commands import CommandHung, Commands
from oncue.endpoint.providers.confirmation import Confirmation
from oncue.endpoint.providers.job_files import JobFiles
from oncue.endpoint.providers.job_script import LaunchOptions, clock, script_body
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobRequest,
    JobState,
    JobStatus,
    SchedulerAway,
    SubmissionRefused,
    SubmissionUnclear,
)
from oncue.endpoint.providers.parsl_call import REFUSED, Answer, Question
from oncue.extras import HPC, need

_ENDINGS = {
    "COMPLETED": JobEnding.COMPLETED,
    "FAILED": JobEnding.FAILED,
    "CANCELLED": JobEnding.CANCELLED,
    "TIMEOUT": JobEnding.WALLTIME,
    "MISSING": JobEnding.UNKNOWN,
}
_CLOUDS = ("AWS_", "AZURE_", "GOOGLE_", "BOTO_")  # variables with credentials


class ParslProvider:
    """Jobs of one provider of Parsl. Raises MissingExtra."""

    def __init__(self, options: ParslOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> None:
        need("`provider: {kind: parsl}` in endpoint.yaml", HPC)
        self._options, self._files = options, files
        self._commands = Commands(options.command_timeout_ms / 1000, environ, also=_CLOUDS)
        self._ended: dict[str, JobStatus] = {}  # what Parsl said last, of jobs that it says have ended
        self._confirmation = Confirmation(files, self._ended.get)

    def _ask(self, call: str, **more: Any) -> Answer:
        """Make one call. Raises SubmissionRefused, CommandHung, SchedulerAway."""
        at = self._options
        question = Question(call, at.name, at.options, at.launcher, str(self._files.folder), **more)
        done = self._commands.run(
            sys.executable,
            *("-P", "-m", "oncue.endpoint.providers.parsl_call"),
            stdin=msgspec.json.encode(question).decode(),
        )
        why = f"Parsl's {at.name}: {done.why.partition(': ')[2]}"
        if done.code == REFUSED:
            raise SubmissionRefused(why, command=at.name, remedy="correct `provider:` in endpoint.yaml")
        if done.code != 0:
            raise SchedulerAway(why, command=at.name)
        try:
            return msgspec.json.decode(done.out.rstrip().rpartition("\n")[2], type=Answer)
        except msgspec.MsgspecError:
            raise SchedulerAway(f"Parsl's {at.name} gave no answer: {done.out[-200:]!r}", command=at.name) from None

    def submit(self, request: JobRequest) -> str:
        command = script_body(self._files, request, LaunchOptions(self._options.worker_init))
        walltime = clock(request.walltime_s)
        try:
            answer = self._ask("submit", command=command, mark=request.mark, nodes=request.nodes, walltime=walltime)
        except (CommandHung, SchedulerAway) as e:
            raise SubmissionUnclear(e.message, command=self._options.name) from None
        self._files.bind(answer.job, request.mark)
        self._files.keep(request.mark, ".parsl", msgspec.json.encode(answer.known).decode())
        return answer.job

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        try:
            states = self._ask("status", ids=list(ids), known=self._known(ids)).states
        except SubmissionRefused as e:
            raise SchedulerAway(e.message, command=self._options.name) from None
        listed: dict[str, JobStatus] = {}
        for job, (name, message, code) in states.items():
            if name in _ENDINGS:
                self._ended[job] = JobStatus(JobState.ENDED, name, message, ending=_ENDINGS[name], exit=code)
            elif name in ("PENDING", "HELD"):
                listed[job] = JobStatus(JobState.PENDING, name, message or ("held" if name == "HELD" else ""))
            elif name == "RUNNING":
                listed[job] = JobStatus(JobState.RUNNING, name, message)
        known = self._confirmation.complete([i for i in ids if i in listed or i in self._ended], listed, whole=True)
        for job in ids:
            if job in listed or job in known:
                self._ended.pop(job, None)
        return known

    def _known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for job in ids:
            if (text := self._files.kept(job, ".parsl")) is not None:
                found[job] = msgspec.json.decode(text)
        return found

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        return {}

    def cancel(self, ids: Sequence[str]) -> None:
        try:
            self._ask("cancel", ids=list(ids), known=self._known(ids))
        except SubmissionRefused as e:
            raise SchedulerAway(e.message, command=self._options.name) from None
        self._confirmation.cancelled(ids)
