"""Runs oncue as users do: its commands, in processes, on free ports.

Each system has a folder of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import psutil

from oncue.client import Client

T = TypeVar("T")
PATIENCE_S = 45.0  # the machines that test are slow and shared


def on_kafka(address: str, data: Path) -> str:
    """Return the URL of a log for this data folder; always the same one."""
    return f"kafka://{address}?prefix=e{hashlib.sha256(str(data).encode()).hexdigest()[:10]}.&session_s=2"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    url: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one HTTP request to the server of this URL."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


class System:
    """A data folder, a working folder, and the `oncue` commands run there."""

    def __init__(self, folder: Path, data: Path | None = None, **settings: str) -> None:
        self.folder = folder
        self.data = data or folder / "data"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ONCUE_")}
        self.env = kept | {"ONCUE_DATA": str(self.data)} | settings
        self._seen: dict[int, psutil.Process] = {}  # processes it has started, for `left`

    # ------------------------------------------------------------ commands

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "oncue", *words],
            cwd=cwd or self.folder,
            env=self.env | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def oncue(
        self,
        *words: str,
        code: int | None = 0,
        given: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Check the exit code, unless it is None."""
        done = subprocess.run(
            [sys.executable, "-m", "oncue", *words],
            cwd=cwd or self.folder,
            env=self.env | dict(env or {}),
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *words: str, code: int = 0, given: str = "") -> Any:
        return json.loads(self.oncue(*words, "--json", code=code, given=given).stdout)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    # ------------------------------------------------------------ the server

    def up(self, *words: str) -> None:
        self.oncue("up", "--detach", "--port", "0", *words)
        self.note()

    def down(self) -> None:
        self.note()
        self.oncue("down")

    @property
    def local(self) -> dict[str, Any]:
        return dict(json.loads((self.data / "local.json").read_text()))

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(int(self.local["pid"]))

    def note(self) -> list[psutil.Process]:
        """Record the server, the agent and the workers, and return them."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            server = self.server
            found = [server, *server.children(recursive=True)]
            self._seen |= {p.pid: p for p in found}
            return found
        return []

    def agent_and_workers(self) -> list[psutil.Process]:
        """Return the agent and its workers, once the endpoint is connected."""
        self.await_connected()
        return self.note()[1:]

    def await_connected(self, endpoint: str = "local") -> None:
        def connected() -> bool:
            answer = self.http("GET", f"/v1/endpoints/{endpoint}")
            return answer.status == 200 and answer.json["state"] == "connected"

        self.await_true(connected, f"{endpoint} is connected")

    def left(self) -> list[psutil.Process]:
        """Return the recorded processes that still run."""
        return [p for p in self._seen.values() if not has_ended(p)]

    def end(self) -> None:
        """Kill everything that still runs, in any state of the system."""
        self.note()
        with contextlib.suppress(Exception):
            self.oncue("down")
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # ------------------------------------------------------------ asking

    def client(self) -> Client:
        return Client(data=self.data, patience=30)

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = "",
    ) -> Answer:
        """Send one HTTP request.

        `body`: bytes, or an object to send as JSON. `token`: "" is the local token, None is none.
        """
        local = self.local
        sent: dict[str, str] = {}
        if token is not None:
            sent["Authorization"] = f"Bearer {token or local['token']}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        return request(local["url"], method, path, body, sent | dict(headers or {}))

    def pages(self, path: str) -> Iterator[Answer]:
        """Yield the pages of a list; `path` has a query."""
        cursor: str | None = ""
        while cursor is not None:
            answer = self.http("GET", f"{path}&cursor={cursor}")
            assert answer.status == 200, answer
            yield answer
            cursor = answer.json["next"]

    def tasks(self, **query: str) -> list[dict[str, Any]]:
        words = "".join(f"&{k}={v}" for k, v in query.items())
        return [task for page in self.pages(f"/v1/tasks?limit=1000{words}") for task in page.json["items"]]

    def metric(self, series: str, *, may_be_absent: bool = False) -> float:
        """Return the sum of the series of /metrics that begin so."""
        lines = self.http("GET", "/metrics").body.decode().splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(series)]
        assert found or may_be_absent, f"/metrics has no {series}"
        return sum(found)

    def await_tasks(self, count: int, **query: str) -> list[dict[str, Any]]:
        """Wait for exactly so many closed tasks."""
        self.await_true(lambda: len(self.tasks(state="closed", **query)) >= count, f"{count} closed tasks of {query}")
        found = self.tasks(**query)
        assert len(found) == count, found
        return found

    def await_true(self, what: Callable[[], T], name: str, seconds: float = PATIENCE_S, every_s: float = 0.03) -> T:
        """Poll for a state of other processes, which send no event."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if found := what():
                    return found
            assert time.monotonic() < deadline, f"not in {seconds:g} s: {name}\n{self.said()}"
            threading.Event().wait(every_s)

    def said(self) -> str:
        """Return the end of the server's log."""
        try:
            return (self.data / "server.log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""


@contextlib.contextmanager
def system_in(folder: Path, *words: str, data: Path | None = None, **settings: str) -> Iterator[System]:
    """Yield a running system; end all of its processes afterwards."""
    found = System(folder, data, **settings)
    try:
        found.up(*words)
        yield found
    finally:
        found.end()


def has_ended(process: psutil.Process) -> bool:
    """Return True also of a process that nobody reaps."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class StreamWorker:
    """A process of `oncue stream`."""

    def __init__(self, system: System, env: Mapping[str, str]) -> None:
        self.process = system.start("stream", env=env)

    def expect(self, words: str) -> None:
        """Check the next line of its stdout."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert words in line, (line, self.process.communicate(timeout=30) if not line else "")


def signalled(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    """Send the signal and wait for the exit. Return (stdout, stderr)."""
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE_S)
