"""Wait for many tasks: as they complete, or for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from oncue.client.batch import ALL, Batch
from oncue.client.deadline import Deadline
from oncue.client.polling import poll_once
from oncue.client.session import Session
from oncue.client.task import Task

R = TypeVar("R")
POLL_S = 0.2  # pause between polls of outcomes that the stream does not deliver
Endings = SimpleQueue[tuple[Batch[Session], list[int]]]  # (batch, indexes of tasks that have ended)


def as_completed(tasks: Iterable[Task[R]], timeout: float | None = None) -> Iterator[Task[R]]:
    """Yield the tasks in the order in which they end, however they end.

    Raises TimeoutError if some are open after `timeout` seconds in all; Unreachable.
    """
    limit = Deadline(timeout)
    wanted: dict[tuple[int, int], Task[R]] = {(id(t._batch), t._index): t for t in tasks}
    endings: Endings = SimpleQueue()
    batches = {id(t._batch): t._batch for t in wanted.values()}

    def note(batch: Batch[Session], indexes: list[int]) -> None:
        endings.put((batch, indexes))

    for batch in batches.values():
        batch.listeners.append(note)
    try:
        for key, task in list(wanted.items()):
            if task.done() and wanted.pop(key, None) is not None:
                yield task
        while wanted:
            yield from _next_ended(endings, wanted, limit)
    finally:
        for batch in batches.values():
            batch.listeners.remove(note)


def _next_ended(endings: Endings, wanted: dict[tuple[int, int], Task[R]], limit: Deadline) -> Iterator[Task[R]]:
    """Wait for endings, remove their tasks from `wanted` and yield them."""
    polled = [t for t in wanted.values() if t._batch.pid != os.getpid()]
    if polled:
        poll_once((t._batch, t._index) for t in polled)
    try:
        batch, indexes = endings.get(timeout=limit.left(POLL_S if polled else None))
        keys = [(id(batch), i) for i in indexes] or [k for k in wanted if k[0] == id(batch)]
    except Empty:
        keys = [(id(t._batch), t._index) for t in polled]
        if limit.past:
            raise TimeoutError(_timeout_text(wanted.values(), limit)) from None
    for key in keys:
        task = wanted.get(key)
        if task is not None and task.done():
            del wanted[key]
            yield task
    gone = next(iter(wanted.values()))._batch.session.outcomes.gone if wanted else None
    if gone is not None:
        raise gone


def _timeout_text(tasks: Collection[Task[R]], limit: Deadline) -> str:
    unsure = sum(not t._batch.accepted for t in tasks)
    others = f"; {unsure:,} of them the server has not accepted yet" if unsure else ""
    return f"{len(tasks):,} tasks have not ended in {limit}; they go on{others}"


def _wait_for_whole_batches(tasks: list[Task[R]], limit: Deadline) -> None:
    """Wait for those batches of which all tasks are wanted.

    That is one wake-up a batch instead of one a task. Raises nothing: result() raises what goes
    wrong.
    """
    counts: dict[int, int] = {}
    for task in tasks:
        key = id(task._batch)
        counts[key] = counts.get(key, 0) + 1
    for batch in {id(t._batch): t._batch for t in tasks}.values():
        if batch.pid != os.getpid() or not batch.sealed or counts[id(batch)] < len(batch.ended):
            continue
        while not batch.ready(ALL) and batch.session.outcomes.gone is None and not limit.past:
            batch.wait(ALL, limit.deadline)


def gather(
    tasks: Iterable[Task[R]],
    timeout: float | None = None,
    *,
    return_exceptions: bool = False,
    each: Callable[[int, int], None] | None = None,
) -> list[R | BaseException]:
    """Wait for all tasks and return their results in order.

    `each(done, total)` is called as they end. Raises TimeoutError and, unless `return_exceptions`,
    what result() of a task raises, in the order of the tasks.
    """
    __tracebackhide__ = True  # IPython and pytest show the caller's frames
    tasks, limit = list(tasks), Deadline(timeout)
    if each is not None:
        for done, _ in enumerate(as_completed(tasks, timeout), 1):
            each(done, len(tasks))
    _wait_for_whole_batches(tasks, limit)
    values: list[R | BaseException] = []
    for task in tasks:  # no comprehension: its frame would be shown
        values.append(task._settled(limit) if return_exceptions else task._result(limit))  # noqa: PERF401
    return values
