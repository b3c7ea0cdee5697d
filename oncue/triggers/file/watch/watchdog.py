"""ObserverWatch: notices by watchdog's observer, on macOS and others.

The observer uses FSEvents or kqueue.

It reports changes, but not that a writer closed the file. Files must therefore stay unchanged for a
while before they count as ready.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from oncue.clocks.process import now_us
from oncue.triggers.file.watch.base import CHANGED, FOLDER_ADDED, FOLDER_MOVED, OVERFLOW, RENAMED, ROOT_GONE, Notice

_MAX = 100_000  # most notices held for the watcher; beyond, a scan is cheaper


class ObserverWatch(FileSystemEventHandler):
    """A Watch by a watchdog observer, whose thread collects the notices."""

    reports_closes = reports_opens = False

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is not a folder")
        self._root = os.path.realpath(root)  # FSEvents gives real paths
        self._notices: deque[Notice] = deque(maxlen=_MAX)
        self._available = threading.Event()
        self._observer = Observer()
        self._observer.schedule(self, self._root, recursive=True)
        self._observer.start()

    def add(self, folder: str) -> None:
        """Do nothing: the observer is recursive."""

    def read(self, timeout_s: float) -> list[Notice]:
        if not self._notices:
            self._available.wait(timeout_s)
        self._available.clear()
        if not self._observer.is_alive():
            return [Notice(ROOT_GONE, "", "", now_us())]
        full = len(self._notices) == _MAX
        out: list[Notice] = []
        while self._notices:
            out.append(self._notices.popleft())
        return [Notice(OVERFLOW, "", "", now_us())] if full else out

    def wake(self) -> None:
        self._available.set()

    def close(self) -> None:
        self._observer.stop()
        self._observer.join(5)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Collect an event. Watchdog calls this in its thread."""
        if event.event_type in ("opened", "closed_no_write", "deleted"):
            return
        moved = event.event_type == "moved"
        path = os.fsdecode(event.dest_path if moved and event.dest_path else event.src_path)
        folder, name = os.path.split(os.path.relpath(path, self._root))
        at_us = now_us()
        if folder.startswith(".."):
            return
        if event.is_directory:
            if event.event_type != "modified" and name != ".":
                below = f"{folder}/{name}" if folder else name
                self._notices.append(Notice(FOLDER_MOVED if moved else FOLDER_ADDED, below, "", at_us))
        else:
            self._notices.append(Notice(RENAMED if moved else CHANGED, folder, name, at_us))
        self._available.set()
