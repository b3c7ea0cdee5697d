"""Copies blobs that a backup does not have yet.

A blob's name is its hash: equal names, equal content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from oncue.backup.log_copy import Progress
from oncue.backup.state_files import describe
from oncue.blobs import STORE_ID
from oncue.disk.durable_files import replace_file, sync_folders

PART = 1 << 20


def names_in(folder: Path) -> set[str]:
    """Return the hashes of the blobs in this folder."""
    return {path.name for path in folder.glob("[0-9a-f][0-9a-f]/*") if len(path.name) == 64}


def copy_blobs(source: Path, target: Path, progress: Progress) -> tuple[int, int, list[str]]:
    """Copy what is missing; return (new blobs, their bytes, hashes of damaged ones).

    Raises OSError.
    """
    target.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        replace_file(target / STORE_ID, (source / STORE_ID).read_bytes())
    missing = sorted(names_in(source) - names_in(target))
    count, total, damaged = 0, 0, []
    for done, name in enumerate(missing):
        progress("blobs", done, len(missing))
        try:
            size = _copy_blob(source, target, name)
        except FileNotFoundError:  # deleted meanwhile: no record names it
            continue
        if size < 0:
            damaged.append(name)
        else:
            count, total = count + 1, total + size
    sync_folders(target)
    progress("blobs", len(missing), len(missing))
    return count, total, damaged


def _copy_blob(source: Path, target: Path, name: str) -> int:
    """Copy one blob; return its size, or -1 if it is damaged.

    Its name is not durable yet.
    """
    place = target / name[:2] / name
    place.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = place.with_name(f".{secrets.token_hex(4)}")
    digest, size = hashlib.sha256(), 0
    try:
        with (
            open(source / name[:2] / name, "rb") as old,
            open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new,
        ):
            while part := old.read(PART):
                digest.update(part)
                new.write(part)
                size += len(part)
            new.flush()
            os.fsync(new.fileno())
        if digest.hexdigest() != name:
            return -1
        os.replace(fresh, place)
        return size
    finally:
        fresh.unlink(missing_ok=True)


def delete_others(folder: Path, keep: set[str]) -> int:
    """Delete blobs that the store no longer has; return their number."""
    others = names_in(folder) - keep
    for name in others:
        (folder / name[:2] / name).unlink(missing_ok=True)
    return len(others)


def damaged_in(folder: Path, progress: Progress) -> Iterator[str]:
    """Yield the hashes of blobs that do not have their content."""
    names = sorted(names_in(folder))
    for done, name in enumerate(names):
        progress("verify blobs", done, len(names))
        if describe(folder / name[:2] / name).sha256 != name:
            yield name
