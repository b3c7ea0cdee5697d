"""Captures what a task prints by Python, C or a child process.

Descriptors 1 and 2 are one file of the pool's, which is empty between tasks. So the pool can read
a running task's output, and the check after each task is three seeks:

    capture.fd ──► MARK bytes beyond its end: at MARK if it is empty
    1, 2 ────────► the same offset: they share the open file

A descriptor that was closed or redirected is elsewhere. Asking for its offset changes nothing in a
user's file.
"""

from __future__ import annotations

import _thread
import functools
import io
import os
import sys
import threading
from _thread import _count as _other_threads
from typing import Any

from oncue.endpoint.pool.output_file import read_output
from oncue.endpoint.worker.descriptors import move_up

#: An unlikely offset for any other file. Writes append, wherever the offset is.
MARK = 1_000_003
_MAIN = threading.main_thread().ident
_STARTED_BY = "_oncue_task"


class Capture:
    """The output file, and descriptors 0, 1 and 2 as a task must find them."""

    def __init__(self) -> None:
        self.fd = move_up(os.dup(1))
        self._null = move_up(os.open(os.devnull, os.O_RDWR))
        self.task = 0  # number of the running task, counted where threads outlive one
        self.function = ""  # that is running
        self.loading = False  # the function's imports run: their threads are the function's
        self.turn = threading.Lock()  # held while `task` changes, and while a thread prints
        self._local = threading.local()  # of threads: the task that started it
        self.out, self.err = self._text(1), self._text(2)
        self._watch_threads()
        self.restore()

    def restore(self) -> None:
        """Restore descriptors and streams that a task has replaced or closed."""
        for fd, right in ((0, self._null), (1, self.fd), (2, self.fd)):
            if not _same(fd, right):
                os.dup2(right, fd)
        sys.stdout, sys.stderr = self.out, self.err
        sys.__stdout__, sys.__stderr__ = self.out, self.err  # type: ignore[misc]

    def collect(self) -> bytes:
        """Return what the task printed, and restore 1 and 2 if needed.

        Called after each task. Threads that it has left behind print nothing more.
        """
        if _other_threads():
            with self.turn:
                self.task += 1
        end = os.lseek(self.fd, MARK, 2)
        try:
            right = os.lseek(1, 0, 1) == end and os.lseek(2, 0, 1) == end
        except OSError:  # closed, or a pipe
            right = False
        if not right:
            self.restore()
        return self._drain() if end != MARK else b""

    def begin(self, function: str) -> None:
        """Drop what was printed since the last chunk's end, by whomever."""
        self.function = function
        if os.lseek(self.fd, MARK, 2) != MARK:
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, MARK, 2)

    def is_of_another_task(self) -> bool:
        """Return True in a thread that an earlier task has started."""
        try:
            started_by = self._local.task
        except AttributeError:
            thread = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
            started_by = self._local.task = getattr(thread, _STARTED_BY, None)
        return started_by is not None and started_by not in (self.task, self.function)

    def forked(self) -> None:
        """Make a new lock in a forked child: an absent thread may hold the old one."""
        self.turn = threading.Lock()

    def no_input(self) -> bool:
        """Return True if 0 is /dev/null, which is at 0 after any seek."""
        try:
            return os.lseek(0, 1, 1) == 0
        except OSError:
            return False

    def _text(self, fd: int) -> io.TextIOWrapper:
        """Open a stream, unbuffered: output of C and child processes keeps its order."""
        raw = io.FileIO(fd, "w", closefd=False)
        text = _Text(raw, "utf-8", errors="backslashreplace", write_through=True)
        text.capture = self
        return text

    def _watch_threads(self) -> None:
        """Note in each thread which task started it."""
        start, start_new = threading.Thread.start, _thread.start_new_thread

        def present() -> int | str:
            """Return the task of the present thread, or its function while that is loaded."""
            mine: int | str | None = getattr(self._local, "task", None)
            if threading.get_ident() == _MAIN or mine is None:
                return self.function if self.loading else self.task
            return mine

        @functools.wraps(start)
        def noted(thread: threading.Thread) -> None:
            setattr(thread, _STARTED_BY, present())
            start(thread)

        @functools.wraps(start_new)
        def started(function: Any, args: Any, kwargs: Any = None) -> int:
            task = present()

            def run(*args: Any, **kwargs: Any) -> None:
                self._local.task = task
                function(*args, **kwargs)

            return start_new(run, args, kwargs or {})

        threading.Thread.start = noted  # type: ignore[method-assign,assignment]
        _thread.start_new_thread = started

    def _drain(self) -> bytes:
        """Return the output since the last call, and empty the file."""
        found = read_output(self.fd)
        os.ftruncate(self.fd, 0)
        return found


class _Text(io.TextIOWrapper):
    """A stream that a function cannot close.

    Threads that an earlier task left behind do not write to it.
    """

    capture: Capture

    def close(self) -> None:
        pass

    def write(self, text: str) -> int:
        if threading.get_ident() != _MAIN:
            with self.capture.turn:
                if self.capture.is_of_another_task():
                    return len(text)
                return super().write(text)
        return super().write(text)


def _same(a: int, b: int) -> bool:
    try:
        one, two = os.fstat(a), os.fstat(b)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
