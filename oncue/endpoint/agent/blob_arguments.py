"""Large arguments of held tasks: tasks that wait for or use a blob.

    require ──blobs are here─► the task may run         release ──no users left──► linger ──► delete
       └──missing──► waits ──fetched──► the task may run

Pure, except for the cache that is handed in.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple

from oncue.endpoint.agent.fetcher import BlobCache
from oncue.endpoint.agent.task_queue import AttemptGroup
from oncue.protocol.records import TaskRecord

LINGER_US = 60_000_000  # how long an unneeded blob stays

Waiting = list[tuple[AttemptGroup, TaskRecord]]


class _Waiting(NamedTuple):
    """A task that waits for blobs.

    `missing` is a set in order, as all sets of this file whose items are handed on: a simulation
    must repeat itself.
    """

    group: AttemptGroup
    task: TaskRecord
    missing: dict[str, None]


class BlobArguments:
    """Blobs by the tasks that use them."""

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache
        self.users: dict[str, set[bytes]] = {}  # blob -> tasks that need it
        self._blobs_of: dict[bytes, tuple[str, ...]] = {}
        self._waits: dict[bytes, _Waiting] = {}
        self._waiting_for: dict[str, dict[bytes, None]] = {}  # blob -> tasks that wait for it
        self._unneeded: dict[str, int] = {}  # blob -> since when nobody needs it
        self._drop_us = 0  # next time to look at them

    def require(self, group: AttemptGroup, task: TaskRecord, blobs: tuple[str, ...]) -> list[str]:
        """Register a task's blobs. Return those for which the task must wait."""
        for sha256 in blobs:
            self.users.setdefault(sha256, set()).add(task.id)
        self._blobs_of[task.id] = blobs
        missing = dict.fromkeys(sha256 for sha256 in blobs if not self._cache.has_blob(sha256))
        if missing:
            self._waits[task.id] = _Waiting(group, task, missing)
            for sha256 in missing:
                self._waiting_for.setdefault(sha256, {})[task.id] = None
        return list(missing)

    def on_fetched(self, sha256: str) -> Waiting:
        """Return the tasks that waited for this blob only. They wait no more."""
        ready: Waiting = []
        for task_id in self._waiting_for.pop(sha256, ()):
            wait = self._waits[task_id]
            wait.missing.pop(sha256, None)
            if not wait.missing:
                del self._waits[task_id]
                ready.append((wait.group, wait.task))
        return ready

    def on_failed(self, sha256: str) -> tuple[Waiting, list[str]]:
        """Remove the tasks that wait for this blob; return as `remove`."""
        found = self.remove(set(self._waiting_for.get(sha256, ())))
        return found[0], [idle for idle in found[1] if idle != sha256]

    def remove(self, ids: set[bytes]) -> tuple[Waiting, list[str]]:
        """Remove these tasks if they wait.

        Return (them, the blobs that nobody waits for now).
        """
        out: Waiting = []
        idle: list[str] = []
        for task_id in [task_id for task_id in self._waits if task_id in ids]:
            wait = self._waits.pop(task_id)
            out.append((wait.group, wait.task))
            for sha256 in wait.missing:
                others = self._waiting_for[sha256]
                others.pop(task_id, None)
                if not others:
                    del self._waiting_for[sha256]
                    idle.append(sha256)
        return out, idle

    def expired(self, now_us: int) -> tuple[set[bytes], int]:
        """Return (ids of waiting tasks past their expiry, the next expiry; 0: none)."""
        due: set[bytes] = set()
        following = 0
        for wait in self._waits.values():
            at = wait.group.call.expires_us
            if at and at < now_us:
                due.add(wait.task.id)
            elif at:
                following = min(following or at, at)
        return due, following

    def waiting(self) -> set[bytes]:
        """Return the ids of all waiting tasks."""
        return set(self._waits)

    # ------------------------------------------------------------ blobs that can go

    def release(self, ids: Iterable[bytes], now_us: int) -> None:
        """Release the blobs of tasks that have ended."""
        if not self._blobs_of:
            return
        for task_id in ids:
            for sha256 in self._blobs_of.pop(task_id, ()):
                users = self.users.get(sha256)
                if users is None:  # the task names it twice
                    continue
                users.discard(task_id)
                if not users:
                    del self.users[sha256]
                    self.mark_unneeded(sha256, now_us)

    def mark_unneeded(self, sha256: str, now_us: int) -> None:
        """Let a blob go that was here for another reason."""
        self._unneeded[sha256] = now_us
        self._drop_us = min(self._drop_us, now_us + LINGER_US)

    def drop(self, now_us: int, uploads: Container[str]) -> None:
        """Delete blobs that were unneeded for LINGER_US.

        The delay is needed: a worker may have found the blob here, and its result that names it is
        on its way.
        """
        if now_us <= self._drop_us:
            return
        for sha256, since_us in list(self._unneeded.items()):
            if sha256 in self.users or sha256 in uploads:
                del self._unneeded[sha256]
            elif now_us - since_us > LINGER_US:
                del self._unneeded[sha256]
                if not self._cache.drop_blob(sha256, LINGER_US / 1e6):
                    self._unneeded[sha256] = now_us
        self._drop_us = min(self._unneeded.values(), default=now_us) + LINGER_US
