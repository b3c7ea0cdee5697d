"""Snapshots of the view.

They are used by servers that join, and keep history older than the log. A snapshot contains the
positions up to which it has applied the log: its user continues there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from pathlib import Path

from oncue.disk.durable_files import sync_file, sync_folder
from oncue.errors import Invalid
from oncue.view.schema import SCHEMA, ViewError, move_aside, open_reader


def write(view: Path, target: Path) -> None:
    """Copy the view to a new file, atomically; the view may be written meanwhile.

    Raises Invalid if the target exists, ViewError if it cannot be written.
    """
    if target.exists():
        raise Invalid(f"{target} exists already", remedy="name a new file for the snapshot")
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        db = open_reader(view)
        try:
            db.execute("VACUUM INTO ?", (str(part),))
        finally:
            db.close()
        _publish_file(part, target)
    except (sqlite3.Error, OSError) as e:
        part.unlink(missing_ok=True)
        raise ViewError(
            f"the snapshot {target} cannot be written: {e}", remedy="check that folder's space and permissions"
        ) from e


def restore(view: Path, snapshot: Path) -> None:
    """Replace the view, which must not be open, by a snapshot; keep the old file.

    Raises Invalid if the file is not a snapshot of this version, ViewError if it cannot be copied.
    """
    _check(snapshot)
    part = view.with_name(f"{view.name}.{secrets.token_hex(4)}.part")
    try:
        view.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot, part)
        db = sqlite3.connect(part, isolation_level=None)
        try:  # a different view from here on: new rows get other numbers
            db.execute("UPDATE meta SET value = ? WHERE name = 'tag'", (secrets.token_hex(4),))
        finally:
            db.close()
        move_aside(view)
        _publish_file(part, view)
    except (sqlite3.Error, OSError) as e:
        part.unlink(missing_ok=True)
        raise ViewError(
            f"the snapshot {snapshot} cannot be put in place of {view}: {e}",
            remedy="check that folder's space and permissions",
        ) from e


def _check(snapshot: Path) -> None:
    remedy = "use a file that `View.snapshot` of this version wrote; without one the view is rebuilt from the log"
    if not snapshot.is_file():
        raise Invalid(f"there is no snapshot {snapshot}", remedy=remedy)
    db = open_reader(snapshot)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        sound = version == SCHEMA and db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError as e:
        raise Invalid(f"{snapshot} is not a snapshot: {e}", remedy=remedy) from None
    finally:
        db.close()
    if not sound:
        raise Invalid(f"{snapshot} is damaged, or of another version (schema {version}, not {SCHEMA})", remedy=remedy)


def _publish_file(part: Path, target: Path) -> None:
    """Rename the file to its target, durably."""
    sync_file(part)
    os.replace(part, target)
    sync_folder(target.parent)
