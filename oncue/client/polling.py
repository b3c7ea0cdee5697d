"""Outcomes that no stream brings, those of a handle from elsewhere or in a forked child: they are asked for, and the server
holds the question.

    ask ──► outcome                      the task has ended
        └─► nothing ──► is it known?     yes: ask again
                                         no: perhaps not yet (its program has submitted it a moment ago), then NotFound
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from oncue.client.deadline import Deadline
from oncue.errors import NotFound, NotReady, RateLimited, Unreachable

if TYPE_CHECKING:
    from oncue.client.task import Task
    from oncue.protocol.records import Ended

HELD_S = 10.0  # by the server, at most
YOUNG_S = 5.0  # after the handle was made, a task that the server does not know may be on its way from its program


def asked(task: Task[Any], limit: Deadline) -> Ended:
    """Ask until it has ended. Raises TimeoutError; NotFound; Unreachable when the server is away for longer than the
    client's patience."""
    courier = task._client.courier
    me, since, pause = task._batch.id(task._index), time.monotonic(), 0.05
    while task._batch.error is None:
        began = time.monotonic()
        try:
            for outcome in courier.ask([me], _held_ms(task, limit)):
                task._found(outcome.ended)
                return outcome.ended
            look_for(task)
            since = time.monotonic()
        except (Unreachable, NotReady, RateLimited):
            if time.monotonic() - since > courier.patience_s:
                raise
        if limit.past:
            raise TimeoutError(_late(task, limit))
        if time.monotonic() - began < 0.5:  # the server did not hold the question
            time.sleep(limit.left(pause) or 0.0)
            pause = min(1.0, pause * 2)
    raise task._batch.error


def _held_ms(task: Task[Any], limit: Deadline) -> int:
    known = task._batch.accepted
    return round((limit.left(HELD_S if known else max(0.0, min(HELD_S, _young_s(task)))) or 0.0) * 1000)


def _young_s(task: Task[Any]) -> float:
    """Seconds for which it may be on its way yet. A forked child's parent sends for as long as its patience lasts."""
    ours = task._batch.pid != 0
    return task._batch.made_s + (task._client.courier.patience_s if ours else YOUNG_S) - time.monotonic()


def look_for(task: Task[Any]) -> None:
    """Whether the server knows it, as long as that is open: then `batch.accepted` says so, or `batch.error` that it
    does not exist."""
    batch = task._batch
    if batch.accepted:
        return
    try:
        task._client.tasks.get(task.id)
        batch.accepted = True
    except NotFound:
        if _young_s(task) <= 0:
            batch.refused(
                NotFound(
                    f"the server knows no task {task.id} of yours",
                    remedy="compare the id: `oncue tasks list` shows yours. If its program has just submitted it, the server "
                    "has not accepted it yet",
                )
            )


def _late(task: Task[Any], limit: Deadline) -> str:
    if task._batch.accepted:
        return f"task {task.id} has not ended in {limit}; it goes on"
    return f"the server knows no task {task.id} after {limit}; if it was submitted, it has not been accepted yet"


def ask_now(tasks: Iterable[Task[Any]]) -> None:
    """Ask once for the outcomes of all of these, and whether those exist that have had time to come. Raises Unreachable."""
    by_id = {t._batch.id(t._index): t for t in tasks if not t.done()}
    if not by_id:
        return
    for outcome in next(iter(by_id.values()))._client.courier.ask(list(by_id)):
        by_id.pop(outcome.id)._found(outcome.ended)
    for task in by_id.values():
        if _young_s(task) <= 0:
            look_for(task)
