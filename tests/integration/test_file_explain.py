"""FileTrigger.explain for each state that a file can have."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from watched import Watched

from oncue.errors import LogError, TriggerFailed


async def explained(w: Watched, path: str) -> tuple[str, str]:
    found = await w.trigger.explain(path)
    return found.state, found.why


def test_a_path_that_no_file_can_have_is_explained_and_ends_no_watch(tmp_path: Path) -> None:
    w = Watched(tmp_path, glob="**/*.h5", rescan="1h")

    async def main() -> None:
        async with w.running():
            for path in (
                "a\0b.h5",
                "x" * 6_000 + ".h5",
                "d/" * 3_000 + "a.h5",
                "é" * 200 + ".h5",
                "n\udcff.h5",
                "\ud800.h5",
            ):
                state, why = await explained(w, path)
                assert state == "missing", path[:20]
                assert "no " in why
            (w.data / "new.h5").write_bytes(b"1")
            await w.count(1)

    asyncio.run(main())


def test_each_state_of_a_file_is_explained(tmp_path: Path) -> None:
    w = Watched(tmp_path, glob="**/*.h5", ignore=(".*", "*~", "raw/trash"), refire="never", rescan="1h")
    (w.data / "old.h5").write_bytes(b"1")

    async def main() -> None:
        async with w.running():
            state, why = await explained(w, "old.h5")
            assert state == "old"
            assert "existing: false" in why
            (w.data / "new.h5").write_bytes(b"1")
            await w.count(1)
            await w.until(lambda: not w.trigger._watcher._in_flight)  # type: ignore[union-attr]
            found = await w.trigger.explain(str(w.data / "." / "new.h5"))
            assert (found.item, found.state) == ("new.h5", "fired")
            assert found.at_us > 0
            (w.data / "new.h5").write_bytes(b"22")
            async with asyncio.timeout(30):  # until then it may be pending, which is explained too
                while "refire: never" not in (await explained(w, "new.h5"))[1]:  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(0.01)
            (w.data / "new.h5").unlink()
            state, why = await explained(w, "new.h5")
            assert state == "missing"
            assert "it fired" in why
            for path, word in (
                ("deep/a.tif", "the glob **/*.h5"),
                (".git/a.h5", "ignore: .*"),
                ("deep/b.h5~", "ignore: *~"),
                ("raw/trash/a.h5", "ignore: raw/trash"),
                ("../data2/a.h5", "not below"),
                (str(tmp_path), "not below"),
            ):
                state, why = await explained(w, path)
                assert state == "not meant", path
                assert word in why
            os.symlink(w.data / "old.h5", w.data / "link.h5")
            assert "symlinks: ignore" in (await explained(w, "link.h5"))[1]
            (w.data / "folder.h5").mkdir()
            assert "regular file" in (await explained(w, "folder.h5"))[1]

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who writes")
def test_a_waiting_file_is_explained(tmp_path: Path) -> None:
    w = Watched(tmp_path)

    async def main() -> None:
        with (w.data / "half.h5").open("wb") as file:
            file.write(b"1")
            file.flush()
            async with w.running():
                await w.decided("half.h5")
                state, why = await explained(w, "half.h5")
                assert (state, "open for writing" in why) == ("waits", True)
        w.options["ready"] = {"stable": "1h"}
        async with w.running():
            (w.data / "still.h5").write_bytes(b"1")
            await w.until(lambda: any(d.item == "still.h5" for d in w.trigger.decisions()))
            state, why = await explained(w, "still.h5")
            assert (state, "stable for 3600 s" in why) == ("waits", True)

    asyncio.run(main())


def test_an_event_that_cannot_be_stored_yet_is_explained(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    w.fails = [LogError("the disk is full")] * 1000

    async def main() -> None:
        async with w.running():
            (w.data / "a.h5").write_bytes(b"1")
            await w.until(lambda: "disk is full" in w.trigger.status().detail)
            state, why = await explained(w, "a.h5")
            assert (state, "disk is full" in why) == ("fires", True)
            w.fails.clear()
            await w.count(1)

    asyncio.run(main())


def test_a_trigger_that_does_not_run_cannot_explain(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    w.data.rmdir()

    async def main() -> None:
        async with w.running(until="waiting"):
            state, why = await explained(w, "a.h5")
            assert (state, "no such file" in why) == ("missing", True)
            other = Watched(tmp_path)  # makes the folder
            (w.data / "a.h5").write_bytes(b"1")
            async with other.running(until="failed"):  # its ledger is in use
                with pytest.raises(TriggerFailed, match="in use"):
                    await other.trigger.explain("a.h5")

    asyncio.run(main())
