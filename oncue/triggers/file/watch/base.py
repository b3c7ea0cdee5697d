"""Interface of the watches: sources of change notices below a folder.

    kernel ──► FolderWatch.read() ──► [Notice, ...] ──► FileWatcher

Paths are (folder, name). The folder is relative to the watched one, with slashes; "" is the watched
folder itself. Both parts are texts as `os.fsdecode` returns them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

# Kinds of notices about a file. They are bits, so that several can be combined ...
CLOSED = 1  # a writer closed it
RENAMED = 2  # it was renamed, or linked, to this name
FOUND = 4  # a scan found it: how it came is unknown
CHANGED = 8  # something changed, on a system that does not report closes
CREATED = 128  # the name is new: the start of a write, or a link to a complete file
ATTRIBUTES = 256  # its times, mode, owner or extended attributes changed, not its content
OPENED = 512  # it was opened; reported only by a watch with `reports_opens`
SOURCE_CLOSED = 1024  # with RENAMED: its former name was closed before
SOURCE_OPEN = 2048  # with RENAMED, CREATED or FOUND: it was created while watched, and not closed
BACKFILL = 8192  # with FOUND: a backfill asked for it
# ... and about folders.
FOLDER_ADDED = 16  # a folder is new: scan it
FOLDER_MOVED = 4096  # a folder was renamed to this name: scan it
OVERFLOW = 32  # the kernel lost notices: scan everything
ROOT_GONE = 64  # the watched folder itself was moved, removed or unmounted


class Notice(NamedTuple):
    """One change that the system reported."""

    kind: int
    folder: str
    name: str
    at_us: int  # when the notice was read
    source: tuple[str, str] | None = None  # with RENAMED: the former (folder, name), if it is known


class FolderWatch(Protocol):
    """Reports changes below one folder. `wake` may be called from any thread."""

    #: False: files must stay unchanged for a while before they count as complete.
    reports_closes: bool
    #: True: OPENED follows the CREATED of a file that is being written, not that of a link.
    reports_opens: bool

    def add(self, folder: str) -> None:
        """Watch this folder, without its subfolders. Idempotent. Raises OSError."""
        ...

    def read(self, timeout_s: float) -> list[Notice]:
        """Return the notices since the last call; wait for one, or for `wake`.

        Raises OSError.
        """
        ...

    def wake(self) -> None:
        """End a running `read`."""
        ...

    def close(self) -> None: ...
