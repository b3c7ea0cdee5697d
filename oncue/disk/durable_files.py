"""Files that are replaced as a whole.

After a crash they have the old content or the new.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write the file in one step, with mode 600, unless it has this content.

    `durable`: not lost by a power cut. Raises OSError.
    """
    if _has_content(path, content):
        return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    finally:
        if durable:
            sync_folder(path.parent)


def _has_content(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def sync_file(path: Path) -> None:
    """Make a file's content durable, whoever wrote it. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable. Raises OSError."""
    sync_file(folder)


def sync_folders(top: Path) -> None:
    """Make all names in a folder, and in those below it, durable. Raises OSError."""
    for folder, _, _ in os.walk(top):
        sync_folder(Path(folder))


def sync_new(path: Path) -> None:
    """Make a new file durable under its name, also if folders above it are new."""
    for folder in list(path.parents)[:3]:
        with contextlib.suppress(OSError):  # not all can be read
            sync_folder(folder)
