"""A file that only takes up space, so that there is some to give when the disk is full: deleting from a database takes
room in its write-ahead log first."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from oncue.log.sqlite.database import WAL_BYTES, free_bytes

logger = logging.getLogger(__name__)

BALLAST_BYTES = 2 * WAL_BYTES  # one write-ahead log to be moved into the database file, one for the deletions
BLOCK_BYTES = 256 * 1024


class Ballast:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def take(self) -> None:
        """Make the file if it is missing and there is plenty of room; on a small disk it is small."""
        size = min(BALLAST_BYTES, free_bytes(self._path) // 8)
        if self._path.exists() or size < BLOCK_BYTES:
            return
        block = os.urandom(BLOCK_BYTES)  # a file system that compresses would make nothing of zeros
        half = self._path.with_suffix(".new")
        try:
            with half.open("wb", buffering=0) as file:
                for _ in range(size // BLOCK_BYTES):
                    file.write(block)
            half.rename(self._path)
        except OSError as e:
            half.unlink(missing_ok=True)
            logger.warning("no room for the ballast %s: %s", self._path, e)

    def drop(self) -> bool:
        """Give its room away; False: that was done before."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        logger.warning("the disk is full: gave up the ballast %s so that retention can run", self._path)
        return True
