"""Closes data folders and endpoints' folders to other users of the machine.

Folders get mode 700 and files 600, also those that were there before. User code gets the umask that
the process was started with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

log = logging.getLogger("oncue.server")
OTHERS = 0o077
MOST = 100_000  # files and folders to look at
#: Not looked into: their folder is closed, their files were made with mode 600, and are many.
CONTENT = frozenset({"blobs"})

_inherited = -1


def make_files_private() -> None:
    """Make the new files of this process readable by its user only."""
    global _inherited
    before = os.umask(OTHERS)
    if _inherited < 0:
        _inherited = before


def inherited_umask() -> int:
    """Return the umask for child processes that run others' code.

    It is for `subprocess.Popen`: -1 if this process has not changed its own.
    """
    return _inherited


def close_to_others(folder: Path) -> int:
    """Take the rights of group and others from a folder and all in it.

    Returns how many had some. Links are not followed. What belongs to another user stays as it is;
    for the folder itself this is logged.
    """
    changed = _close(folder)
    if changed < 0:
        log.warning("%s is open to other users, and belongs to one: chmod 700 %s, as its owner", folder, folder)
    seen, count = 0, max(changed, 0)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += max(_close(Path(place, name)), 0)
        folders[:] = [name for name in folders if name not in CONTENT]
        seen += len(folders) + len(files)
        if seen > MOST:
            log.warning("%s has over %d files: the modes of some were not looked at", folder, MOST)
            break
    return count


def _close(path: Path) -> int:
    """Return 1 if the mode was changed, 0 if it was right, -1 if it cannot be changed."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if found.st_mode & OTHERS and not stat.S_ISLNK(found.st_mode):
            try:
                path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
            except OSError:
                return -1
            return 1
    return 0
