"""A disk of a few megabytes: a tmpfs of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, size_mb: int) -> Iterator[Path]:
    """Mount a small disk at a new folder.

    Only root may mount one. Without root the test is skipped, but it fails in CI.
    """
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "oncue-test", str(place)]
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


def filled(disk: Path, name: str = "filler") -> Path:
    """Write a file until the disk is full, and return its path."""
    path = disk / name
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return path
