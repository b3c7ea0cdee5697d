"""AppliedPositions: offsets up to which the view has the log, and waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from oncue.log import Partition


class AppliedPositions:
    """Next offset of each partition. Used on one event loop."""

    def __init__(self, positions: Mapping[Partition, int]) -> None:
        self.positions = dict(positions)
        self._waiters: list[tuple[Mapping[Partition, int], asyncio.Future[None]]] = []
        self._has_waiters = asyncio.Event()

    def set(self, positions: dict[Partition, int]) -> None:
        """Set the offsets, and end the waits for them."""
        self.positions = positions
        for wanted, waiter in self._waiters:
            if not waiter.done() and self._has(wanted):
                waiter.set_result(None)

    async def wait_for(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:
        """Wait until all records below these offsets are applied; False on timeout."""
        if self._has(positions):
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (positions, waiter)
        self._waiters.append(entry)
        self._has_waiters.set()
        try:
            await asyncio.wait_for(waiter, timeout_s)
            return True
        except TimeoutError:
            return self._has(positions)
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
            if not self._waiters:
                self._has_waiters.clear()

    async def wait_for_waiters(self, timeout_s: float) -> bool:
        """Wait for a pending call of `wait_for`; False on timeout."""
        if not self._has_waiters.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._has_waiters.wait()
        return self._has_waiters.is_set()

    def _has(self, positions: Mapping[Partition, int]) -> bool:
        return all(self.positions.get(where, 0) >= offset for where, offset in positions.items())

    def close(self) -> None:
        """Cancel all waits."""
        for _, waiter in self._waiters:
            waiter.cancel()
