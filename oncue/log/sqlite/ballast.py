"""File that reserves disk space, to be released when the disk is full.

Deleting rows from a database first takes space in its write-ahead log.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from oncue.disk.space import free_bytes
from oncue.log.sqlite.database import WAL_BYTES

logger = logging.getLogger(__name__)

# One write-ahead log to move into the database file, and one for the deletions.
BALLAST_BYTES = 2 * WAL_BYTES
BLOCK_BYTES = 256 * 1024


class Ballast:
    """The file `ballast` in the log's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def create(self) -> None:
        """Create the file if it is missing; at most an eighth of the free space."""
        size = min(BALLAST_BYTES, free_bytes(self._path.parent) // 8)
        if self._path.exists() or size < BLOCK_BYTES:
            return
        block = os.urandom(BLOCK_BYTES)  # zeros would take no space on a compressing file system
        half = self._path.with_suffix(".new")
        try:
            with half.open("wb", buffering=0) as file:
                for _ in range(size // BLOCK_BYTES):
                    file.write(block)
            half.rename(self._path)
        except OSError as e:
            half.unlink(missing_ok=True)
            logger.warning("no room for the ballast %s: %s", self._path, e)

    def release(self) -> bool:
        """Delete the file; False if it was deleted before."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        logger.warning("the disk is full: deleted the ballast %s so that retention can run", self._path)
        return True
