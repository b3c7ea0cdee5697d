"""Limit on the blobs that one owner may store: a share of the disk that has them.

Without it, one person's uploads could fill the disk of all. Equal content is stored once: whoever
sent it first pays for it, until retention deletes it. The owners are in a database of this server,
beside the view; if the file is lost, counting begins anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import Counter
from pathlib import Path

from oncue.blobs import Blobs, Upload, UrlBlobs
from oncue.errors import Conflict

log = logging.getLogger("oncue.blobs")
NAME = "blob-owners.db"
_TABLE = """
CREATE TABLE IF NOT EXISTS blob (sha256 TEXT PRIMARY KEY, owner TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID
"""


class BlobQuota:
    """Bytes of blobs by owner, and their limit, for several threads."""

    def __init__(self, path: Path, blobs: Blobs, percent: float) -> None:
        """`percent` of the disk's size is one owner's limit; with 100 there is none."""
        self._blobs, self._percent, self._lock = blobs, percent, threading.Lock()
        self._db = _open(path)
        self._stored = Counter(dict(self._db.execute("SELECT owner, sum(size) FROM blob GROUP BY owner")))
        self._coming: Counter[str] = Counter()  # of unfinished uploads

    def upload(self, owner: str, sha256: str, size: int) -> Upload:
        """Start an upload for this owner; "": it has no limit.

        Raises Conflict if it does not fit in the owner's share; Invalid, DiskFull.
        """
        if not owner:
            return self._blobs.upload(sha256, size)
        self._reserve(owner, size)
        try:
            upload = self._blobs.upload(sha256, size)
        except BaseException:
            self._end(owner, sha256, size, stored=False)
            raise
        upload.on_end = lambda stored: self._end(owner, sha256, size, stored)
        return upload

    def put(self, owner: str, sha256: str, content: bytes) -> None:
        """Store the content, which has this hash, for this owner. Raises as `upload`."""
        if not self._blobs.has(sha256):
            with self.upload(owner, sha256, len(content)) as upload:
                upload.write(0, content)
                upload.finish()

    def _reserve(self, owner: str, size: int) -> None:
        limit = self._limit()
        with self._lock:
            used = self._stored[owner] + self._coming[owner]
            if limit is not None and used + size > limit:
                raise Conflict(
                    f"{owner} has {used:,} bytes of large payloads and functions on this server; with {size:,} more"
                    f" they exceed one owner's share of its disk, {limit:,}",
                    remedy="wait until the retention deletes old ones; an admin can raise `owner_blobs_percent`",
                )
            self._coming[owner] += size

    def _limit(self) -> int | None:
        """Return the limit in bytes. Stores elsewhere than in a folder have none."""
        if self._percent >= 100 or isinstance(self._blobs, UrlBlobs):
            return None
        found = os.statvfs(self._blobs.folder)
        return int(found.f_blocks * found.f_frsize * self._percent / 100)

    def _end(self, owner: str, sha256: str, size: int, stored: bool) -> None:
        with self._lock:
            self._coming[owner] -= size
            if not self._coming[owner]:
                del self._coming[owner]
            if not stored:
                return
            try:
                done = self._db.execute("INSERT OR IGNORE INTO blob VALUES (?, ?, ?)", (sha256, owner, size))
            except sqlite3.Error as e:  # the blob is stored: the count is not worth its loss
                log.warning("the owner of a blob could not be noted: %s", e)
            else:
                self._stored[owner] += size * done.rowcount

    def forget_deleted(self) -> None:
        """Forget the blobs that the store no longer has."""
        with self._lock:
            known = self._db.execute("SELECT sha256, owner, size FROM blob").fetchall()
        for sha256, owner, size in known:
            if not self._blobs.has(sha256):
                with self._lock:
                    gone = self._db.execute("DELETE FROM blob WHERE sha256 = ?", (sha256,)).rowcount
                    self._stored[owner] -= size * gone

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    """Open the database: a new one if it is damaged, one in memory if need be."""
    try:
        return _connect(path)
    except sqlite3.OperationalError as e:  # a full disk must not keep the server from its start
        log.warning("%s cannot be used (%s): blobs of each owner are counted until the next start", path, e)
        return _connect(":memory:")
    except sqlite3.DatabaseError as e:
        log.warning("%s is damaged (%s): the blobs of each owner are counted anew", path, e)
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_TABLE}")
        db.execute("SELECT sum(size) FROM blob").fetchone()
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db
