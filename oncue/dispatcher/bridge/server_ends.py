"""Ends of attempts that the server decides itself.

Such an attempt is expired, cancelled, lost or refused.
"""

from __future__ import annotations

from oncue.protocol.codec import encode
from oncue.protocol.records import CANCELLED, Ended, Failure, TaskRecord


def end_by_server(task: TaskRecord, attempt: int, status: int, at_us: int, failure: bytes) -> Ended:
    """Return the end of an attempt for which the agent has not reported one."""
    return Ended(task.id, attempt, status, 0, at_us, failure, b"", task.event, task.retry_of, task.mark_us)


def end_cancelled(task: TaskRecord, attempt: int, at_us: int, by: str) -> Ended:
    """Return the end of an attempt that `by` ("" if unknown) cancelled."""
    why = encode(Failure("oncue.TaskCancelled", f"cancelled by {by}" if by else "cancelled"))
    return end_by_server(task, attempt, CANCELLED, at_us, why)
