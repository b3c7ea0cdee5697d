"""Virtual time: a heap of what happens when."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._n = 0
        self.trace: Callable[[str], None] | None = None

    def at(self, when_us: int, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._heap, (max(when_us, self.now_us), self._n, what))

    def after(self, pause_us: float, what: Callable[[], None]) -> None:
        self.at(self.now_us + int(pause_us), what)

    def step(self) -> bool:
        if not self._heap:
            return False
        self.now_us, _, what = heapq.heappop(self._heap)
        what()
        return True

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{(self.now_us - 1_700_000_000_000_000) / 1e6:10.4f}  {text}")
