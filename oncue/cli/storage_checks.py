"""Checks of a data folder's files, for `oncue doctor`."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from oncue.log import Finding


def divergence(folder: Path) -> Iterator[Finding]:
    """Report that the log was another one, or older, than its derived files."""
    from oncue.dispatcher.folder import DIVERGED

    path = folder / DIVERGED
    if not path.exists():
        return
    try:
        note = json.loads(path.read_text())
        at, reason, kept = float(note["at"]), str(note["reason"]), str(note["kept"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        yield Finding("log and view", False, f"{path} cannot be read: {e}", f"delete {path}")
        return
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    remedy = f"what only the old view has is in {kept}; delete {path} once you know about it"
    yield Finding("log and view", False, f"at the start of {when}: {reason}", remedy)


def stored_log(folder: Path, deep: bool) -> Iterator[Finding]:
    """Check the embedded log for damage; a large one only if `deep`."""
    from oncue.log.sqlite.inspection import problems
    from oncue.log.sqlite.salvage import CHECKED_BYTES, NOTE

    path = folder / "log" / "log.db"
    if not path.exists():
        return
    note = path.with_name(NOTE)
    if note.exists():
        text = f"a server found it damaged and kept what was readable: {note.read_text()[:500]}"
        yield Finding(
            "stored log", False, text, f"a backup may have what is missing; delete {note} when you have seen it"
        )
    size = path.stat().st_size
    if size > CHECKED_BYTES and not deep:
        yield Finding("stored log", True, f"{size / 1e9:.1f} GB, not read: `oncue doctor --deep` does")
        return
    remedy = "restart the server: it keeps what is readable; a backup has the rest: oncue restore DIR --force"
    try:
        found = problems(path)
    except sqlite3.Error as e:
        found = [str(e)]
    if not found:
        yield Finding("stored log", True, f"{size / 1e6:.1f} MB, checked")
    for text in found:
        yield Finding("stored log", False, f"{path}: {text}", remedy)
