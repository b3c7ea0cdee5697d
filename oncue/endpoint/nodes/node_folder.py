"""Folder of a node's process, in the temporary folder of its machine.

    oncue-node-<block>-<host>-<random>/lock    locked as long as the process lives

It ends with the process. What a killed one has left is removed by its job's script, or by the next
node of this user on the host.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from oncue.endpoint.pool.task_folders import remove
from oncue.errors import Conflict, Invalid
from oncue.processes.file_lock import FileLock

PREFIX, LOCK = "oncue-node-", "lock"
SWEEP_S = 2.0  # of one sweep; the rest is for the next


@contextlib.contextmanager
def node_folder(parent: Path | None, block: str) -> Iterator[Path]:
    """Yield a new folder; remove it afterwards.

    It is in $TMPDIR if `parent` is None. Raises OSError.
    """
    folder, lock = _make(parent, f"{PREFIX}{block}-{_host()}-")
    _sweep(folder.parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def _make(parent: Path | None, prefix: str) -> tuple[Path, FileLock | None]:
    """Return a new folder and its lock; no lock where files cannot be locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = _lock(folder)
        except Invalid:
            return folder, None
        except (Conflict, FileNotFoundError):
            continue  # the sweep of another node was faster
        if (folder / LOCK).exists():
            return folder, lock
        lock.release()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, lambda pid: Conflict(f"process {pid} uses {folder}"))


def _sweep(parent: Path) -> None:
    """Remove folders that killed nodes of this host have left."""
    deadline = time.monotonic() + SWEEP_S
    for path in [*parent.glob(f"{PREFIX}*-{_host()}-*/{LOCK}")]:
        with contextlib.suppress(Conflict, Invalid, OSError), _lock(path.parent):
            remove(path.parent, deadline)


def cleanup_command(block: str) -> str:
    """Return the shell command that removes what a block's nodes have left."""
    return f'rm -rf -- "${{TMPDIR:-/tmp}}"/{shlex.quote(f"{PREFIX}{block}-")}"$(hostname)"-*'


def _host() -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in socket.gethostname())
