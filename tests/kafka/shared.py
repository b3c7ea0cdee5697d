"""One broker for all workers of a test run.

The first worker that needs it starts a guard. The guard ends the broker when none of the registered
workers runs any more, however they ended.

    worker ──lock──► kafka.json: {pids, address, data} ◄── guard (own process) ──► broker
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kafka.broker import START_S, Broker
from tests.kafka.jars import jars, java

POLL_S = 0.5


@contextlib.contextmanager
def _state(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the run's state under its lock, and write it back."""
    with (folder / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / "kafka.json"
        state = json.loads(file.read_text()) if file.exists() else {"pids": [], "address": "", "data": "", "error": ""}
        yield state
        file.write_text(json.dumps(state))


def join(folder: Path) -> tuple[str, str]:
    """Return (address, data folder) of the run's broker.

    Its state is in `folder`. Raises Missing, or AssertionError.
    """
    java(), jars()  # raises Missing in the test's process
    with _state(folder) as state:
        state["pids"].append(os.getpid())
        if len(state["pids"]) == 1 or not state.get("guard"):
            state["guard"] = _spawn_guard(folder)
    end = time.monotonic() + START_S + 10
    while time.monotonic() < end:
        with _state(folder) as state:
            if state["address"]:
                return state["address"], state["data"]
            assert not state["error"], state["error"]
        time.sleep(0.1)
    raise AssertionError("the shared broker did not start")


def _spawn_guard(folder: Path) -> int:
    """Start the guard in its own session: Ctrl-C reaches the workers only."""
    command = [sys.executable, "-m", "tests.kafka.shared", str(folder)]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    nothing = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1, 2)]
    return os.posix_spawn(sys.executable, command, environ, file_actions=nothing, setsid=True)


def leave(folder: Path) -> None:
    with _state(folder) as state:
        state["pids"].remove(os.getpid())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def guard(folder: Path) -> None:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    where = Path(tempfile.mkdtemp(prefix="oncue-kafka-"))
    broker = Broker(where, heap_mb=384)
    try:
        try:
            broker.start()
        except Exception as e:
            with _state(folder) as state:
                state["error"] = str(e)
            return
        with _state(folder) as state:
            state["address"], state["data"] = broker.address, str(broker.data)
        while not ended:
            time.sleep(POLL_S)
            with _state(folder) as state:
                if not any(_alive(pid) for pid in state["pids"]):
                    state |= {"pids": [], "address": "", "data": "", "guard": 0}
                    return
    finally:
        broker.kill()
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
