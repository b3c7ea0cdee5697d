"""Supervisor of the local endpoint's agent: registers, starts and restarts it.

    oncue up: serve() in this process ──ready──► thread: register "local"
                                                   └──► python -m oncue.endpoint.run --dir DIR
                                                          └── it exited: restart after a pause
                                                              that grows with each failure

An agent that a person stopped (`oncue endpoint stop local`) stays stopped until
`oncue endpoint start local`. An agent that outlived a killed server dials the new server by
itself; the supervisor watches it and does not start a second one.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from oncue.cli.agent_process import (
    GRACE_S,
    local_folder,
    registered_name,
    running_agent,
    start_agent,
    stop_agent,
    stop_child,
)
from oncue.cli.registration import register_endpoint
from oncue.endpoint.settings import is_marked_stopped, load_or_default, save
from oncue.errors import Conflict, OncueError

log = logging.getLogger("oncue.up")
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)  # before a restart; the last one repeats
HELD_POLL_S = 0.5  # between checks whether the endpoint may start again
STEADY_S = 30.0  # an agent that ran for longer than this restarts without a pause


def register(data: Path, folder: Path, name: str, workers: int, local: dict[str, Any]) -> None:
    """Register the local endpoint and write its agent.json. Idempotent.

    `local` is the content of the server's `local.json`. A revoked endpoint gets new keys.
    """
    from oncue.client import Client

    with Client(local["url"], local["token"]) as client:
        registered = register_endpoint(client, folder, name)
    save(
        folder,
        msgspec.structs.replace(
            load_or_default(folder, registered.id, registered.name),
            server_key=registered.server_key,
            bridge=registered.bridge,
            bridge_file=str(data / "local.json"),
            server_blobs=local.get("blobs", ""),
            workers=workers,
        ),
    )


class LocalAgent:
    """Supervises the local endpoint's agent in a thread.

    `shared`: other servers have local endpoints too. If the name is taken, the endpoint is named
    after this host.
    """

    def __init__(self, data: Path, workers: int, name: str = "", shared: bool = False) -> None:
        self.data, self.workers, self.name, self.shared = data, workers, name, shared
        self.folder = local_folder(data)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, local: dict[str, Any]) -> None:
        """Start the thread and return at once, as the event loop calls this."""
        self._thread = threading.Thread(target=self._run, args=(local,), name="oncue-agent", daemon=True)
        self._thread.start()

    def _run(self, local: dict[str, Any]) -> None:
        self._register_until_done(local)
        fails = 0
        while not self._stop.is_set():
            if is_marked_stopped(self.folder):
                self._await_release()
                continue
            began = time.monotonic()
            ending = self._run_agent()
            if self._stop.is_set():
                return
            if is_marked_stopped(self.folder):
                continue
            fails = 0 if time.monotonic() - began > STEADY_S else fails + 1
            pause = PAUSES_S[min(fails, len(PAUSES_S)) - 1] if fails else 0.0
            log.error("the local endpoint's agent has ended (%s); restarting it in %g s", ending, pause)
            self._stop.wait(pause)

    def _register_until_done(self, local: dict[str, Any]) -> None:
        fails = 0
        while not self._stop.is_set():
            try:
                self._register(local)
                return
            except OncueError as e:
                log.error("the local endpoint could not be registered: %s", e)
                self._stop.wait(PAUSES_S[min(fails, len(PAUSES_S) - 1)])
                fails += 1

    def _await_release(self) -> None:
        log.warning("the local endpoint was stopped by hand; to start it: oncue endpoint start local")
        while not self._stop.wait(HELD_POLL_S) and is_marked_stopped(self.folder):
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

    def _run_agent(self) -> str:
        """Run the agent until it ends; return how it ended.

        If an agent runs already, watch that one.
        """
        pid = running_agent(self.folder)
        if pid:
            log.warning("using the running agent (pid %d), which another server has started", pid)
            while not self._stop.wait(1.0) and running_agent(self.folder) == pid:
                pass
            return f"pid {pid} is gone"
        # A session of its own: Ctrl-C at the terminal reaches the server, which stops the agent.
        self._process = start_agent(self.folder, by_hand=False, stdin=subprocess.DEVNULL, start_new_session=True)
        if self._stop.is_set():
            stop_child(self._process)
        return f"exit code {self._process.wait()}"

    def stop(self) -> None:
        """Stop the agent and the thread: SIGTERM, then SIGKILL after GRACE_S."""
        self._stop.set()
        process = self._process
        if process is not None and process.poll() is None:
            stop_child(process)
        elif process is None:
            stop_agent(self.folder)
        if self._thread is not None:
            self._thread.join(GRACE_S)
