"""Several triggers of one server: who waits for whose first look, and who does not."""

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
    """A host, and folders of which one is on a file server that does not answer."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.host = TriggerSupervisor(self._emit, tmp / "triggers")
        self.host.on_deployed()  # the server has started, with none
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
        (info,) = self.host.infos([name])
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
            await site.host.close()

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


def test_one_that_is_stuck_holds_up_no_other(tmp_path: Path, answers: threading.Event) -> None:
    async def part(s: Site) -> None:
        s.host.update(s.wanted("good") | s.wanted("stuck"))
        await s.host.initial_scan(["good"], PATIENCE_S)
        assert s.state("good") == ("running", True)
        await s.host.initial_scan(["good", "stuck"], 0.05)
        assert s.state("stuck") == ("starting", False)
        assert "no answer" in s.host.infos(["stuck"])[0].detail
        s.host.on_deployed(["good", "stuck"])
        (tmp_path / "good" / "new.h5").write_bytes(b"1")
        assert await s.count(1) == ["new.h5"]
        # Another deploy, without it: its thread is not waited for.
        s.host.update(s.wanted("good") | s.wanted("more", "good"))
        assert s.state("good") == ("running", True)
        await s.host.initial_scan(["more"], PATIENCE_S)
        assert s.state("more") == ("running", True)
        answers.set()

    play(tmp_path, part)


def test_one_that_is_replaced_during_its_look(tmp_path: Path, answers: threading.Event) -> None:
    """Who waited for it is answered; the new one starts when the thread of the old one has left the ledger, and goes on with
    the look that had begun, by the files' times."""

    async def part(s: Site) -> None:
        aged(tmp_path / "stuck" / "old.h5")
        s.host.update(s.wanted("stuck"))
        waiting = asyncio.create_task(s.host.initial_scan(["stuck"], PATIENCE_S))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
        assert not waiting.done()
        s.host.update(s.wanted("stuck", refire="never"))
        await waiting
        again = asyncio.create_task(s.host.initial_scan(["stuck"], PATIENCE_S))
        answers.set()
        await again
        assert s.state("stuck") == ("running", True)
        (tmp_path / "stuck" / "new.h5").write_bytes(b"1")
        assert await s.count(1) == ["new.h5"]

    play(tmp_path, part)


def test_a_later_version_of_a_deployment_leaves_its_triggers_alone(tmp_path: Path) -> None:
    async def part(s: Site) -> None:
        s.host.update(s.wanted("good"))
        run = s.host._running["good"]
        later = {n: msgspec.structs.replace(w, deployed_us=5) for n, w in s.wanted("good").items()}
        s.host.update(later)
        assert s.host._running["good"] is run
        s.host.update(s.wanted("good", existing=True))
        assert s.host._running["good"] is not run

    play(tmp_path, part)


def test_what_cannot_be_made_is_not_waited_for(tmp_path: Path) -> None:
    async def part(s: Site) -> None:
        (tmp_path / "triggers").write_bytes(b"in the way")
        s.host.update(s.wanted("good"))
        await s.host.initial_scan(["good", "no such trigger"], PATIENCE_S)
        assert s.state("good") == ("failed", False)

    play(tmp_path, part)
