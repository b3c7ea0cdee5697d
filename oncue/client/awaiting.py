"""Wait for a task in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

from oncue.client.batch import Batch
from oncue.client.session import Session
from oncue.protocol.payload import MSGPACK
from oncue.protocol.records import OK

R = TypeVar("R")


async def in_loop(batch: Batch[Session], index: int, result: Callable[[], R]) -> R:
    """Return what `result` returns, when the task has ended.

    The loop goes on meanwhile. Cancelling the coroutine leaves the task as it is.
    """
    if batch.pid == os.getpid():  # else its outcome is polled, in a thread
        while not batch.ready(index) and batch.session.outcomes.gone is None:
            await _news(batch, index)
        ended = batch.ended[index]
        if batch.error is not None or (ended is not None and ended.status == OK and ended.value[:1] == MSGPACK):
            return result()
    # It may fetch a large value, or ask who owns the endpoint.
    values: list[R] = []
    error = await asyncio.to_thread(_error_of, result, values.append)
    if error is not None:
        __tracebackhide__ = True  # IPython and pytest show the caller's frames
        raise error.with_traceback(None)
    return values[0]


def _error_of(result: Callable[[], R], put: Callable[[R], None]) -> BaseException | None:
    """Return what `result` raises: asyncio takes no StopIteration of a thread."""
    try:
        put(result())
    except BaseException as e:  # also the function's own exit is for who awaits it
        return e
    return None


async def _news(batch: Batch[Session], index: int) -> None:
    """Sleep until there is news of the task."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:  # of the thread that receives outcomes
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(woken.set)

    batch.waiters.setdefault(index, []).append(wake)
    try:
        # Checked after the waiter was added: no news is missed.
        if not batch.ready(index) and batch.session.outcomes.gone is None:
            await woken.wait()
    finally:
        if wake in (left := batch.waiters.get(index, [])):
            left.remove(wake)
