"""Sites of the contract suite: a scheduler with its provider of jobs, and what a test may do to it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from oncue.endpoint.options.providers import (
    CondorOptions,
    GridEngineOptions,
    LsfOptions,
    PbsProOptions,
    ProviderOptions,
    SlurmOptions,
    TorqueOptions,
)
from oncue.endpoint.providers.job_catalog import job_provider
from oncue.endpoint.providers.jobs import JobProvider, JobState, JobStatus
from tests.schedulers import stand_in
from tests.schedulers.faults import CommandFaults
from tests.schedulers.waiting import LIMIT_S, wait


@dataclass
class Site:
    """A scheduler for one test. `refused`: options with which it refuses a job."""

    options: ProviderOptions
    environ: Mapping[str, str]
    faults: CommandFaults
    folder: Path  # of the endpoint
    commands: tuple[str, str, str]  # that submit, list and cancel
    refused: dict[str, Any]
    away: str  # what the commands say when the scheduler does not run
    slots: int  # jobs that run at once
    provider: JobProvider = field(init=False)

    def __post_init__(self) -> None:
        self.provider = self.provider_with()

    def provider_with(self, **options: Any) -> JobProvider:
        """Return a provider of other options, or the same anew: as after a restart of the agent."""
        changed = msgspec.structs.replace(self.options, **options)
        return job_provider(changed, self.folder, self.environ)

    def wait_found(self, mark: str) -> str:
        """Look for a job by its mark, as the agent does, until it is found; return its id."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if mark in (found := self.provider.find([mark, "oncue-ab12-never"])):
                assert list(found) == [mark]
                return found[mark]
            time.sleep(0.1)
        raise AssertionError(f"{mark} is not found after {LIMIT_S:.0f} s")

    def wait(self, job: str, *states: JobState) -> JobStatus:
        """Poll as the agent does until the job is in one of these states."""
        return wait(self.provider, job, *states)


#: Options and the refusal of each stand-in.
STAND_INS: dict[str, tuple[ProviderOptions, tuple[str, str, str], dict[str, Any], str]] = {
    "pbspro": (
        PbsProOptions(launcher="simple", command_timeout_ms=20_000),
        ("qsub", "qstat", "qdel"),
        {"queue": "nowhere"},
        "Connection refused\nqstat: cannot connect to server pbs (errno=111)",
    ),
    "torque": (
        TorqueOptions(launcher="simple", command_timeout_ms=20_000),
        ("qsub", "qstat", "qdel"),
        {"queue": "nowhere"},
        "Cannot connect to default server host 'pbs' - check pbs_server daemon.",
    ),
    "lsf": (
        LsfOptions(launcher="simple", command_timeout_ms=20_000),
        ("bsub", "bjobs", "bkill"),
        {"queue": "nowhere"},
        "LSF is down. Please wait ...",
    ),
    "condor": (
        CondorOptions(command_timeout_ms=20_000),
        ("condor_submit", "condor_q", "condor_rm"),
        {"requirements": "nowhere"},
        "ERROR: Can't find address of local schedd; Failed to connect to schedd",
    ),
}


class StandIn:
    """A scheduler that is stood in for, with its jobs."""

    def __init__(self, kind: str, folder: Path, slots: int = 2) -> None:
        self.home, commands = folder / "scheduler", folder / "commands"
        for path in (self.home / "jobs", commands):
            path.mkdir(parents=True)
        (self.home / "slots").write_text(str(slots))
        interpreter = f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E"
        for command in stand_in.COMMANDS[kind]:
            link = commands / "links" / command.__name__
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(stand_in.__file__)
            file = commands / command.__name__
            file.write_text(
                f"#!/bin/sh\nexport STAND_IN={shlex.quote(str(self.home))} STAND_IN_KIND={kind}\n"
                f'{interpreter.splitlines()[1]} {shlex.quote(str(link))} "$@"\n'
            )
            file.chmod(0o755)
        path = f"{commands}:{os.environ['PATH']}"
        faults = CommandFaults(folder / "faults", path)
        options, names, refused, away = STAND_INS[kind]
        environ = os.environ | {"PATH": f"{faults.folder}:{path}"}
        self.site = Site(options, environ, faults, folder / "endpoint", names, refused, away, slots)

    def stop(self) -> None:
        """Kill what still runs."""
        for file in (self.home / "jobs").iterdir():
            job = json.loads(file.read_text())
            if job["state"] == "pending":
                stand_in_end(file, job)
            elif job["state"] == "running":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job["pid"], signal.SIGKILL)


def stand_in_end(file: Path, job: dict[str, Any]) -> None:
    """End a job that waits: its process sees it and ends."""
    file.write_text(json.dumps(job | {"state": "ended", "code": None}))


SiteMaker = Callable[[Path], Site]


def slurm_site(environ: Mapping[str, str], faults: CommandFaults, folder: Path) -> Site:
    options = SlurmOptions(exclusive=False, launcher="simple", cores_per_node=1, command_timeout_ms=20_000)
    away = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    names = ("sbatch", "squeue", "scancel")
    return Site(options, environ, faults, folder, names, {"partition": "nowhere"}, away, slots=8)


def gridengine_site(environ: Mapping[str, str], faults: CommandFaults, folder: Path) -> Site:
    options = GridEngineOptions(command_timeout_ms=20_000)
    away = "error: commlib error: got select error (Connection refused)\nunable to contact qmaster using port 6444"
    return Site(options, environ, faults, folder, ("qsub", "qstat", "qdel"), {"queue": "nowhere"}, away, slots=4)
