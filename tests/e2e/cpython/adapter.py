"""Adapter: runs CPython's test_concurrent_futures against `client.executor()`.

    python adapter.py FOLDER [ID ...]

FOLDER has a copy of the tests, as a module or package of the user's, so that its functions travel
to the workers. ONCUE_URL and ONCUE_TOKEN name the server, ONCUE_TEST_ENDPOINT an endpoint with five
workers. Each test is a line of JSON: its id, outcome, and why. Needs no pytest: it runs in any
Python from 3.11 on that has the packages of a client.
"""

from __future__ import annotations

import concurrent.futures.process
import fnmatch
import importlib
import json
import os
import pkgutil
import sys
import types
import unittest
from collections.abc import Iterator
from typing import Any

from oncue import Client, OncueExecutor, TaskFailed

SUITE = "test_concurrent_futures"
ENDPOINT = os.environ.get("ONCUE_TEST_ENDPOINT", "local")
PROCESSES = "it looks at the processes of ProcessPoolExecutor"
THREADS = "it looks at the threads of ThreadPoolExecutor"
SHARED = "its function uses a lock, event or list of the caller's process, as only a thread can"
WORKERS = "the number and the life of workers are the endpoint's: no argument of the executor's"

#: Tests that do not apply, and why: patterns of CLASS.TEST.
EXCLUDED = {
    "FutureTests.*": "of Future itself, which is the standard library's here too",
    "ExecutorDeadlockTest.*": "of the pipes and threads in ProcessPoolExecutor; test_outcomes.py has workers' deaths",
    "InitializerMixin.*": "executors here have no initializer: a function's module is imported once a worker",
    "FailingInitializer*.*": "executors here have no initializer: a function's module is imported once a worker",
    "ExecutorTest.test_max_workers_negative": WORKERS,
    "ThreadPoolExecutorTest.test_default_workers": WORKERS,
    "ProcessPoolExecutorTest.test_max_workers_too_large": WORKERS,
    "ProcessPoolExecutorTest.test_max_tasks_*": WORKERS,
    "ThreadPoolShutdownTest.*": THREADS,
    "ThreadPoolExecutorTest.test_idle_thread_reuse": THREADS,
    "ThreadPoolExecutorTest.test_saturation": THREADS,
    "ThreadPoolExecutorTest.test_hang_global_shutdown_lock": THREADS,
    "ThreadPoolExecutorTest.test_map_submits_without_iteration": SHARED,
    "ThreadPoolExecutorTest.test_executor_map_current_future_cancel": SHARED,
    "ThreadPoolWaitTests.test_pending_calls_race": SHARED,
    "ProcessPoolShutdownTest.*": PROCESSES,
    "ProcessPoolExecutorTest.test_killed_child": PROCESSES,
    "ProcessPoolExecutorTest.test_saturation": PROCESSES,
    "ProcessPoolExecutorTest.test_idle_process_reuse_*": PROCESSES,
    "ProcessPoolExecutorTest.test_python_finalization_error": PROCESSES,
    "ProcessPoolExecutorTest.test_ressources_gced_in_workers": "its argument is a proxy of multiprocessing: its key stays here",
}


class OncuePool:
    """Stands for ThreadPoolExecutor: makes an executor of the client, whose workers are the endpoint's."""

    client: Client | None = None

    def __new__(cls, max_workers: int | None = None) -> Any:
        cls.client = cls.client or Client()
        return cls.client.executor(ENDPOINT)


class PrintingPool:
    """OncuePool of a test's own program, which expects what its functions print on its stdout."""

    def __new__(cls, max_workers: int | None = None) -> Any:
        made: OncueExecutor = OncuePool(max_workers)
        submit = made.submit

        def printing(*args: Any, **kwargs: Any) -> Any:
            future = submit(*args, **kwargs)
            future.add_done_callback(lambda done: print(done.task.info().output, end="", flush=True))  # type: ignore[attr-defined]
            return future

        made.submit = printing  # type: ignore[method-assign]
        return made


