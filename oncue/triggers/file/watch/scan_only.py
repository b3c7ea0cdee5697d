"""ScanOnlyWatch: no notices, where the kernel gives this user no more watches."""

from __future__ import annotations

import threading

from oncue.triggers.file.watch.base import Notice

WATCH_AGAIN_S = 60.0  # interval of attempts to get a watch


class ScanOnlyWatch:
    """A Watch that reports nothing. Scans find the files."""

    reports_closes = reports_opens = False

    def __init__(self, why: str) -> None:
        self.why = why
        self._woken = threading.Event()

    def add(self, folder: str) -> None:
        """Do nothing: no folder is watched."""

    def read(self, timeout_s: float) -> list[Notice]:
        self._woken.wait(timeout_s)
        self._woken.clear()
        return []

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        """Do nothing: it holds no file."""
