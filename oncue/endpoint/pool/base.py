"""Interface of a worker pool, as the agent's loop drives it.

The loop watches `fds` for reading and calls `on_readable`; it calls `tick` at `next_wake_us`,
hands chunks over with `run` while there is `room`, and reads what happened with `drain`. No method
but `close` blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import msgspec

from oncue.protocol.records import Ended, TaskRecord
from oncue.protocol.run_options import RunOptions


class PoolEvents(msgspec.Struct):
    """Events since the last drain, by (function, attempt) where a chunk is meant."""

    ended: list[tuple[str, int, list[Ended]]] = []
    requeue: list[tuple[str, int, list[TaskRecord]]] = []
    started: list[tuple[bytes, int, int, str]] = []  # (task, attempt, started_us, worker)
    output: list[tuple[bytes, int, int, bytes]] = []  # (task, attempt, offset, text)

    def __bool__(self) -> bool:
        return bool(self.ended or self.requeue or self.started or self.output)


class WorkerStates(Protocol):
    """Numbers of workers by what they do."""

    @property
    def size(self) -> int:
        """Workers that the pool keeps running."""
        ...

    @property
    def ready(self) -> int:
        """Workers that have started."""
        ...

    @property
    def busy(self) -> int:
        """Workers that hold a chunk."""
        ...


class WorkerPool(WorkerStates, Protocol):
    """Workers that run chunks of tasks.

    Every task handed over comes back, ended or requeued.
    """

    @property
    def trouble(self) -> str:
        """Reason why workers cannot be started; empty if they can."""
        ...

    @property
    def fds_version(self) -> int:
        """Number that changes whenever `fds` does."""
        ...

    @property
    def next_wake_us(self) -> int | None:
        """Time at which `tick` is due, unix µs; None: only an event matters."""
        ...

    def fds(self) -> list[int]:
        """Return the descriptors to watch for reading."""
        ...

    def on_readable(self, fd: int) -> None:
        """Read from a descriptor that the loop found readable."""
        ...

    def tick(self, now_us: int) -> None:
        """Do what is due: timeouts, dead workers, new workers.

        Early calls are harmless.
        """
        ...

    def drain(self) -> PoolEvents:
        """Return the events since the last call."""
        ...

    def room(self) -> int:
        """Return how many chunks `run` accepts now."""
        ...

    def chunk_size(self, function: str) -> int:
        """Return how many tasks of this function a chunk should hold."""
        ...

    def misfit(self, options: RunOptions) -> str:
        """Return why a task with these options can never run here; "" if it may."""
        ...

    def rooms_of(self, key: str) -> Sequence[tuple[Hashable, int]]:
        """Return the workers (or nodes) that had this affinity key, each with its `room`."""
        ...

    def run(
        self,
        function: str,
        body: bytes | None,
        timeout_ms: int,
        attempt: int,
        tasks: list[TaskRecord],
        options: RunOptions | None = None,
    ) -> None:
        """Run one chunk. It is requeued if there is no room for it.

        `options`: of the call, over those of the function.
        """
        ...

    def cancel(self, ids: frozenset[bytes]) -> object:
        """End those of these tasks that the pool holds."""
        ...

    def close(self, grace_s: float) -> None:
        """End the workers, after `grace_s` seconds for running tasks. Blocks."""
        ...
