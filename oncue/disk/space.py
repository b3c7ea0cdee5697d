"""Free space of a file system, and if it can be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NEARLY_FULL_BYTES = 1 << 20  # SQLite reports shared memory that cannot grow as an I/O error


def free_bytes(folder: Path) -> int:
    """Return the free space of the file system that holds the folder. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def is_nearly_full(folder: Path) -> bool:
    try:
        return free_bytes(folder) < NEARLY_FULL_BYTES
    except OSError:
        return False


def is_read_only(folder: Path) -> bool:
    """Return True if the file system that holds the folder cannot be written."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False
