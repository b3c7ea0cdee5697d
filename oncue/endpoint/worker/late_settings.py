"""Settings of modules that a function may import, and a worker does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from oncue.endpoint.worker.settings import Setting, unread

EVENT_LOOP, START_METHOD = "event loop", "start method of multiprocessing"


def late_settings() -> dict[str, Callable[[Any], Setting]]:
    """Return what makes the settings of a module, by the module's name."""
    return {
        "logging": _logging,
        "socket": _socket,
        "random": _random,
        "numpy.random": _numpy_random,
        "asyncio.events": _event_loop,
        "tracemalloc": _tracemalloc,
        "csv": _csv,
        "numpy": _numpy,
        "multiprocessing": _start_method,
        "urllib.request": _urllib,
        "calendar": _calendar,
        "tempfile": lambda m: _assigned("folder of temporary files", m, "tempdir", None),
        "ssl": lambda m: _assigned("context of https", m, "_create_default_https_context", m.create_default_context),
        "multiprocessing.process": lambda m: _assigned(
            "name of the process", m.current_process(), "_name", "MainProcess"
        ),
    }


def _assigned(name: str, owner: Any, attribute: str, fresh: Any) -> Setting:
    """Return a setting that no function changes: it is compared after each chunk."""
    return Setting(name, lambda: getattr(owner, attribute), lambda saved: setattr(owner, attribute, saved), (), fresh)


def _calendar(m: Any) -> Setting:
    return Setting("first day of the week", m.firstweekday, m.setfirstweekday, ((m, ("setfirstweekday",)),), 0)


def _socket(m: Any) -> Setting:
    return Setting("timeout of sockets", m.getdefaulttimeout, m.setdefaulttimeout, ((m, ("setdefaulttimeout",)),))


def _csv(m: Any) -> Setting:
    return Setting("csv fields", m.field_size_limit, m.field_size_limit, ((m, ("field_size_limit",)),), 131_072)


def _urllib(m: Any) -> Setting:
    return Setting("url opener", lambda: m._opener, m.install_opener, ((m, ("install_opener",)),))


def _random(m: Any) -> Setting:
    """A task that seeds makes no later one repeat its numbers."""
    return Setting("random numbers", unread, lambda _: m._inst.seed(), ((m, ("seed", "setstate")),))


def _numpy_random(m: Any) -> Setting:
    seed = m.seed
    return Setting("random numbers of NumPy", unread, lambda _: seed(), ((m, ("seed", "set_state")),))


def _numpy(m: Any) -> Setting:
    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        return m.geterr(), m.get_printoptions()

    def write(saved: tuple[dict[str, Any], dict[str, Any]] | None) -> None:
        if saved is not None:  # imported by the task itself
            m.seterr(**saved[0])
            m.set_printoptions(**saved[1])

    return Setting("settings of NumPy", read, write, ((m, ("seterr", "set_printoptions")),))


def _start_method(m: Any) -> Setting:
    """A task that sets it, or uses the default, leaves it for the next one to set."""
    context = m.context._default_context

    def write(saved: Any) -> None:
        context._actual_context = saved

    return Setting(START_METHOD, lambda: context._actual_context, write, ((m, ("set_start_method",)),))


def _tracemalloc(m: Any) -> Setting:
    def write(tracing: bool) -> None:
        if m.is_tracing() and not tracing:
            m.stop()

    return Setting("tracing of memory", m.is_tracing, write, ((m, ("start",)),), False)


def _event_loop(m: Any) -> Setting:
    """asyncio.run leaves a thread without a loop, so that get_event_loop fails."""

    def read() -> tuple[Any, dict[str, Any]]:
        policy = m._event_loop_policy
        return policy, dict(vars(policy._local)) if hasattr(policy, "_local") else {}

    def write(saved: tuple[Any, dict[str, Any]]) -> None:
        policy, local = saved
        m._event_loop_policy = policy
        if policy is not None and hasattr(policy, "_local"):
            vars(policy._local).clear()
            vars(policy._local).update(local)

    return Setting(EVENT_LOOP, read, write, (), (None, {}))


def _logging(m: Any) -> Setting:
    """Levels, handlers and filters of all loggers.

    Handlers of loggers that are new since then go, so that they do not add up call by call.
    """

    def read() -> tuple[int, dict[Any, tuple[Any, ...]]]:
        loggers = [m.root, *(x for x in list(m.root.manager.loggerDict.values()) if isinstance(x, m.Logger))]
        return m.root.manager.disable, {x: _of_logger(x) for x in loggers}

    def write(saved: tuple[int, dict[Any, tuple[Any, ...]]]) -> None:
        disable, loggers = saved
        m.root.manager.disable = disable
        for logger, now in read()[1].items():
            of_new: Any = (m.NOTSET, [h for h in now[1] if isinstance(h, m.NullHandler)], [], True, False)
            level, handlers, filters, propagate, disabled = loggers.get(logger, of_new)
            logger.level, logger.propagate, logger.disabled = level, propagate, disabled
            logger.handlers[:], logger.filters[:] = handlers, filters
        m.root.manager._clear_cache()

    methods = ("addHandler", "removeHandler", "setLevel", "addFilter", "removeFilter")
    return Setting(
        "logging",
        read,
        write,
        ((m.Logger, methods), (m, ("disable",))),
        (0, {m.root: (m.WARNING, [], [], True, False)}),
    )


def _of_logger(logger: Any) -> tuple[Any, ...]:
    return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled


def imported(name: str) -> Any:
    """Return a module if it is imported and complete, else None."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if module is None or getattr(spec, "_initializing", False) else module
