"""Makes a backup. See the package."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

import oncue
from oncue.backup import blob_copies, manifest
from oncue.backup.log_copy import Progress, copy_log
from oncue.backup.manifest import FileEntry, LogEntry, Manifest
from oncue.backup.state_files import copy_file, state_files
from oncue.config import Settings
from oncue.disk.durable_files import sync_folders
from oncue.errors import Conflict, Invalid, NotFound, OncueError
from oncue.log.sqlite.database import explain
from oncue.processes.file_lock import FileLock


class BackupReport(msgspec.Struct, frozen=True):
    """Outcome of a backup."""

    folder: str
    seconds: float
    log_records: int  # in the copied log
    files: int
    new_blobs: int
    new_blobs_bytes: int
    blobs: int
    damaged_blobs: list[str]
    left_out: list[str]


def back_up(settings: Settings, folder: Path, progress: Progress) -> BackupReport:
    """Copy the data folder of a server, which may run, to `folder`.

    What the folder has from a former backup is not copied again. Raises NotFound, Conflict,
    Invalid, LogError, DiskFull.
    """
    data, started = settings.data_path, time.time()
    if not (data / "log" / "log.db").exists() and not (settings.shared_log and data.exists()):
        raise NotFound(f"there is no log in {data}", remedy="give the server's data folder with --data, or ONCUE_DATA")
    manifest.check_apart(folder, data)
    try:
        with locked(folder):
            return _back_up(settings, data, folder, started, progress)
    except (OSError, sqlite3.Error) as e:
        error = explain(e, folder / "log.db")
        raise (
            error
            if error.code == "disk-full"
            else OncueError(
                f"the backup failed: {e}",
                remedy="check both folders and try again; a former backup there is still good",
            )
        ) from e


def _back_up(settings: Settings, data: Path, folder: Path, started: float, progress: Progress) -> BackupReport:
    former = manifest.load(folder)
    if former is not None and former.log is None and not settings.shared_log:
        raise Conflict(f"{folder} is the backup of a server with another log", remedy="give another folder")
    number = 1 + max((int(p.name[6:]) for p in folder.glob("files-*") if p.name[6:].isdigit()), default=0)
    files_folder = folder / f"files-{number}"
    left_out = ["view.db: it is derived from the log", "what agents run now: their journals"]
    files = _copy_files(data, files_folder, progress)
    blobs = _BlobCopies(data / "blobs", folder / "blobs", progress)
    if settings.blobs_folder:
        left_out.append(f"blobs: they are in {settings.blobs_folder}, which needs a backup of its own")
    else:
        blobs.copy()
    log: LogEntry | None = None
    if settings.shared_log:
        left_out.append("the log: it is on Kafka, whose backup is the cluster's")
    else:
        # Blobs of records that came meanwhile: a killed backup must not leave records without them.
        again = None if settings.blobs_folder else blobs.copy
        log = copy_log(data / "log" / "log.db", folder / "log.db", progress, again)
        (folder / "log.db").chmod(0o600)
    count = len(blob_copies.names_in(folder / "blobs"))
    done = Manifest(
        manifest.VERSION,
        started,
        oncue.__version__,
        str(data),
        files_folder.name,
        files,
        count,
        blobs.nbytes,
        left_out,
        log,
    )
    manifest.store(folder, done)
    _tidy(folder, files_folder, blobs.present)
    return BackupReport(
        str(folder), round(time.time() - started, 3), sum(log.ends.values()) if log else 0, len(files),
        blobs.new, blobs.nbytes, count, blobs.damaged, left_out,
    )  # fmt: skip


class _BlobCopies:
    """Copies of a store's blobs, and their numbers. `copy` may be repeated."""

    def __init__(self, source: Path, target: Path, progress: Progress) -> None:
        self._source, self._target, self._progress = source, target, progress
        self.new = self.nbytes = 0
        self.damaged: list[str] = []
        self.present: set[str] = set()

    def copy(self) -> None:
        if not self._source.exists():
            return
        new, nbytes, self.damaged = blob_copies.copy_blobs(self._source, self._target, self._progress)
        self.new, self.nbytes = self.new + new, self.nbytes + nbytes
        self.present = blob_copies.names_in(self._source)


def _copy_files(data: Path, target: Path, progress: Progress) -> dict[str, FileEntry]:
    target.mkdir(mode=0o700)
    files: dict[str, FileEntry] = {}
    found = list(state_files(data))
    for done, place in enumerate(found):
        progress("files", done, len(found))
        try:
            files[str(place)] = copy_file(data / place, target / place)
        except FileNotFoundError:  # a server replaced it
            if (data / place).exists():
                raise
    sync_folders(target)
    return files


def _tidy(folder: Path, files_folder: Path, present: set[str]) -> None:
    """Delete what only former backups need."""
    for other in folder.glob("files-*"):
        if other != files_folder:
            shutil.rmtree(other, ignore_errors=True)
    if present:
        blob_copies.delete_others(folder / "blobs", present)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, mode 700, and lock it. Raises Conflict if another backup runs."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    others = [
        p.name for p in folder.iterdir() if p.name not in (manifest.NAME, "log.db", "log.db-journal", "blobs", "lock")
    ]
    if not (folder / manifest.NAME).exists() and any(not name.startswith("files-") for name in others):
        raise Invalid(f"{folder} is not empty, and no backup", remedy="give a new folder, or that of a former backup")
    folder.chmod(0o700)
    refusal = Conflict(f"another backup to {folder} runs, or a restore from it", remedy="wait for its end")
    with FileLock(folder / "lock", lambda _: refusal):
        yield
