"""LoopTurn: how long a coroutine holds the event loop before others get it."""

from __future__ import annotations

import asyncio
from time import perf_counter

TURN_S = 0.01


class LoopTurn:
    """The turn of a coroutine, which ends it from time to time."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = perf_counter() + TURN_S

    @property
    def is_over(self) -> bool:
        return perf_counter() >= self._until

    async def end(self) -> None:
        """Yield to the event loop; then the next turn begins."""
        await asyncio.sleep(0)
        self._until = perf_counter() + TURN_S