def install(folder: str) -> None:
    """Prepare a test's own program: `from concurrent.futures import OncuePool` works in it."""
    sys.path.insert(0, folder)
    concurrent.futures.OncuePool = PrintingPool  # type: ignore[attr-defined]


def own_program(folder: str) -> Any:
    """Return the suite's `assert_python_ok`, for programs that use this adapter."""
    from test.support.script_helper import assert_python_ok

    def run(_: str, program: str) -> Any:
        here = os.path.dirname(os.path.abspath(__file__))
        before = f"import sys; sys.path.insert(0, {here!r}); import adapter; adapter.install({folder!r})\n"
        kept = {name: value for name, value in os.environ.items() if name.startswith(("ONCUE_", "PYTHON"))}
        return assert_python_ok("-c", before + program.replace(f"test.{SUITE}", SUITE), **kept)

    return run


# ---------------------------------------------------------------- the tests


def modules(folder: str) -> list[types.ModuleType]:
    """Import the suite: a module up to Python 3.11, a package since 3.12."""
    sys.path.insert(0, folder)
    root = importlib.import_module(SUITE)
    names = [m.name for m in pkgutil.iter_modules(getattr(root, "__path__", ()))]
    return [root, *(importlib.import_module(f"{SUITE}.{name}") for name in names)]


def tests_of(found: list[types.ModuleType]) -> Iterator[tuple[type, str]]:
    """Yield (class, method) of each test that a class of the suite defines itself."""
    for module in found:
        for cls in (value for _, value in sorted(vars(module).items()) if isinstance(value, type)):
            if cls.__module__ == module.__name__:
                yield from ((cls, name) for name in sorted(vars(cls)) if name.startswith("test"))


def adapted(cls: type, mixin: type, base: type) -> Any:
    """Return the test class, with OncuePool as its executor.

    Its class methods stay those of the suite's class, which a worker can import.
    """
    bases = (mixin, cls) if issubclass(cls, unittest.TestCase) else (mixin, cls, base)
    shared = {n: staticmethod(getattr(cls, n)) for n, value in vars(cls).items() if isinstance(value, classmethod)}
    return type(cls.__name__, bases, shared)


def run(test: unittest.TestCase) -> tuple[str, str]:
    result = unittest.TestResult()
    test.run(result)
    if result.skipped:
        return "skipped", result.skipped[0][1]
    problems = [text for _, text in (*result.failures, *result.errors)]
    return ("failed", "\n".join(problems)) if problems else ("passed", "")


def main(folder: str, wanted: list[str]) -> None:
    from test import support

    # The cause of an exception has the traceback of the worker, as that of a process pool's.
    concurrent.futures.process._RemoteTraceback = TaskFailed  # type: ignore[attr-defined, misc]
    TaskFailed.tb = property(lambda self: self.traceback)  # type: ignore[attr-defined]
    support.verbose = 0  # it would print times
    found = modules(folder)
    parts: dict[str, Any] = {name: value for module in found for name, value in vars(module).items()}
    for module in found:
        if hasattr(module, "assert_python_ok"):
            module.assert_python_ok = own_program(folder)
    mixin = type("OncueMixin", (parts["ExecutorMixin"],), {"executor_type": OncuePool})
    OncuePool().submit(int).result(60)  # the client's threads start before a test counts threads
    for cls, method in tests_of(found):
        name = f"{cls.__name__}.{method}"
        if wanted and name not in wanted:
            continue
        reasons = [why for pattern, why in EXCLUDED.items() if fnmatch.fnmatchcase(name, pattern)]
        outcome, why = ("excluded", reasons[0]) if reasons else run(adapted(cls, mixin, parts["BaseTestCase"])(method))
        print(json.dumps({"id": name, "outcome": outcome, "why": why}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
