"""OpenFiles: files that were created while they were watched, and not closed yet.

Kept where the kernel does not tell who writes a file: of another user, without CAP_LEASE. There a
watch reports opens too. The close of these files will be heard, under any name that they get.
"""

from __future__ import annotations

from oncue.triggers.file.stability import FileKey
from oncue.triggers.file.watch.base import CLOSED, RENAMED, SOURCE_CLOSED, SOURCE_OPEN

MOST = 200_000  # files; those beyond count as unknown
MOST_CLOSED = 10_000  # names that were closed lately, and may be renamed now


class OpenFiles:
    """Used in the watcher's thread only."""

    def __init__(self) -> None:
        self._open: set[FileKey] = set()
        self._closed: dict[FileKey, None] = {}  # oldest first

    def __contains__(self, key: FileKey) -> bool:
        return key in self._open

    def clear(self) -> None:
        """Forget all: notices were lost."""
        self._open.clear()
        self._closed.clear()

    def add(self, key: FileKey) -> None:
        """Note a file that was created by an open."""
        self._closed.pop(key, None)
        if len(self._open) < MOST:
            self._open.add(key)

    def apply(self, kind: int, key: FileKey, source: FileKey | None) -> int:
        """Note a close, or a rename from `source`; return what is known of the source."""
        self._open.discard(key)
        if kind & CLOSED:
            if len(self._closed) >= MOST_CLOSED:
                del self._closed[next(iter(self._closed))]
            self._closed[key] = None
        if not kind & RENAMED or source is None:
            return 0
        if source in self._open:
            self._open.discard(source)
            self._open.add(key)
            return SOURCE_OPEN
        if source in self._closed:
            del self._closed[source]
            return SOURCE_CLOSED
        return 0
