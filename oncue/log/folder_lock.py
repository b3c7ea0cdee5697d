"""Lock that lets one process at a time open an embedded log.

The kernel releases it when the process ends, in whatever way.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from oncue.errors import LogLocked


class FolderLock:
    """Lock of a folder. Raises LogLocked, naming the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        # Never deleted: two processes could then lock two files of the same name.
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise LogLocked(
                f"the log in {folder} is open already" + (f", in the process {pid}" if pid else ""),
                remedy="stop that server: oncue down, with --force if it hangs; "
                "or give this one another data folder (ONCUE_DATA)",
                folder=str(folder),
                pid=int(pid) if pid.isdigit() else 0,
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
