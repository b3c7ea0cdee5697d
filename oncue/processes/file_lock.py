"""Lock of a file that one process at a time can hold, and the pid of its holder.

The kernel releases it when the process ends, in whatever way. The file stays: if it were deleted,
two processes could lock two files of the same name.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from oncue.errors import Invalid

_TRIES, _PAUSE_S = 5, 0.02  # `holder_pid` of another process holds it for a moment


class FileLock:
    """A held lock. Use it in `with`, or `release` it.

    The file gets the pid of its holder. `shared` keeps out exclusive holders only, and writes
    nothing; the path may be a folder. `refusal` makes the error to raise if others hold it, from
    their pid (0: unknown). Raises Invalid, OSError.
    """

    def __init__(self, path: Path, refusal: Callable[[int], Exception], *, shared: bool = False) -> None:
        self.path = path
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if not self._acquire(fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                raise refusal(0 if path.is_dir() else _pid_in(self._fd))
            if not shared:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except BaseException:
            self.release()
            raise

    def _acquire(self, kind: int) -> bool:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if left:
                    time.sleep(_PAUSE_S)
            except OSError as e:
                raise Invalid(
                    f"{self.path} cannot be locked: {e.strerror}", remedy="use a file system that has locks (flock)"
                ) from None
        return False

    def release(self) -> None:
        """Let others have it. May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder_pid(path: Path) -> int:
    """Return the pid that the holder of this file's lock has written; 0 if it is free."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _pid_in(handle)
    finally:
        os.close(handle)
    return 0


def _pid_in(handle: int) -> int:
    text = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else 0
