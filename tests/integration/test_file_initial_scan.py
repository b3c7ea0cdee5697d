"""The initial scan of a file trigger, and a deploy that is answered before the scan has ended."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from watched import PATIENCE_S, Watched, aged

from oncue.clocks.process import now_us

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who writes, or its kernel for its limits")


class Held:
    """Blocks the watcher's thread when its initial scan finds hold.h5, the first file that is listed."""

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


def test_after_an_early_answer_files_are_classified_by_their_times(tmp_path: Path) -> None:
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


def test_a_file_noticed_during_the_scan_is_new(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    held = Held(w)

    async def main() -> None:
        async with w.running(until="looking", hold=held):
            await held.reached()
            for i in range(300):  # more than one step of a scan
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
            assert w.names == []  # no event is left over

    asyncio.run(main())


@linux
def test_an_overflow_during_the_scan_loses_no_file(tmp_path: Path) -> None:
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
def test_a_file_being_written_during_the_scan_fires_when_it_is_complete(tmp_path: Path) -> None:
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


def test_a_scan_cut_short_by_a_kill_resumes_by_the_files_times(tmp_path: Path) -> None:
    """The ledger has only the beginning of the scan, as after kill -9."""
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


def test_a_folder_that_comes_back_has_the_same_existing_files(tmp_path: Path) -> None:
    """As when a disk is unmounted for a while."""
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
