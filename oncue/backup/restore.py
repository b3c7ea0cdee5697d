"""Puts a backup in place of a data folder, or in a new one.

    verify ──► copy to DATA/.restoring ──► marker ──► rename, entry by entry ──► marker removed

Until the marker is there, the data folder is as it was. With it, no server starts; restoring again
finishes the renames.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from oncue.backup import blob_copies, manifest
from oncue.backup.log_copy import Progress
from oncue.backup.manifest import Manifest
from oncue.backup.state_files import describe
from oncue.disk.durable_files import replace_file, sync_file, sync_folder, sync_folders
from oncue.disk.space import free_bytes
from oncue.errors import Conflict, OncueError
from oncue.log.folder_lock import lock_folder
from oncue.log.sqlite.inspection import problems
from oncue.processes.file_lock import FileLock

STAGED, MARKER = ".restoring", "restore.json"
#: Entries of a data folder that a server has used.
USED = ("log", "blobs", "view.db", "bridge.key", "triggers")
KEPT = frozenset({STAGED, MARKER, "lock", "aside", "oncue.toml"})


class RestoreReport(msgspec.Struct, frozen=True):
    """Outcome of a restore."""

    data: str
    backup_at: float  # unix s
    log_records: int
    blobs: int
    files: int
    kept: str  # folder with what was there before; "" if nothing was
    left_out: list[str]


class _Plan(msgspec.Struct, frozen=True):
    """Content of the marker."""

    kept: str  # folder for the old entries
    old: list[str]  # names of these


def verify(folder: Path, progress: Progress) -> Manifest:
    """Read a whole backup.

    Raises NotFound, Invalid, Conflict if a backup writes to it, OncueError if a part is damaged.
    """
    manifest.need(folder)
    with _unchanged(folder):
        return _verify(folder, progress)


def _verify(folder: Path, progress: Progress) -> Manifest:
    found = manifest.need(folder)
    wrong: list[str] = []
    for place, entry in found.files.items():
        path = folder / found.files_folder / place
        if not path.exists() or describe(path) != entry:
            wrong.append(f"{path} is not what was copied")
    if found.log is not None:
        progress("verify log", 0, 1)
        wrong += (
            [f"log.db: {text}" for text in problems(folder / "log.db")]
            if (folder / "log.db").exists()
            else ["no log.db"]
        )
    wrong += [f"the blob {name[:12]}… is damaged" for name in blob_copies.damaged_in(folder / "blobs", progress)]
    if wrong:
        raise OncueError(
            f"the backup in {folder} is damaged: {'; '.join(wrong[:10])}",
            remedy="use another backup; with --damaged this one is restored as far as it goes",
        )
    return found


def restore(
    folder: Path, data: Path, progress: Progress, *, force: bool = False, damaged: bool = False
) -> RestoreReport:
    """Restore the backup in `folder` to the data folder.

    `force`: also if a server has used that folder; its files are kept in `aside/`. `damaged`: also
    if the backup is. Raises Conflict, NotFound, Invalid, LogLocked, OncueError, OSError.
    """
    manifest.need(folder)
    manifest.check_apart(folder, data)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    data.chmod(0o700)
    with _alone(data), _unchanged(folder):
        unfinished = (data / MARKER).exists()
        found = manifest.need(folder) if damaged or unfinished else _verify(folder, progress)
        used = [name for name in USED if (data / name).exists()]
        if used and not force and not unfinished:
            raise Conflict(
                f"{data} has the data of a server: {', '.join(used)}",
                remedy="give an empty folder with --data, or --force to move those files to aside/",
            )
        if not unfinished:
            _stage(folder, found, data / STAGED, progress, damaged=damaged)
            kept = data / "aside" / time.strftime("%Y%m%dT%H%M%S-before-restore")
            old = sorted(p.name for p in data.iterdir() if p.name not in KEPT and p.name != "endpoints")
            replace_file(data / MARKER, msgspec.json.encode(_Plan(str(kept) if old else "", old)))
        plan = msgspec.json.decode((data / MARKER).read_bytes(), type=_Plan)
        _put_in_place(data, plan)
    return RestoreReport(
        str(data), found.at, sum(found.log.ends.values()) if found.log else 0, found.blobs, len(found.files),
        plan.kept, found.left_out,
    )  # fmt: skip


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Keep servers out. Raises LogLocked if one runs."""
    with ExitStack() as locks:
        locks.enter_context(lock_folder(data))
        if (data / "log").exists():
            locks.enter_context(lock_folder(data / "log"))
        yield


@contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """Keep backups to this folder out, and undo what a killed one has begun.

    Raises Conflict if one runs.
    """
    locked = folder / "lock" if (folder / "lock").exists() else folder  # it is missing in a copy of a backup
    refusal = Conflict(f"a backup to {folder} runs", remedy="wait for its end")
    with FileLock(locked, lambda _: refusal, shared=True):
        # The copied file alone would be half a transaction. What cannot be undone, `verify` tells.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(_uri(folder), uri=True)) as db:
            db.execute("SELECT count(*) FROM sqlite_schema")
        yield


def _uri(folder: Path) -> str:
    return (folder / "log.db").absolute().as_uri() + "?mode=rw"


def _stage(folder: Path, found: Manifest, staged: Path, progress: Progress, *, damaged: bool) -> None:
    """Copy the backup beside the files that it will replace.

    `damaged`: without what is missing.
    """
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if free_bytes(staged.parent) < size:
        raise OncueError(
            f"{staged.parent} has no space for {size >> 20} MB", remedy="free space, or give another --data"
        )
    for done, place in enumerate(found.files):
        progress("files", done, len(found.files))
        target, source = staged / place, folder / found.files_folder / place
        if damaged and not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _copy(source, target)
    if found.log is not None and ((folder / "log.db").exists() or not damaged):
        progress("log", 0, 1)
        (staged / "log").mkdir(mode=0o700)
        _copy(folder / "log.db", staged / "log" / "log.db")
        progress("log", 1, 1)
    if (folder / "blobs").exists():
        blob_copies.copy_blobs(folder / "blobs", staged / "blobs", progress)
    sync_folders(staged)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o600)
    sync_file(target)


def _put_in_place(data: Path, plan: _Plan) -> None:
    """Move the old entries away and the restored ones in. May be repeated."""
    staged = data / STAGED
    if plan.kept:
        kept = Path(plan.kept)
        kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in plan.old:
            if not (kept / name).exists():
                (data / name).rename(kept / name)
        sync_folder(kept)
        sync_folder(kept.parent)
    for path in sorted(staged.iterdir()) if staged.exists() else []:
        target = data / path.name
        if path.name == "endpoints":
            _put_endpoints(path, target)
        elif path.name not in KEPT or not target.exists():
            path.rename(target)
    shutil.rmtree(staged, ignore_errors=True)
    sync_folder(data)
    (data / MARKER).unlink()


def _put_endpoints(staged: Path, target: Path) -> None:
    """Restore keys of endpoints that are not here: agents of the others may run."""
    target.mkdir(exist_ok=True, mode=0o700)
    for path in staged.iterdir():
        if not (target / path.name).exists():
            path.rename(target / path.name)
    sync_folder(target)
