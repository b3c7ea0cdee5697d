"""Lock of an embedded log, or of a data folder: one process at a time."""

from __future__ import annotations

from pathlib import Path

from oncue.errors import LogLocked
from oncue.processes.file_lock import FileLock


def lock_folder(folder: Path) -> FileLock:
    """Lock the folder. Raises LogLocked, naming the process that holds it."""

    def refusal(pid: int) -> LogLocked:
        return LogLocked(
            f"the log in {folder} is open already" + (f", in the process {pid}" if pid else ""),
            remedy="stop that server: oncue down, with --force if it hangs; "
            "or give this one another data folder (ONCUE_DATA)",
            folder=str(folder),
            pid=pid,
        )

    return FileLock(folder / "lock", refusal)
