"""The agent of the local endpoint: registered with the server, started as a child, started again when it dies.

    oncue up ── serve() (this process) ──ready──► thread: register "local" ─► python -m oncue.endpoint.run --dir DIR
                                                                └── it died: again, after a pause that grows

One that was stopped by hand (`oncue endpoint stop local`) stays stopped, until `oncue endpoint start local`.
An agent that a killed server left behind goes on working and dials the new server; it is adopted, not doubled.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from oncue.endpoint.settings import is_held
from oncue.errors import Conflict, OncueError

log = logging.getLogger("oncue.up")
GRACE_S = 10.0
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
HELD_S = 0.5  # between looks whether the endpoint may start again
STEADY_S = 30.0  # an agent that ran for so long starts again without a pause


def register(data: Path, folder: Path, name: str, workers: int, local: dict[str, Any]) -> None:
    """Make the keys, tell the server, write agent.json. Again is harmless; an endpoint that was revoked gets new keys."""
    from oncue.cli.registration import enrol
    from oncue.client import Client
    from oncue.endpoint.settings import load_or_new, save

    with Client(local["url"], local["token"]) as client:
        found = enrol(client, folder, name)
    save(
        folder,
        msgspec.structs.replace(
            load_or_new(folder, found.id, found.name),
            server_key=found.server_key,
            bridge=found.bridge,
            bridge_file=str(data / "local.json"),
            workers=workers,
        ),
    )


def local_folder(data: Path) -> Path:
    """Of the endpoint that `oncue up` starts."""
    return data / "endpoints" / "local"


def running_agent(folder: Path) -> int:
    """The pid of the agent that holds this folder's lock; 0: none does."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return int(os.pread(handle, 32, 0).decode("ascii", "replace").strip() or 0)
    finally:
        os.close(handle)
    return 0


def agent_command(folder: Path, *, by_hand: bool) -> list[str]:
    """`by_hand`: also where it was stopped by hand."""
    # -P: files of the folder where the command is given (queue.py, say) are nobody's modules.
    command = [sys.executable, "-P", "-m", "oncue.endpoint.run", "--dir", str(folder)]
    return [*command, "--by-hand"] if by_hand else command


def start_agent(folder: Path, *, by_hand: bool, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(agent_command(folder, by_hand=by_hand), **options)


def registered_name(folder: Path) -> str:
    """Of the endpoint in this folder; "": it was not registered yet."""
    from oncue.endpoint.settings import load

    try:
        return load(folder).name
    except OncueError:
        return ""


class LocalAgent:
    """`shared`: other servers have local endpoints, too. Then one whose name is taken gets a name with this host's in it."""

    def __init__(self, data: Path, workers: int, name: str = "", shared: bool = False) -> None:
        self.data, self.workers, self.name, self.shared = data, workers, name, shared
        self.folder = local_folder(data)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, local: dict[str, Any]) -> None:
        """From the server's loop: returns at once."""
        self._thread = threading.Thread(target=self._run, args=(local,), name="oncue-agent", daemon=True)
        self._thread.start()

    def _run(self, local: dict[str, Any]) -> None:
        fails = 0
        while not self._stop.is_set():
            try:
                self._register(local)
                break
            except OncueError as e:
                log.error("the local endpoint could not be registered: %s", e)
                self._stop.wait(PAUSES_S[min(fails, len(PAUSES_S) - 1)])
                fails += 1
        fails = 0
        while not self._stop.is_set():
            if is_held(self.folder):
                self._await_start()
                continue
            began = time.monotonic()
            code = self._one_life()
            if self._stop.is_set():
                return
            if is_held(self.folder):
                continue
            fails = 0 if time.monotonic() - began > STEADY_S else fails + 1
            pause = PAUSES_S[min(fails, len(PAUSES_S)) - 1] if fails else 0.0
            log.error("the local endpoint's agent ended (%s); it starts again in %g s", code, pause)
            self._stop.wait(pause)

    def _await_start(self) -> None:
        log.warning("the local endpoint was stopped by hand, and stays so until: oncue endpoint start local")
        while not self._stop.wait(HELD_S) and is_held(self.folder):
            pass

    def _register(self, local: dict[str, Any]) -> None:
        host = socket.gethostname().partition(".")[0]
        names = [self.name or registered_name(self.folder) or "local"]
        if self.shared and not self.name:
            names += [f"local-{host}", *(f"local-{host}-{n}" for n in range(2, 100))]
        for name in names[:-1]:
            try:
                return register(self.data, self.folder, name, self.workers, local)
            except Conflict as e:
                log.info("the local endpoint gets another name: %s", e.message)
        register(self.data, self.folder, names[-1], self.workers, local)

    def _one_life(self) -> str:
        pid = running_agent(self.folder)
        if pid:
            log.warning("an agent that this server did not start (pid %d) goes on", pid)
            while not self._stop.wait(1.0) and running_agent(self.folder) == pid:
                pass
            return f"pid {pid} is gone"
        # A session of its own: Ctrl-C at the terminal is for the server, which then ends the agent in order.
        self._process = start_agent(self.folder, by_hand=False, stdin=subprocess.DEVNULL, start_new_session=True)
        if self._stop.is_set():
            end(self._process.pid, self._process)
        return f"exit code {self._process.wait()}"

    def stop(self) -> None:
        """TERM, a grace, KILL."""
        self._stop.set()
        process = self._process
        if process is not None and process.poll() is None:
            end(process.pid, process)
        elif process is None and (pid := running_agent(self.folder)):
            end(pid, None)
        if self._thread is not None:
            self._thread.join(GRACE_S)


def end(pid: int, process: subprocess.Popen[bytes] | None, grace_s: float = GRACE_S) -> None:
    """Stop an agent: TERM, and KILL when it has not ended in time."""
    from oncue.cli.local_server import alive, await_true

    def gone() -> bool:
        return process.poll() is not None if process is not None else not alive(pid)

    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if await_true(gone, grace_s):
            return
