"""Command line, folders and environment with which a pool starts its workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import msgspec

from oncue.clocks.process import process_clock
from oncue.endpoint.containers.base import ContainerRuntime, WorkerCommand
from oncue.endpoint.containers.host import HostRuntime
from oncue.endpoint.pool.environment import worker_environment
from oncue.endpoint.pool.limits import WorkerLimits, limit_variables
from oncue.endpoint.pool.pinning import Pinning, cores_here, gpu_devices, union, worker_variables
from oncue.endpoint.pool.task_folders import TASKS, TASKS_VARIABLE
from oncue.functions.siblings import ROOT_VARIABLE, remove_old


class WorkerLaunch(msgspec.Struct, frozen=True):
    """Settings with which a pool starts its workers."""

    container: ContainerRuntime
    python: str
    folder: Path  # working directory
    blobs: Path
    files: Path  # that come with functions
    env: Mapping[str, str]
    own: Sequence[Mapping[str, str]] = ()  # variables of each worker, by its number

    @property
    def pinned(self) -> bool:
        """True if workers have cores or GPUs of their own."""
        return any(self.own)

    def environment(self, number: int, numbers: Sequence[int]) -> dict[str, str]:
        """Return the variables of a worker that is pinned to what these numbers have."""
        own = union([self.own[n] for n in numbers]) if self.own else {}
        return {**self.env, **own, "ONCUE_WORKER": str(number)}

    def command_line(self, descriptors: tuple[int, int, int]) -> list[str]:
        """Return the command line of a worker that inherits these descriptors."""
        numbers = (*descriptors, os.getpid(), process_clock.offset_ns)
        arguments = ("-P", "-m", "oncue.endpoint.worker", *map(str, numbers))
        return self.container.command_line(WorkerCommand(self.python, arguments, (self.folder, self.blobs, self.files)))


class LaunchOptions(TypedDict, total=False):
    """Options of a pool's workers.

    `env`, `pass_env`: environment to take from, and names of secrets in it that workers get.
    `environment`: variables that are added. `blobs`: folder of large values; `server_blobs`: the
    server's, if it is here. `python`, `container`: what they run in.
    """

    env: Mapping[str, str] | None
    pass_env: Sequence[str]
    environment: Mapping[str, str]
    blobs: Path | None
    server_blobs: Path | None
    python: str
    container: ContainerRuntime | None
    limits: WorkerLimits
    pinning: Pinning | None


def launch_in(folder: Path, workers: int, options: LaunchOptions) -> WorkerLaunch:
    """Return the settings of so many workers whose files are in `folder`.

    `work` in it is their working directory, `files` has files of functions, `blobs` large values
    unless another folder is given. Raises OSError if the working directory cannot be made.
    """
    work, files = folder / "work", folder / "files"
    blobs = options.get("blobs") or folder / "blobs"
    work.mkdir(parents=True, exist_ok=True)
    remove_old(files)
    given = options.get("env")
    variables = worker_environment(os.environ if given is None else given, options.get("pass_env", ()))
    variables |= options.get("environment", {})
    variables |= limit_variables(options.get("limits", WorkerLimits()), workers, variables)
    variables |= {"ONCUE_BLOBS": str(blobs), ROOT_VARIABLE: str(files), TASKS_VARIABLE: str(folder / TASKS)}
    if (server_blobs := options.get("server_blobs")) is not None:
        variables["ONCUE_SERVER_BLOBS"] = str(server_blobs)
    python, container = options.get("python", sys.executable), options.get("container") or HostRuntime()
    own = worker_variables(options.get("pinning"), workers, cores_here(), gpu_devices(variables))
    return WorkerLaunch(container, python, work, blobs, files, variables, own)
