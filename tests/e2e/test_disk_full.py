"""A full disk: new work is refused, running work ends, recovery is automatic."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.client import Client
from oncue.errors import DiskFull
from tests.e2e.running import PATIENCE_S, System, request
from tests.small_disk import filled, mounted

SIZE_MB = 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", SIZE_MB) as place:
        yield place


def hold(flag: str, until: str) -> str:
    import os
    import time

    open(flag, "w").close()
    while not os.path.exists(until):
        time.sleep(0.01)
    return "done in spite of it"


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    system = System(tmp_path, small_disk / "data")
    filler = small_disk / "filler"
    try:
        system.up("--workers", "1")
        with Client(data=system.data, patience=5) as client:
            running = client.submit(hold, str(tmp_path / "flag"), str(tmp_path / "go"))
            system.await_true((tmp_path / "flag").exists, "the task runs")
            stats = os.statvfs(small_disk)
            with filler.open("wb") as f:  # to 95 %
                f.write(b"x" * (stats.f_bavail * stats.f_frsize - (SIZE_MB << 20) // 20))
            call = {"function": "hold", "kwargs": {"flag": "/dev/null", "until": "/"}}

            def refused() -> bool:
                return system.http("POST", "/v1/tasks", call).status == 507

            system.await_true(refused, "the server refuses tasks")
            answer = system.http("POST", "/v1/tasks", call)
            assert answer.json["code"] == "disk-full"
            assert "free space" in answer.json["remedy"]
            assert "retry-after" in answer.headers
            assert system.http("POST", "/v1/events", {"type": "a", "source": "/b"}).status == 507
            output = system.oncue("events", "emit", "--type", "a", "--source", "/b", code=1).stderr
            assert "full" in output
            assert "→" in output
            with pytest.raises(DiskFull):
                client.submit(pow, 2, 2).result(PATIENCE_S)
            assert "full" in system.http("GET", "/health/ready").body.decode()
            (tmp_path / "go").touch()
            assert running.result(PATIENCE_S) == "done in spite of it"
            assert system.http("GET", f"/v1/tasks/{running.id}").json["state"] == "succeeded"
            filler.unlink()

            def accepted() -> bool:
                return system.http("POST", "/v1/events", {"type": "a", "source": "/b"}).status == 202

            system.await_true(accepted, "the server accepts again")
            assert client.submit(pow, 2, 2).result(PATIENCE_S) == 4
    finally:
        filler.unlink(missing_ok=True)
        system.end()


def start(system: System) -> None:
    """Start a server whose disk may be too full for its log file."""
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(
            [sys.executable, "-m", "oncue", "up", "--port", "0", "--workers", "1"],
            cwd=system.folder, env=system.env, stdin=subprocess.DEVNULL, stdout=nowhere, stderr=nowhere,
            start_new_session=True,
        )  # fmt: skip
    process.returncode = 0  # `end` ends it by the pid in local.json, or by this one
    started.append(process.pid)


started: list[int] = []


def health(port: int) -> tuple[int, dict[str, object]]:
    answer = request(f"http://127.0.0.1:{port}", "GET", "/health/ready")
    return answer.status, answer.json


@pytest.mark.parametrize("ballast", [True, False])
def test_a_server_killed_on_a_full_disk_starts_and_says_so(small_disk: Path, tmp_path: Path, ballast: bool) -> None:
    # The ballast is much of this small disk: without it, that is 87 % full.
    system = System(tmp_path, small_disk / "data", ONCUE_DISK_STOP_PERCENT="80")
    filler = small_disk / "filler"
    try:
        system.up("--workers", "1")
        system.await_connected()
        port = int((system.data / "http.port").read_text())
        with system.client() as client:
            done = client.submit(pow, 3, 2)
            assert done.result(PATIENCE_S) == 9
        for process in system.note():
            process.kill()
        if not ballast:
            (system.data / "log" / "ballast").unlink()
        filled(small_disk)
        start(system)

        def cannot_open() -> bool:
            """Return True if the log cannot even be opened. Its recovery may free enough for that."""
            return not ballast and "full" in json.dumps(health(port)[1]["checks"])

        def says_so() -> bool:
            if cannot_open():
                return True
            return "full" in system.http("GET", "/health/ready").json["checks"].get("log", "")

        system.await_true(says_so, "the server says that its disk is full")
        if not cannot_open():
            assert system.http("GET", f"/v1/tasks/{done.id}").json["state"] == "succeeded", "it answers"
            assert system.http("POST", "/v1/events", {"type": "a", "source": "/b"}).status == 507
        else:
            assert health(port)[0] == 503
            assert "free some space there" in json.dumps(health(port)[1])
            assert (system.data / "http.port").read_text() == str(port)
            assert (system.data / "log.id").read_text(), "small files are kept"
        filler.unlink()
        system.await_true(lambda: health(port)[1]["status"] == "ok", "it recovers by itself")
        system.await_connected()
        assert system.http("GET", f"/v1/tasks/{done.id}").json["state"] == "succeeded"
        with system.client() as client:
            assert client.submit(pow, 2, 2).result(PATIENCE_S) == 4
    finally:
        filler.unlink(missing_ok=True)
        end(system)


def end(system: System) -> None:
    system.end()
    while started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pop(), signal.SIGKILL)


def test_up_in_the_background_says_that_the_disk_is_full(small_disk: Path, tmp_path: Path) -> None:
    system = System(tmp_path, small_disk / "data")
    filler = small_disk / "filler"
    try:
        system.up("--no-endpoint")
        system.down()
        (system.data / "log" / "ballast").unlink()
        filled(small_disk)
        said = system.oncue("up", "--detach", "--port", "0", "--no-endpoint", code=None)
        assert said.returncode != 0
        assert "waits for space" in said.stderr
        pid = int(re.search(r"pid (\d+)", said.stderr)[1])  # type: ignore[index]
        started.append(pid)
        filler.unlink()
        system.await_true(lambda: system.local["pid"] == pid, "it starts by itself")
    finally:
        filler.unlink(missing_ok=True)
        end(system)
