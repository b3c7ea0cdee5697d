"""Many tasks at once: as they end, or all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from oncue.client.batch import ALL, Batch
from oncue.client.deadline import Deadline
from oncue.client.polling import ask_now
from oncue.client.task import Task
from oncue.errors import TaskError

R = TypeVar("R")
ASK_S = 0.2  # between questions for outcomes that no stream brings


def as_completed(tasks: Iterable[Task[R]], timeout: float | None = None) -> Iterator[Task[R]]:
    """The tasks in the order in which they end, however they end. Raises TimeoutError when some are open after `timeout`
    seconds in all, Unreachable when the server stays away."""
    limit = Deadline(timeout)
    wanted: dict[tuple[int, int], Task[R]] = {(id(t._batch), t._index): t for t in tasks}
    news: SimpleQueue[tuple[Batch, list[int]]] = SimpleQueue()
    batches = {id(t._batch): t._batch for t in wanted.values()}

    def note(batch: Batch, indexes: list[int]) -> None:
        news.put((batch, indexes))

    for batch in batches.values():
        batch.listeners.append(note)
    try:
        for key, task in list(wanted.items()):
            if task.done() and wanted.pop(key, None) is not None:
                yield task
        while wanted:
            yield from _news(news, wanted, limit)
    finally:
        for batch in batches.values():
            batch.listeners.remove(note)


def _news(
    news: SimpleQueue[tuple[Batch, list[int]]], wanted: dict[tuple[int, int], Task[R]], limit: Deadline
) -> Iterator[Task[R]]:
    foreign = [t for t in wanted.values() if t._batch.pid != os.getpid()]
    if foreign:
        ask_now(foreign)
    try:
        batch, indexes = news.get(timeout=limit.left(ASK_S if foreign else None))
        keys = [(id(batch), i) for i in indexes] or [k for k in wanted if k[0] == id(batch)]
    except Empty:
        keys = [(id(t._batch), t._index) for t in foreign]
        if limit.past:
            raise TimeoutError(_late(wanted.values(), limit)) from None
    for key in keys:
        task = wanted.get(key)
        if task is not None and task.done():
            del wanted[key]
            yield task
    gone = next(iter(wanted.values()))._client.courier.gone if wanted else None
    if gone is not None:
        raise gone


def _late(tasks: Collection[Task[R]], limit: Deadline) -> str:
    unsure = sum(not t._batch.accepted for t in tasks)
    others = f"; {unsure:,} of them the server has not accepted yet" if unsure else ""
    return f"{len(tasks):,} tasks have not ended in {limit}; they go on{others}"


def _await_whole(tasks: list[Task[R]], limit: Deadline) -> None:
    """Wait for batches all of whose tasks are wanted: one wake-up a batch instead of one a task. What goes wrong is left
    for result() to raise."""
    counts: dict[int, int] = {}
    for task in tasks:
        key = id(task._batch)
        counts[key] = counts.get(key, 0) + 1
    for batch in {id(t._batch): t._batch for t in tasks}.values():
        if batch.pid != os.getpid() or not batch.sealed or counts[id(batch)] < len(batch.ended):
            continue
        while not batch.ready(ALL) and batch.client.courier.gone is None and not limit.past:
            batch.wait(ALL, limit.deadline)


def gather(
    tasks: Iterable[Task[R]],
    timeout: float | None = None,
    *,
    return_exceptions: bool = False,
    each: Callable[[int, int], None] | None = None,
) -> list[R | TaskError]:
    """The results in the order of the tasks; waits for all. `each(done, of)` is called as they end.

    Raises the first error (in the order of the tasks) unless `return_exceptions`; TimeoutError."""
    tasks, limit = list(tasks), Deadline(timeout)
    if each is not None:
        for done, _ in enumerate(as_completed(tasks, timeout), 1):
            each(done, len(tasks))
    _await_whole(tasks, limit)
    results: list[R | TaskError] = []
    for task in tasks:
        try:
            results.append(task._result(limit))
        except TaskError as e:
            if not return_exceptions:
                raise
            results.append(e)
    return results
