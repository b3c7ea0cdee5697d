"""SharedAnswer: an answer that takes a small part of the time, whoever asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
SHARE = 50  # an answer is kept for so many times the time that it took
KEPT_S = 5.0  # at most


class SharedAnswer(Generic[T]):
    """The latest answer. One that took a millisecond is made anew after 50 ms.

    All who ask at once get the same one.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock_s = make, clock_s
        self._making = asyncio.Lock()
        self._kept: tuple[T, float] | None = None  # until when

    async def get(self) -> T:
        """Return the answer."""
        async with self._making:
            began = self._clock_s()
            if self._kept is not None and began < self._kept[1]:
                return self._kept[0]
            found = await self._make()
            now = self._clock_s()
            self._kept = found, now + min(KEPT_S, SHARE * (now - began))
            return found
