"""Diagnoses why a worker process died."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from oncue.endpoint.pool.protocol import EXIT_OUT_OF_STEP, EXIT_PIPES_CLOSED
from oncue.protocol.records import CANCELLED, ERROR, LOST, TIMEOUT, Failure
from oncue.quantities import size_text


class OomWatch:
    """Watches the kernel's count of OOM kills, those of cgroups included."""

    def __init__(self, vmstat: Path = Path("/proc/vmstat")) -> None:
        self._vmstat = vmstat
        self._seen = self._count()

    def _count(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in self._vmstat.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def check(self) -> bool:
        """Return True if the kernel killed any process since the last call."""
        before, self._seen = self._seen, self._count()
        return self._seen > before


def worker_died(code: int, oom: bool) -> Failure:
    """Return the failure of a task whose worker exited (code < 0: a signal)."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if code == -signal.SIGKILL and oom:
            return Failure(
                "oncue.TaskLost",
                f"the worker was killed ({name}): probably out of memory, the kernel killed processes at that time",
                remedy="give the function less data at once, or run fewer workers on that machine",
            )
        if code == -signal.SIGKILL:
            return Failure(
                "oncue.TaskLost",
                f"the worker was killed ({name}), not by oncue",
                remedy="somebody's kill -9, the batch system's limit, or out of memory: see dmesg or the job's output there",
            )
        return Failure(
            "oncue.TaskLost",
            f"the worker died of {name} while it ran this task",
            remedy="a crash in compiled code, of some libraries where memory is short; "
            "the task's output shows where each Python thread was",
        )
    if code == EXIT_PIPES_CLOSED:
        return pipes_closed()
    if code == EXIT_OUT_OF_STEP:
        return out_of_step()
    if code == 128 + signal.SIGTERM:  # the exit code after the function's `finally` blocks
        return Failure(
            "oncue.TaskLost",
            "the worker was ended by SIGTERM while it ran this task, not by oncue",
            remedy="the function sent it to its own process (os.kill), or somebody or the batch system ended the worker",
        )
    return Failure(
        "oncue.TaskLost",
        f"the worker's process exited with code {code} while it ran this task",
        remedy="the function, or a library it calls, ended the process (os._exit, exit in C); raise an exception instead",
    )


def memory_exceeded(used_bytes: int, limit_bytes: int) -> tuple[int, Failure]:
    """Return (status, failure) of a task that used more memory than its function may."""
    return ERROR, Failure(
        "MemoryError",
        f"the task used {size_text(used_bytes)}, more than its function's memory limit of {size_text(limit_bytes)},"
        " and was stopped",
        remedy="give it less data at once, or register the function with a larger limit: memory=",
    )


def timed_out(timeout_ms: int) -> Failure:
    return Failure(
        "oncue.TaskTimedOut",
        f"the function ran longer than its timeout of {timeout_ms / 1000:g} s and was stopped",
        remedy="give it a longer timeout, or less to do",
    )


def cancelled() -> Failure:
    return Failure("oncue.TaskCancelled", "the task was cancelled")


def endpoint_stopped() -> Failure:
    return Failure("oncue.TaskLost", "the endpoint was stopped while it ran this task", remedy="retry it")


def pipes_closed() -> Failure:
    return Failure(
        "oncue.TaskLost",
        "the function closed the worker's descriptors, which connect it with the endpoint; the worker was ended",
        remedy="close only what the function has opened itself: os.closerange and the like take the worker's with them",
    )


def out_of_step() -> Failure:
    return Failure(
        "oncue.TaskLost",
        "the function read from or wrote to the worker's descriptors, which connect it with the endpoint; "
        "the worker was replaced",
        remedy="use only descriptors that the function has opened itself",
    )


def diagnose(ending: str, timeout_ms: int, code: int, oom: bool) -> tuple[int, Failure]:
    """Return (status, failure) of a task whose worker exited with this code.

    `ending`: why the pool ended it (timeout, cancel, close, pipe, channel, stuck); empty if it did
    not. `oom`: the kernel killed processes meanwhile.
    """
    if ending == "timeout":
        return TIMEOUT, timed_out(timeout_ms)
    if ending == "cancel":
        return CANCELLED, cancelled()
    if ending == "close":
        return LOST, endpoint_stopped()
    if ending == "pipe":
        return LOST, pipes_closed()
    if ending == "channel":
        return LOST, out_of_step()
    return LOST, worker_died(code, oom)


def start_failure(python: str, code: int, output: bytes) -> str:
    """Return the message for workers that end as soon as they start."""
    text = " | ".join(output.decode("utf-8", "replace").strip().splitlines()[-4:])
    return (
        f"workers end as soon as they start ({python}, exit code {code}): {text or 'no output'}\n"
        f"  try: {python} -c 'import oncue.endpoint.worker'"
    )
