"""A full disk: new work is refused, running work ends, recovery is automatic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.client import Client
from oncue.errors import DiskFull
from tests.e2e.running import PATIENCE_S, System

SIZE_MB = 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of its own.

    Only root may mount one. Without root the test is skipped, but it fails in CI.
    """
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "oncue-test", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        why = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as e:
        why = str(e)
    if why:
        output = (
            f"a small disk cannot be mounted here ({why}): run as root on Linux, or in a container with CAP_SYS_ADMIN"
        )
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(output)
        pytest.skip(output)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


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
