"""Folders of tasks whose workers have died: what scripts printed is kept whole.

To hash them takes long if they are large, so threads do that.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from oncue.endpoint.pool.task_folders import STDOUT, folder_of, keep_sandbox, remove, take_over
from oncue.endpoint.worker.blob_files import BlobFiles
from oncue.errors import OncueError
from oncue.protocol.records import Failure
from oncue.protocol.run_options import TaskFile

STORING = 4  # threads that hash at once
NOT_KEPT = "[oncue: stdout and stderr could not be kept as files: {}]\n"

Files = tuple[TaskFile, ...]
#: Called with the failure that names what was kept, and a note for the task's log.
OnKept = Callable[[Failure, bytes], None]


class StoppedTasks:
    """The folders, from the death of their workers until they are removed."""

    def __init__(self, tasks: Path, blobs: BlobFiles) -> None:
        self._tasks, self._blobs = tasks, blobs
        self._taken: dict[int, Path] = {}  # by the worker's pid
        self._waiting: dict[Path, Callable[[Files, str], None]] = {}
        self._stored: queue.SimpleQueue[tuple[Path, Files, str]] = queue.SimpleQueue()
        self._turns = threading.Semaphore(STORING)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)

    def fds(self) -> list[int]:
        """Return the descriptors to watch for reading."""
        return [self._reader.fileno()] if self._reader.fileno() >= 0 else []

    @property
    def waiting(self) -> int:
        """Tasks whose streams are being stored."""
        return len(self._waiting)

    def take_over(self, pid: int, task_id: bytes, attempt: int) -> None:
        """Take the folder of the task that an ending worker ran, if it has one."""
        if taken := take_over(folder_of(self._tasks, pid, task_id, attempt)):
            self._taken[pid] = taken

    def keep(self, pid: int, failure: Failure, on_kept: OnKept) -> None:
        """Keep sandbox and streams of the task that this worker ran.

        Then its folder is removed. `on_kept` is called once: at once, or by `on_readable`.
        """
        folder = self._taken.pop(pid, None)
        if folder is None:
            return on_kept(failure, b"")
        failure = msgspec.structs.replace(failure, folder=keep_sandbox(folder))
        if not (folder / STDOUT).exists():  # it ran no script
            self._start(folder, script=False)
            return on_kept(failure, b"")

        def end(files: Files, why: str) -> None:
            note = NOT_KEPT.format(why).encode() if why else b""
            on_kept(msgspec.structs.replace(failure, files=files), note)

        self._waiting[folder] = end
        if not self._start(folder, script=True):
            self._stored.put((folder, (), "no thread could be started"))
            self.on_readable()

    def remove(self, pid: int) -> None:
        """Remove the folder of a task that runs again elsewhere."""
        if folder := self._taken.pop(pid, None):
            self._start(folder, script=False)

    def _start(self, folder: Path, *, script: bool) -> bool:
        thread = threading.Thread(target=self._finish, args=(folder, script), daemon=True, name="oncue-streams")
        try:
            thread.start()
        except RuntimeError:  # the user may have no more; a later worker sweeps the folder up
            return False
        return True

    def _finish(self, folder: Path, script: bool) -> None:
        with self._turns:
            if script:
                self._stored.put((folder, *self._store(folder)))
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    self._writer.send(b"x")
            remove(folder)

    def _store(self, folder: Path) -> tuple[Files, str]:
        try:
            return tuple(self._blobs.put_streams(folder)), ""
        except (OncueError, OSError) as e:
            return (), str(e)

    def on_readable(self) -> None:
        """Call back for the tasks whose streams are stored."""
        with contextlib.suppress(OSError):  # it has no more
            while self._reader.recv(4_096):
                pass
        while not self._stored.empty():
            folder, files, why = self._stored.get()
            if end := self._waiting.pop(folder, None):
                end(files, why)

    def close(self) -> None:
        """Call back for all that is not stored yet, without files."""
        self.on_readable()
        waiting, self._waiting = self._waiting, {}
        for end in waiting.values():
            end((), "the endpoint was stopped before")
        self._reader.close()
        self._writer.close()
