"""Virtual time: a heap of what happens when, and each node's system clock, which may be stepped."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable

from oncue.clocks.process import ProcessClock


class Clock:
    """`now_us` is the true time. Nodes know only their system clocks, and how much time has passed."""

    def __init__(self, process_class: type[ProcessClock] = ProcessClock) -> None:
        self.now_us = 1_700_000_000_000_000
        self.ahead_us: dict[str, int] = defaultdict(int)  # node -> by how much its system clock is wrong
        self._process_class = process_class
        self.expired_us: dict[bytes, int] = {}  # task -> when a server or an agent ended it as expired
        self.silences = 0  # sessions that a server ended because of silence
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._n = 0
        self.trace: Callable[[str], None] | None = None

    def at(self, when_us: int, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._heap, (max(when_us, self.now_us), self._n, what))

    def after(self, pause_us: float, what: Callable[[], None]) -> None:
        self.at(self.now_us + int(pause_us), what)

    def process(self, node: str) -> ProcessClock:
        """The time of a process that starts now on this node."""
        return self._process_class(lambda: (self.now_us + self.ahead_us[node]) * 1_000, lambda: self.now_us * 1_000)

    def step(self) -> bool:
        if not self._heap:
            return False
        self.now_us, _, what = heapq.heappop(self._heap)
        what()
        return True

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{(self.now_us - 1_700_000_000_000_000) / 1e6:10.4f}  {text}")
