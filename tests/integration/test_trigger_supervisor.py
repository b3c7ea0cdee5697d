"""TriggerSupervisor: the initial scans that a deploy waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from watched import aged

from oncue.dispatcher.trigger_supervisor import DesiredTrigger, TriggerSupervisor
from oncue.protocol.records import Event
from oncue.triggers.file import watcher
from oncue.triggers.file.options import FileOptions

PATIENCE_S = 30.0


class Site:
    """A supervisor and two folders; `stuck` is on a file server that hangs."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.supervisor = TriggerSupervisor(self._emit, tmp / "triggers")
        self.supervisor.on_deployed()  # the server has started, without triggers
        for name in ("good", "stuck"):
            (tmp / name).mkdir()
            (tmp / name / "old.h5").write_bytes(b"1")

    async def _emit(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        self.changed.set()

    def wanted(self, name: str, folder: str = "", **options: Any) -> dict[str, DesiredTrigger]:
        given = {"path": str(self.tmp / (folder or name)), **options}
        return {name: DesiredTrigger(name, "file", msgspec.convert(given, FileOptions), "label")}

    def state(self, name: str) -> tuple[str, bool]:
        (info,) = self.supervisor.infos([name])
        return info.state, info.looked

    async def count(self, n: int) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.events) < n:
                self.changed.clear()
                await self.changed.wait()
        return [e.data["relative"] for e in self.events]


def play(tmp: Path, part: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        site = Site(tmp)
        try:
            await part(site)
        finally:
            await site.supervisor.close()

    asyncio.run(main())


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The file server of `stuck` answers when this is set."""
    found = threading.Event()
    stat = watcher.os.stat

    def slow(path: Any, *args: Any, **kwargs: Any) -> Any:
        if path == str(tmp_path / "stuck"):
            found.wait(PATIENCE_S)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(watcher.os, "stat", slow)
    try:
        yield found
    finally:
        found.set()


def test_a_blocked_trigger_delays_no_other(tmp_path: Path, answers: threading.Event) -> None:
    async def part(s: Site) -> None:
        s.supervisor.update(s.wanted("good") | s.wanted("stuck"))
        await s.supervisor.initial_scan(["good"], PATIENCE_S)
        assert s.state("good") == ("running", True)
        await s.supervisor.initial_scan(["good", "stuck"], 0.05)
        assert s.state("stuck") == ("starting", False)
        assert "no answer" in s.supervisor.infos(["stuck"])[0].detail
        s.supervisor.on_deployed(["good", "stuck"])
        (tmp_path / "good" / "new.h5").write_bytes(b"1")
        assert await s.count(1) == ["new.h5"]
        # Another deploy, without it: its thread is not waited for.
        s.supervisor.update(s.wanted("good") | s.wanted("more", "good"))
        assert s.state("good") == ("running", True)
        await s.supervisor.initial_scan(["more"], PATIENCE_S)
        assert s.state("more") == ("running", True)
        answers.set()

    play(tmp_path, part)


def test_a_trigger_replaced_during_its_initial_scan(tmp_path: Path, answers: threading.Event) -> None:
    """The deploy that waited is answered. The new trigger starts when the old thread has closed the ledger.

    It resumes the scan that had begun, and classifies files by their times."""

    async def part(s: Site) -> None:
        aged(tmp_path / "stuck" / "old.h5")
        s.supervisor.update(s.wanted("stuck"))
        waiting = asyncio.create_task(s.supervisor.initial_scan(["stuck"], PATIENCE_S))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
        assert not waiting.done()
        s.supervisor.update(s.wanted("stuck", refire="never"))
        await waiting
        again = asyncio.create_task(s.supervisor.initial_scan(["stuck"], PATIENCE_S))
        answers.set()
        await again
        assert s.state("stuck") == ("running", True)
        (tmp_path / "stuck" / "new.h5").write_bytes(b"1")
        assert await s.count(1) == ["new.h5"]

    play(tmp_path, part)


def test_a_new_version_does_not_restart_unchanged_triggers(tmp_path: Path) -> None:
    async def part(s: Site) -> None:
        s.supervisor.update(s.wanted("good"))
        run = s.supervisor._running["good"]
        later = {n: msgspec.structs.replace(w, deployed_us=5) for n, w in s.wanted("good").items()}
        s.supervisor.update(later)
        assert s.supervisor._running["good"] is run
        s.supervisor.update(s.wanted("good", existing=True))
        assert s.supervisor._running["good"] is not run

    play(tmp_path, part)


def test_a_deploy_does_not_wait_for_a_trigger_that_cannot_be_created(tmp_path: Path) -> None:
    async def part(s: Site) -> None:
        (tmp_path / "triggers").write_bytes(b"in the way")
        s.supervisor.update(s.wanted("good"))
        await s.supervisor.initial_scan(["good", "no such trigger"], PATIENCE_S)
        assert s.state("good") == ("failed", False)

    play(tmp_path, part)
