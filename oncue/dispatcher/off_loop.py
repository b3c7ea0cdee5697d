"""Threads for work on requests that would hold the event loop.

They are few, so that the loop gets its turn: Python code in a thread yields within a millisecond,
and decompression runs without the interpreter's lock. One call in C that keeps the lock is not made
shorter by a thread; such calls are bounded by the size of their input. Owners take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from oncue.processes.fair_threads import FairThreads

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 2
LARGE_BYTES = 32 * 1024  # smaller bodies are decoded in the loop: that takes some milliseconds
MANY = 2_000  # fewer items are handled in the loop
_threads = FairThreads(THREADS, "oncue-body")


async def off_loop(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return work(*args, **kwargs), computed in a thread."""
    return await _threads.run(lambda: work(*args, **kwargs))


async def off_loop_if(large: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return work(*args, **kwargs), computed in a thread only if it is `large`."""
    return await off_loop(work, *args, **kwargs) if large else work(*args, **kwargs)
