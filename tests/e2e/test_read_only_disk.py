"""A disk that becomes read-only, or whose journal is aborted, while a server runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from oncue.errors import OncueError
from tests.e2e.running import PATIENCE_S, System

SIZE_MB = 128
REASONS = ("read-only", "disk I/O error")  # by kernel


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of its own, which can be made read-only under open files."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    why = ""
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            why = why or (done.stderr.strip() if done.returncode else "")
        except FileNotFoundError as e:
            why = why or str(e)
    if why:
        pytest.skip(f"no disk can be mounted here ({why}): run as root on Linux with loop devices")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts an ext4 file system: Linux only")
def test_a_server_on_a_read_only_disk_accepts_nothing_and_goes_on_after_a_restart(
    own_disk: Path, tmp_path: Path
) -> None:
    system = System(tmp_path, own_disk / "data")
    try:
        system.up("--workers", "1")
        system.await_connected()
        with system.client() as client:
            done = client.submit(pow, 3, 2)
            assert done.result(PATIENCE_S) == 9
        subprocess.run(["mount", "-o", "remount,abort", str(own_disk)], check=True)

        def refused() -> bool:
            answer = system.http("POST", "/v1/events", {"type": "a", "source": "/b"})
            assert answer.status >= 500, "nothing is accepted that is not durable"
            assert answer.json["remedy"]
            return any(text in answer.json["detail"] for text in REASONS)

        system.await_true(refused, "the server says why it accepts nothing")

        def says_so() -> bool:
            return any(text in system.http("GET", "/health/ready").json["checks"]["log"] for text in REASONS)

        system.await_true(says_so, "health says so")
        assert system.http("GET", f"/v1/tasks/{done.id}").json["state"] == "succeeded", "it still answers"
        with system.client() as client, pytest.raises(OncueError):
            client.submit(pow, 2, 2).result(5)
        processes = system.note()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, PATIENCE_S)
        subprocess.run(["umount", str(own_disk)], check=True)
        subprocess.run(["mount", "-o", "loop", str(tmp_path / "image"), str(own_disk)], check=True)
        system.up("--workers", "1")
        assert system.http("GET", f"/v1/tasks/{done.id}").json["state"] == "succeeded"
        system.await_connected()
        with system.client() as client:
            assert client.submit(pow, 2, 2).result(PATIENCE_S) == 4
        assert os.path.exists(system.data / "view.db")
    finally:
        system.end()
