"""Watched: a FileTrigger on a real folder, with the events that it emitted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from oncue.clocks.process import now_us
from oncue.errors import NotFound
from oncue.protocol.records import Event
from oncue.triggers.base import ReplicatedState, TriggerContext
from oncue.triggers.file.baseline import TICK_S
from oncue.triggers.file.options import FileOptions
from oncue.triggers.file.trigger import FileTrigger

PATIENCE_S = 30.0


def aged(file: Path) -> None:
    """Wait until the file's last change is certainly before a deploy made now."""
    while now_us() < file.stat().st_ctime_ns // 1000 + round(1.5e6 * TICK_S):
        time.sleep(TICK_S / 4)


class Watched:
    """`async with watched.running():` runs the trigger; a second time is like a restart."""

    def __init__(self, tmp: Path, **options: object) -> None:
        self.data = tmp / "data"
        self.data.mkdir(exist_ok=True)
        self.tmp, self.options = tmp, options
        self.deployed_us, self.server = 0, "state"  # the folder of the server that runs it
        self.state: ReplicatedState | None = None
        self.events: list[Event] = []
        self.fails: list[Exception] = []  # raised by the next emits
        self._changed = asyncio.Event()
        self.trigger = self._make()

    def _make(self) -> FileTrigger:
        def secrets(name: str) -> str:
            raise NotFound(name)

        options = msgspec.convert({"path": str(self.data), **self.options}, FileOptions)
        context = TriggerContext(self._emit, self.tmp / self.server, secrets, self.deployed_us, self.state)
        return FileTrigger("detector", options, context)

    async def _emit(self, events: Sequence[Event]) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop(0)
        self.events.extend(events)
        self._changed.set()

    @contextlib.asynccontextmanager
    async def running(
        self, *, until: str = "running", hold: Callable[[Callable[[str, str], bool], str, str], bool] | None = None
    ) -> AsyncIterator[Watched]:
        """Run the trigger. `hold` is called in the watcher's thread, for each path that it matches."""
        self._changed = asyncio.Event()
        self.trigger = self._make()
        if hold is not None:
            matches = partial(hold, self.trigger.spec.matches)
            self.trigger.spec = msgspec.structs.replace(self.trigger.spec, matches=matches)
        task = asyncio.create_task(self.trigger.run())
        try:
            await self.until(lambda: self.trigger.status().state == until or task.done())
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def names(self) -> list[str]:
        return [event.data["relative"] for event in self.events]

    async def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.names[-5:]} {self.trigger.status()} {self.trigger.decisions()[-5:]}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.02)

    async def count(self, n: int) -> list[Event]:
        """Wait for `n` events; fail on more."""
        await self.until(lambda: len(self.events) >= n)
        assert len(self.events) == n, self.names
        return self.events

    async def quiet(self) -> None:
        """Wait until a file made now has fired: earlier files are handled then."""
        fence = self.data / f"fence-{time.monotonic_ns()}"
        before = len(self.events)
        fence.write_bytes(b"")
        await self.until(lambda: any(e.data["name"] == fence.name for e in self.events[before:]))
        self.events[:] = [e for e in self.events if e.data["name"] != fence.name]

    async def decided(self, relative: str) -> str:
        """Wait for a decision about the file; return the latest reason."""

        def found() -> list[str]:
            return [d.why for d in self.trigger.decisions() if d.item == relative]

        await self.until(lambda: bool(found()))
        return found()[-1]
