"""Settings of a process that a task may change, and how each is read and written.

A Setting is compared with its saved value after a task that called one of its `watched` functions;
without any, after each chunk.
This list has the modules that every worker has imported; late_settings.py has the others.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import locale
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
# Those of the modules, before cleanup.py replaces them.
_umask, _setitimer, _setlocale, _tzset = os.umask, signal.setitimer, locale.setlocale, time.tzset
_set_signal, _set_asyncgen_hooks = signal.signal, sys.set_asyncgen_hooks
_CATCHABLE = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_pthread_sigmask, _set_wakeup_fd = signal.pthread_sigmask, signal.set_wakeup_fd
_settrace, _setprofile = sys.settrace, sys.setprofile
_enable_traces, _cancel_traces = faulthandler.enable, faulthandler.cancel_dump_traceback_later
_trace_threads, _profile_threads = threading.settrace, threading.setprofile
_gc_enable, _gc_disable, _gc_debug, _gc_threshold = gc.enable, gc.disable, gc.set_debug, gc.set_threshold
_setrlimit, _setpriority = resource.setrlimit, os.setpriority
_set_affinity: Any = getattr(os, "sched_setaffinity", None)


class Setting(NamedTuple):
    """One setting. `write` raises OSError, ValueError or locale.Error if it cannot."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    watched: tuple[tuple[Any, tuple[str, ...]], ...]
    fresh: Any = None  # the value of a module that was just imported


def limits() -> dict[int, tuple[int, int]]:
    return {limit: resource.getrlimit(limit) for limit in LIMITS}


def affinity() -> set[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in _CATCHABLE}


def _write_handlers(saved: dict[int, Any]) -> None:
    for number, handler in saved.items():
        if handler is not None and signal.getsignal(number) != handler:
            _set_signal(number, handler)


def _read_umask() -> int:
    found = _umask(0o077)
    _umask(found)
    return found


def _write_environ(saved: dict[str, str]) -> None:
    zone = os.environ.get("TZ")
    for name in [n for n in os.environ if n not in saved]:
        del os.environ[name]
    for name, value in saved.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if os.environ.get("TZ") != zone:
        _tzset()


def _write_limits(saved: dict[int, tuple[int, int]]) -> None:
    now = limits()
    for limit in [n for n in now if now[n] != saved[n]]:
        _setrlimit(limit, saved[limit])


def _write_gc(saved: tuple[bool, tuple[int, int, int], int]) -> None:
    (_gc_enable if saved[0] else _gc_disable)()
    _gc_threshold(*saved[1])
    _gc_debug(saved[2])


def _stop_timers(_: object) -> None:
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        _setitimer(timer, 0)


def _stop_tracing(_: object) -> None:
    _settrace(None)
    _setprofile(None)
    _trace_threads(None)
    _profile_threads(None)


def _reset_traces(_: object) -> None:
    with contextlib.suppress(ValueError, OSError):
        _cancel_traces()
        _enable_traces(2)


def _write_warnings(saved: list[Any]) -> None:
    warnings.filters[:] = saved  # type: ignore[index]
    changed = getattr(warnings, "_filters_mutated", None)
    if changed is not None:
        changed()


def unread() -> None:
    """Reader of a setting that is written in any case: what it was is known."""


SETTINGS = [
    Setting("environ", lambda: dict(os.environ), _write_environ, ((os, ("putenv", "unsetenv")), (time, ("tzset",)))),
    Setting("umask", _read_umask, _umask, ((os, ("umask",)),)),
    Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, ((sys, ("setrecursionlimit",)),)),
    Setting("switch interval", sys.getswitchinterval, sys.setswitchinterval, ((sys, ("setswitchinterval",)),)),
    Setting(
        "digits of integers",
        sys.get_int_max_str_digits,
        sys.set_int_max_str_digits,
        ((sys, ("set_int_max_str_digits",)),),
    ),
    Setting("dlopen flags", sys.getdlopenflags, sys.setdlopenflags, ((sys, ("setdlopenflags",)),)),
    Setting(
        "asynchronous generators",
        sys.get_asyncgen_hooks,
        lambda saved: _set_asyncgen_hooks(*saved),
        ((sys, ("set_asyncgen_hooks",)),),
    ),
    Setting(
        "origin tracking",
        sys.get_coroutine_origin_tracking_depth,
        sys.set_coroutine_origin_tracking_depth,
        ((sys, ("set_coroutine_origin_tracking_depth",)),),
    ),
    Setting(
        "tracing",
        unread,
        _stop_tracing,
        (
            (sys, ("settrace", "setprofile")),
            (threading, ("settrace", "setprofile", "settrace_all_threads", "setprofile_all_threads")),
        ),
    ),
    Setting("stack of threads", threading.stack_size, threading.stack_size, ((threading, ("stack_size",)),)),
    Setting(
        "garbage collection",
        lambda: (gc.isenabled(), gc.get_threshold(), gc.get_debug()),
        _write_gc,
        ((gc, ("enable", "disable", "set_threshold", "set_debug")),),
    ),
    Setting("limits", limits, _write_limits, ((resource, ("setrlimit", "prlimit")),)),
    Setting(
        "priority",
        lambda: os.getpriority(os.PRIO_PROCESS, 0),
        lambda saved: _setpriority(os.PRIO_PROCESS, 0, saved),
        ((os, ("nice", "setpriority")),),
    ),
    Setting("processors", affinity, lambda saved: _set_affinity(0, saved), ((os, ("sched_setaffinity",)),)),
    Setting(
        "locale",
        lambda: _setlocale(locale.LC_ALL),
        lambda saved: _setlocale(locale.LC_ALL, saved),
        ((locale, ("setlocale",)),),
    ),
    Setting("signal handlers", _handlers, _write_handlers, ((signal, ("signal", "siginterrupt")),)),
    Setting("timers", unread, _stop_timers, ((signal, ("alarm", "setitimer")),)),
    Setting(
        "signal mask",
        unread,
        lambda _: _pthread_sigmask(signal.SIG_SETMASK, ()),
        ((signal, ("pthread_sigmask",)),),
    ),
    Setting("wakeup descriptor", unread, lambda _: _set_wakeup_fd(-1), ((signal, ("set_wakeup_fd",)),)),
    Setting(
        "traces of crashes",
        unread,
        _reset_traces,
        ((faulthandler, ("disable", "enable", "dump_traceback_later", "register", "unregister")),),
    ),
    Setting(
        "name of the thread",
        lambda: threading.main_thread().name,
        lambda saved: setattr(threading.main_thread(), "name", saved),
        (),
    ),
    Setting(
        "warnings",
        lambda: list(warnings.filters),
        _write_warnings,
        ((warnings, ("filterwarnings", "simplefilter", "resetwarnings")),),
    ),
]
#: What these change cannot be changed back: the worker ends after the task.
FINAL: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (os, ("setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid")),
    (os, ("setgroups", "initgroups", "chroot", "unshare", "setns", "setpgid", "setpgrp", "setsid")),
    (sys, ("addaudithook",)),  # nothing removes a hook
)
