"""Starts a pool's workers, and replaces those that have ended."""

from __future__ import annotations

from oncue.endpoint.pool.exit_diagnosis import start_failure
from oncue.endpoint.pool.launch import WorkerLaunch
from oncue.endpoint.pool.output_file import read_output
from oncue.endpoint.pool.worker_process import WorkerProcess

FAILED_STARTS = 5


class WorkerStarts:
    """Times at which workers are due.

    Each has a number, from 0 on; its successor gets the same.
    """

    def __init__(self, launch: WorkerLaunch, workers: int) -> None:
        self.trouble = ""  # why workers cannot be started; empty if they can
        self._launch = launch
        self._due = [(0, number) for number in range(workers)]  # (unix µs, number) of missing ones
        self._failed = 0  # in a row, before they were ready
        self._names = 0

    def succeeded(self) -> None:
        self._failed, self.trouble = 0, ""

    def plan(self, ended: WorkerProcess, code: int, now_us: int) -> int:
        """Plan the start of a worker's successor. Return its time."""
        due = now_us
        if not ended.ready:
            self._failed += 1
            due += min(100_000 << min(self._failed - 1, 10), 30_000_000)
            if self._failed >= FAILED_STARTS:
                self.trouble = start_failure(self._launch.python, code, read_output(ended.capture))
        if not ended.succeeded:
            self._due.append((due, ended.number))
        return due

    def start_due(self, now_us: int) -> tuple[list[WorkerProcess], int | None]:
        """Start what is due. Return (new workers, time of the next start)."""
        due = [number for at, number in self._due if at <= now_us]
        self._due = [x for x in self._due if x[0] > now_us]
        started = [w for number in due if (w := self._start(number, now_us)) is not None]
        return started, min((at for at, _ in self._due), default=None)

    def succeed(self, w: WorkerProcess, numbers: tuple[int, ...], now_us: int) -> WorkerProcess | None:
        """Retire an idle worker and start its successor at once. None if that fails.

        The successor is pinned to what the workers with these numbers have.
        """
        fresh = self._start(w.number, now_us, numbers)
        w.succeeded = True
        w.retire(now_us)
        return fresh

    def _start(self, number: int, now_us: int, numbers: tuple[int, ...] = ()) -> WorkerProcess | None:
        self._names += 1
        try:
            return WorkerProcess(f"w{self._names}", number, self._launch, now_us, numbers or (number,))
        except OSError as e:  # no memory, no processes, no such Python
            self.trouble = f"a worker cannot be started: {e}"
            self._due.append((now_us + 5_000_000, number))
            return None

    def stop(self) -> None:
        self._due = []
