"""Sweep of an agent's folder of blobs: those of tasks that were given up.

A worker that is ended may have stored a large result, or a file, that no outcome names. So may a
node that is lost.

    thread: list what is old ──► check: still old, and needed by none ──► unneeded, then deleted
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from oncue.blobs import Blobs
from oncue.endpoint.agent.held_tasks import HeldTasks

log = logging.getLogger("oncue.agent")

SWEEP_US = 600_000_000  # between two sweeps
IDLE_S = 600.0  # age of a blob that no task can name any more, if none runs
KEPT_S = 86_400.0  # age of one that tasks which run may name: they may store many files


class BlobSweep:
    """Sweeps now and then. The listing is done in a thread: the folder may be large."""

    def __init__(self, agent: HeldTasks, blobs: Path) -> None:
        self._agent, self._folder = agent, blobs
        self._due_us = 0
        self._thread: threading.Thread | None = None
        self._found: list[tuple[str, float]] | None = None  # (blob, when it was written)

    def check(self, now_us: int) -> None:
        """Begin a sweep that is due, or end one whose list is there."""
        if self._found is not None:
            found, self._found, self._thread = self._found, None, None
            before = time.time() - (KEPT_S if self._agent.running else IDLE_S)
            self._agent.drop_given_up([sha256 for sha256, written_s in found if written_s < before])
        elif now_us >= self._due_us and (self._thread is None or not self._thread.is_alive()):
            self._due_us = now_us + SWEEP_US
            self._thread = threading.Thread(target=self._list, daemon=True, name="oncue-sweep")
            try:
                self._thread.start()
            except RuntimeError:  # the user may have no more now
                self._thread = None

    def wait(self) -> None:
        """Wait until the list is there."""
        if self._thread is not None:
            self._thread.join()

    def _list(self) -> None:
        try:
            blobs = Blobs(self._folder, durable=False)
            blobs.delete_abandoned()
            self._found = list(blobs.written_before(time.time() - IDLE_S))
        except OSError as e:
            log.warning("old large values in %s could not be looked for: %s", self._folder, e.strerror or e)
