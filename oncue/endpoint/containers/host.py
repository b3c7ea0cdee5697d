"""No container: workers run on the plain host."""

from __future__ import annotations

from oncue.endpoint.containers.base import WorkerCommand


class HostRuntime:
    """Leaves the command line as it is."""

    def command_line(self, worker: WorkerCommand) -> list[str]:
        return [worker.python, *worker.arguments]
