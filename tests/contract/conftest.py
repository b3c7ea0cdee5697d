from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from log_backends import BACKENDS, KAFKA, KAFKA_DATA, Backend

from oncue.log import Log


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "kafka":
        address, data = request.getfixturevalue("kafka")
        monkeypatch.setenv(KAFKA, address)
        monkeypatch.setenv(KAFKA_DATA, data)
    return BACKENDS[request.param]


@pytest.fixture
def open_it(backend: Backend, tmp_path: Path) -> Callable[[], Awaitable[Log]]:
    """Open the test's log; after closing, open the same one again."""
    return lambda: backend.open(tmp_path / "log")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 24 MB.

    Mounting requires root: elsewhere the test is skipped, in CI it fails.
    """
    where = tmp_path / "disk"
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(where)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = f"cannot mount a tmpfs ({done.stderr.strip()}): run this test as root, or in a privileged container"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)
