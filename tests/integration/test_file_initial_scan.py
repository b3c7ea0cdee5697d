"""The first look of a file trigger, and a deploy that is answered before it has ended."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from watched import PATIENCE_S, Watched, aged

from oncue.ids import now_us

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who writes, or its kernel for its limits")


class Held:
    """The watcher's thread stops where its first look meets hold.h5 in the watched folder itself, the first that is listed."""

    def __init__(self, w: Watched) -> None:
        self.w = w
        self._there, self._go = threading.Event(), threading.Event()
        (w.data / "hold.h5").write_bytes(b"old")
        (w.data / "deep").mkdir()
        (w.data / "deep" / "old.h5").write_bytes(b"old")
        aged(w.data / "deep" / "old.h5")
        w.deployed_us = now_us()

    def __call__(self, matches: Callable[[str, str], bool], folder: str, name: str) -> bool:
        if name == "hold.h5" and not self._go.is_set():
            self._there.set()
            assert self._go.wait(PATIENCE_S)
        return matches(folder, name)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._there.wait, PATIENCE_S)

    def release(self) -> None:
        self._go.set()


def test_a_deploy_that_is_answered_before_the_look_has_ended(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    held = Held(w)

    async def main() -> None:
        async with w.running(until="looking", hold=held):
            await held.reached()
            status = w.trigger.status()
            assert (status.state, status.scanned) == ("looking", False)
            assert "initial scan" in status.detail
            look = asyncio.create_task(w.trigger.initial_scan())
            await asyncio.sleep(0)
            assert not look.done()
            w.trigger.on_deployed()
            (w.data / "deep" / "new.h5").write_bytes(b"not listed yet")
            (w.data / "new.h5").write_bytes(b"in a folder that is watched already")
            held.release()
            await look
            await w.count(2)
            await w.quiet()
            assert sorted(w.names) == ["deep/new.h5", "new.h5"]
            status = w.trigger.status()
            assert (status.state, status.scanned, status.existing) == ("running", True, 2)
            assert "2 files existed before" in await w.decided(".")

    asyncio.run(main())


def test_what_is_noticed_during_the_look_is_not_taken_for_old(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    held = Held(w)

    async def main() -> None:
        async with w.running(until="looking", hold=held):
            await held.reached()
            for i in range(300):  # more than one step of a walk
                (w.data / f"{i}.h5").write_bytes(b"new")
            (w.data / "deep" / "unnoticed.h5").write_bytes(b"there when it is listed, and nobody has been answered")
            held.release()
            await w.trigger.initial_scan()
            (w.data / "deep" / "last.h5").write_bytes(b"new")
            await w.quiet()
            assert "deep/unnoticed.h5" not in w.names
            assert "deep/last.h5" in w.names
            assert len(w.names) == len(set(w.names))
        w.events.clear()
        async with w.running():
            await w.quiet()
            assert w.names == []  # nothing is left over

    asyncio.run(main())


@linux
def test_an_overflow_during_the_look_loses_nothing(tmp_path: Path) -> None:
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queue > 50_000:
        pytest.skip("the queue of this machine is too long to fill it in a test")
    w = Watched(tmp_path)
    held = Held(w)

    async def main() -> None:
        async with w.running(until="looking", hold=held):
            await held.reached()
            w.trigger.on_deployed()
            n = queue // 2 + 500  # a creation and a close each
            for i in range(n):
                os.close(os.open(f"{w.data}/{i}", os.O_CREAT | os.O_WRONLY))
            (w.data / "new").mkdir()
            (w.data / "new" / "file.h5").write_bytes(b"1")
            held.release()
            await w.count(n + 1)
            await w.quiet()
            assert len(set(w.names)) == len(w.names) == n + 1

    asyncio.run(main())


@linux
def test_a_file_that_is_being_written_at_the_look_fires_when_it_is_whole(tmp_path: Path) -> None:
    w = Watched(tmp_path)

    async def main() -> None:
        with (w.data / "half.h5").open("wb") as file:
            file.write(b"1")
            file.flush()
            async with w.running():
                assert "open for writing" in await w.decided("half.h5")
                file.write(b"2")
                file.close()
                (event,) = await w.count(1)
                assert event.data["size"] == 2

    asyncio.run(main())


def test_a_look_that_a_kill_cut_short_goes_on_by_the_files_times(tmp_path: Path) -> None:
    """The ledger has the beginning of the look only, as after kill -9."""
    w = Watched(tmp_path)
    held = Held(w)

    async def main() -> None:
        async with w.running(until="looking", hold=held):
            await held.reached()
            w.trigger._watcher.stop()  # type: ignore[union-attr]
            held.release()
        (w.data / "deep" / "while_down.h5").write_bytes(b"new")
        async with w.running():
            await w.count(1)
            await w.quiet()
            assert w.names == ["deep/while_down.h5"]

    asyncio.run(main())


def test_a_folder_that_goes_away_and_comes_back_has_the_same_old_files(tmp_path: Path) -> None:
    """A disk that is unmounted for a while."""
    w = Watched(tmp_path)
    (w.data / "old.h5").write_bytes(b"1")

    async def main() -> None:
        async with w.running():
            assert w.trigger.status().existing == 1
            w.data.rename(tmp_path / "elsewhere")
            await w.until(lambda: w.trigger.status().state == "waiting")
            assert "does not exist" in w.trigger.status().detail
            (tmp_path / "elsewhere" / "meanwhile.h5").write_bytes(b"1")
            (tmp_path / "elsewhere").rename(w.data)
            await w.count(1)
            await w.quiet()
            assert w.names == ["meanwhile.h5"]

    asyncio.run(main())
