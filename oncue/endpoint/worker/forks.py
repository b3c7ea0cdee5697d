"""Cuts processes that a function forks off from the worker's pool.

SIGTERM raises an exception in a worker. A child has the default instead, as `terminate()` of
`multiprocessing` expects. SIGTERM is blocked meanwhile: Python forgets signals that a child gets
before its first line.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

_MADV_WIPEONFORK = 18
_TERM = {signal.SIGTERM}


class Forks:
    """Callbacks around each fork.

    `on_term`: the worker's handler of SIGTERM. `descriptors`: what a child must not use.
    `before` is called before a fork, `in_child` in the child.
    """

    def __init__(
        self, on_term: Any, descriptors: Sequence[int], before: Callable[[], None], in_child: Callable[[], None]
    ) -> None:
        self._on_term, self._descriptors = on_term, descriptors
        self._before_fork, self._in_child = before, in_child
        self._page = _page_of_this_process()
        self._mask = threading.local()  # of the thread that forks
        # Kept, because cleanup.py replaces them.
        self._set_signal, self._set_mask = signal.signal, signal.pthread_sigmask
        self._disable_traces = faulthandler.disable
        os.register_at_fork(before=self._before, after_in_parent=self._unblock, after_in_child=self._in_a_child)

    @property
    def original(self) -> bool:
        """True in the worker; False in a process that was forked off, also by C."""
        return bool(self._page[0])

    def _before(self) -> None:
        self._before_fork()
        self._mask.before = self._set_mask(signal.SIG_BLOCK, _TERM)

    def _unblock(self) -> None:
        self._set_mask(signal.SIG_SETMASK, self._mask.before)

    def _in_a_child(self) -> None:
        self._page[0] = 0
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            for fd in self._descriptors:
                os.dup2(null, fd, inheritable=False)
            os.close(null)
        with contextlib.suppress(ValueError):
            self._disable_traces()
        self._in_child()
        if signal.getsignal(signal.SIGTERM) == self._on_term:
            self._set_signal(signal.SIGTERM, signal.SIG_DFL)
        self._unblock()


def _page_of_this_process() -> mmap.mmap:
    """Return memory that holds 1 here, and 0 in a process forked off, also by C."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # before Linux 4.14
            page.madvise(_MADV_WIPEONFORK)
    return page


def default_signals() -> None:
    """Reset signals that the agent's parent ignored or blocked: nohup, a shell's `&`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)}:
        if signal.getsignal(number) is signal.SIG_IGN:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
