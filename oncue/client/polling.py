"""Poll outcomes that the outcome stream does not deliver.

These are of handles made from a task id, or used in a forked child. The server answers late
(long polling):

    request ──► outcome                    the task has ended
            └─► nothing ──► known task?    yes: request again
                                           no: wait, as it may be submitted now; then NotFound
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from oncue.client.batch import Batch
from oncue.client.deadline import Deadline
from oncue.client.resources import Tasks
from oncue.client.session import Session
from oncue.errors import NotFound, NotReady, RateLimited, Unreachable
from oncue.protocol.records import Ended

HOLD_S = 10.0  # longest time for which the server holds a request
YOUNG_S = 5.0  # after the handle was made, an unknown task may still be on its way from its program
Handle = tuple[Batch[Session], int]  # a batch and a task's index in it


def poll(batch: Batch[Session], index: int, limit: Deadline) -> Ended:
    """Request the task's outcome until it has one.

    Raises TimeoutError; NotFound; Unreachable if the server is away longer than the patience.
    """
    outcomes = batch.session.outcomes
    task_id, since, pause = batch.id(index), time.monotonic(), 0.05
    while batch.error is None:
        began = time.monotonic()
        try:
            for outcome in outcomes.request([task_id], _hold_ms(batch, limit), limited_s=0):
                _store(batch, index, outcome.ended)
                return outcome.ended
            check_exists(batch, index)
            since = time.monotonic()
        except (Unreachable, NotReady, RateLimited):
            if time.monotonic() - since > outcomes.patience_s:
                raise
        if limit.past:
            raise TimeoutError(_timeout_text(batch, index, limit))
        if time.monotonic() - began < 0.5:  # the server did not hold the request
            time.sleep(limit.left(pause) or 0.0)
            pause = min(1.0, pause * 2)
    raise batch.error


def poll_once(handles: Iterable[Handle]) -> None:
    """Request all these outcomes once. Raises Unreachable.

    Tasks that are no longer young must exist; see check_exists().
    """
    by_id = {batch.id(i): (batch, i) for batch, i in handles if batch.ended[i] is None and batch.error is None}
    if not by_id:
        return
    first, _ = next(iter(by_id.values()))
    for outcome in first.session.outcomes.request(list(by_id)):
        _store(*by_id.pop(outcome.id), outcome.ended)
    for batch, index in by_id.values():
        if _young_s(batch) <= 0:
            check_exists(batch, index)


def check_exists(batch: Batch[Session], index: int) -> None:
    """Set `batch.accepted` if the server knows the task, else reject the batch.

    A young task is left undecided.
    """
    if batch.accepted:
        return
    task_id = batch.id(index).hex()
    try:
        Tasks(batch.session).get(task_id)
        batch.accepted = True
    except NotFound:
        if _young_s(batch) <= 0:
            batch.reject(
                NotFound(
                    f"the server knows no task {task_id} of yours",
                    remedy="compare the id: `oncue tasks list` shows yours. If its program has just submitted it, the server "
                    "has not accepted it yet",
                )
            )


def _store(batch: Batch[Session], index: int, ended: Ended) -> None:
    batch.ended[index] = ended
    for callback in batch.callbacks.pop(index, ()):
        callback()


def _hold_ms(batch: Batch[Session], limit: Deadline) -> int:
    longest = HOLD_S if batch.accepted else max(0.0, min(HOLD_S, _young_s(batch)))
    return round((limit.left(longest) or 0.0) * 1000)


def _young_s(batch: Batch[Session]) -> float:
    """Return the seconds for which an unknown task may still be on its way.

    A forked child's parent sends for as long as its patience lasts.
    """
    inherited = batch.pid != 0
    return batch.created_s + (batch.session.outcomes.patience_s if inherited else YOUNG_S) - time.monotonic()


def _timeout_text(batch: Batch[Session], index: int, limit: Deadline) -> str:
    task_id = batch.id(index).hex()
    if batch.accepted:
        return f"task {task_id} has not ended in {limit}; it goes on"
    return f"the server knows no task {task_id} after {limit}; if it was submitted, it has not been accepted yet"
