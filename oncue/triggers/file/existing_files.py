"""Counts the files that a trigger with `existing: true` is going to fire for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.stability import FileKey

PART = 500  # files whose state is asked for at once

#: Returns those of the files that have fired, or were passed over.
Handled = Callable[[list[FileKey]], set[FileKey]]


def count_existing(spec: FileSpec, handled: Handled, seconds: float) -> tuple[int, bool]:
    """Return (files, True if the count is complete). It ends after `seconds`.

    Raises OSError for the watched folder itself.
    """
    end = time.monotonic() + seconds
    count, queue, part = 0, [""], list[FileKey]()
    while queue:
        folder = queue.pop()
        try:
            with os.scandir(spec.root / folder) as entries:
                for entry in entries:
                    if time.monotonic() > end:
                        return count, False
                    below = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if spec.enter(below):
                            queue.append(below)
                    elif spec.matches(folder, entry.name) and entry.is_file(follow_symlinks=spec.links):
                        part.append((folder, entry.name))
                    if len(part) >= PART:
                        count, part = count + len(part) - len(handled(part)), []
        except OSError:
            if not folder:
                raise
    return count + len(part) - len(handled(part) if part else ()), True
