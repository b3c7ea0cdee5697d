"""Interface of a container runtime: makes a worker's command line.

The pool starts the command itself. So whatever the runtime puts before the worker must

- replace itself by the worker (`exec`): the pool signals and reaps the process that it started;
- keep the worker's pid and parent: the worker compares `os.getppid()` with the pool's pid and ends
  when they differ. So the runtime neither forks nor makes a PID namespace;
- pass on the open descriptors that the command line names, and stdin, stdout and stderr;
- keep the working directory and `binds` at the same paths inside;
- pass on the environment, which names the folder of large values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec


class WorkerCommand(msgspec.Struct, frozen=True):
    """A worker's command line on the plain host."""

    python: str  # interpreter on the host; a runtime may name the image's instead
    arguments: tuple[str, ...]
    binds: tuple[Path, ...]  # folders that the worker reads and writes


class ContainerRuntime(Protocol):
    """Something that workers run in: the plain host, or a container."""

    def command_line(self, worker: WorkerCommand) -> list[str]:
        """Return the command line that starts this worker inside the runtime."""
        ...
