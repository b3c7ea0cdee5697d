"""Checks of a data folder's files, for `oncue doctor`."""

from __future__ import annotations

import json
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
