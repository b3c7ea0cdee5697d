"""ManyWaits: one request that waits for thousands of tasks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.off_loop import MANY
from oncue.errors import RateLimited
from oncue.protocol.records import Ended

OWNER_IDS = 262_144  # for which requests of one owner wait


class ManyWaits:
    """A waiter of the notifier for all tasks of a request. `add`, then `close`."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ids: list[bytes] = []
        self._left: set[bytes] = set()
        self._all_closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def add(self, ids: Iterable[bytes]) -> None:
        """Wait for these tasks, too."""
        self._ids = list(dict.fromkeys(ids))
        self._left.update(self._ids)
        for some in _slices(self._ids):
            for task_id in some:
                self._notifier.add(task_id, self)
            await asyncio.sleep(0)

    async def until_closed(self, known: Iterable[bytes], seconds: float) -> None:
        """Wait until all tasks are closed, at most so long; those of `known` are."""
        self._settle(known)
        await asyncio.wait({self._all_closed}, timeout=seconds)

    async def close(self) -> None:
        """Wait no more."""
        for some in _slices(self._ids):
            for task_id in some:
                self._notifier.forget(task_id, self)
            await asyncio.sleep(0)
        self.cancel()

    def _settle(self, ids: Iterable[bytes]) -> None:
        self._left.difference_update(ids)
        if not self._left and not self._all_closed.done():
            self._all_closed.set_result(None)

    # ------------------------------------------------------------ as the notifier's waiter

    def done(self) -> bool:
        """Return True if all tasks are closed, or nobody waits any more."""
        return self._all_closed.done()

    def set_result(self, ended: Ended) -> None:
        """Note that a task is closed."""
        self._settle((ended.id,))

    def cancel(self) -> object:
        """Wait no more: the server stops."""
        return self._all_closed.cancel()


def _slices(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for at in range(0, len(ids), MANY):
        yield ids[at : at + MANY]


class WaitingIds:
    """Ids for which requests wait, of each owner."""

    def __init__(self, most: int = OWNER_IDS) -> None:
        self._most = most
        self._count: Counter[str] = Counter()

    def add(self, owner: str, count: int) -> None:
        """Count the ids of a request. Raises RateLimited."""
        if self._count[owner] + count > self._most and self._count[owner]:
            raise RateLimited(
                f"your requests wait for {self._count[owner]:,} tasks; at most {self._most:,} are waited for at once",
                remedy="wait for fewer tasks; GET /v1/outcomes brings the outcomes of all, as they happen",
                retry_after_s=1,
            )
        self._count[owner] += count

    def remove(self, owner: str, count: int) -> None:
        """Count the ids of a request no more."""
        self._count[owner] -= count
        if not self._count[owner]:
            del self._count[owner]
