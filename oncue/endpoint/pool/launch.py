"""Command line, folders and environment with which a pool starts its workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from oncue.clocks.process import process_clock
from oncue.endpoint.containers.base import ContainerRuntime, WorkerCommand
from oncue.endpoint.containers.host import HostRuntime
from oncue.endpoint.pool.environment import worker_environment
from oncue.functions.siblings import ROOT_VARIABLE, remove_old


class WorkerLaunch(msgspec.Struct, frozen=True):
    """Settings with which a pool starts its workers."""

    container: ContainerRuntime
    python: str
    folder: Path  # working directory
    blobs: Path
    files: Path  # that come with functions
    env: Mapping[str, str]

    def command_line(self, descriptors: tuple[int, int, int]) -> list[str]:
        """Return the command line of a worker that inherits these descriptors."""
        numbers = (*descriptors, os.getpid(), process_clock.offset_ns)
        arguments = ("-P", "-m", "oncue.endpoint.worker", *map(str, numbers))
        return self.container.command_line(WorkerCommand(self.python, arguments, (self.folder, self.blobs, self.files)))


def launch_in(
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    pass_env: Sequence[str] = (),
    blobs: Path | None = None,
    python: str = sys.executable,
    container: ContainerRuntime | None = None,
) -> WorkerLaunch:
    """Return the settings of workers whose files are in `folder`.

    `work` in it is their working directory, `files` has files of functions, `blobs` large values
    unless another folder is given. Raises OSError if the working directory cannot be made.
    """
    work, files, blobs = folder / "work", folder / "files", blobs or folder / "blobs"
    work.mkdir(parents=True, exist_ok=True)
    remove_old(files)
    variables = worker_environment(os.environ if env is None else env, pass_env)
    variables |= {"ONCUE_BLOBS": str(blobs), ROOT_VARIABLE: str(files)}
    return WorkerLaunch(container or HostRuntime(), python, work, blobs, files, variables)
