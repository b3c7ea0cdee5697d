"""Large arguments of held tasks: tasks that wait for or use a blob.

    require ──blob is here──► the task may run          release ──no users left──► linger ──► delete
       └──missing──► waits ──fetched──► the task may run

Pure, except for the cache that is handed in.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from oncue.endpoint.agent.fetcher import BlobCache
from oncue.endpoint.agent.task_queue import AttemptGroup
from oncue.protocol.records import TaskRecord

LINGER_US = 60_000_000  # how long an unneeded blob stays

Waiting = list[tuple[AttemptGroup, TaskRecord]]


class BlobArguments:
    """Blobs by the tasks that use them."""

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache
        self.users: dict[str, set[bytes]] = {}  # blob -> tasks that need it
        self._blob_of: dict[bytes, str] = {}
        self._waits: dict[str, Waiting] = {}
        self._unneeded: dict[str, int] = {}  # blob -> since when nobody needs it

    def require(self, group: AttemptGroup, task: TaskRecord, sha256: str) -> bool:
        """Register a task's blob. Return True if the task must wait for it."""
        self.users.setdefault(sha256, set()).add(task.id)
        self._blob_of[task.id] = sha256
        if self._cache.has_blob(sha256):
            return False
        self._waits.setdefault(sha256, []).append((group, task))
        return True

    def pop_waiting(self, sha256: str) -> Waiting:
        """Remove and return the tasks that waited for this blob."""
        return self._waits.pop(sha256, [])

    def remove(self, ids: set[bytes]) -> tuple[Waiting, list[str]]:
        """Remove these tasks if they wait.

        Return (them, the blobs that nobody waits for now).
        """
        out: Waiting = []
        idle: list[str] = []
        for sha256, waits in list(self._waits.items()):
            out += [w for w in waits if w[1].id in ids]
            waits[:] = [w for w in waits if w[1].id not in ids]
            if not waits:
                del self._waits[sha256]
                idle.append(sha256)
        return out, idle

    def expired(self, now_us: int) -> tuple[set[bytes], int]:
        """Return (ids of waiting tasks past their expiry, the next expiry; 0: none)."""
        due: set[bytes] = set()
        following = 0
        for waits in self._waits.values():
            for group, task in waits:
                at = group.call.expires_us
                if at and at < now_us:
                    due.add(task.id)
                elif at:
                    following = min(following or at, at)
        return due, following

    def waiting(self) -> set[bytes]:
        """Return the ids of all waiting tasks."""
        return {t.id for waits in self._waits.values() for _, t in waits}

    # ------------------------------------------------------------ blobs that can go

    def release(self, ids: Iterable[bytes], now_us: int) -> None:
        """Release the blobs of tasks that have ended."""
        if not self._blob_of:
            return
        for task_id in ids:
            sha256 = self._blob_of.pop(task_id, None)
            if sha256 is None:
                continue
            users = self.users[sha256]
            users.discard(task_id)
            if not users:
                del self.users[sha256]
                self._unneeded[sha256] = now_us

    def mark_unneeded(self, sha256: str, now_us: int) -> None:
        """Let a blob go that was here for another reason."""
        self._unneeded[sha256] = now_us

    def drop(self, now_us: int, uploads: Container[str]) -> None:
        """Delete blobs that were unneeded for LINGER_US.

        The delay is needed: a worker may have found the blob here, and its result that names it is
        on its way.
        """
        for sha256, since_us in list(self._unneeded.items()):
            if sha256 in self.users or sha256 in uploads:
                del self._unneeded[sha256]
            elif now_us - since_us > LINGER_US:
                del self._unneeded[sha256]
                self._cache.drop_blob(sha256)
