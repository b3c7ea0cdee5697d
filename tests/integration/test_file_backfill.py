"""Backfill: files that existed before the trigger fire when asked for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from watched import Watched

from oncue.errors import Invalid, TriggerFailed
from oncue.protocol.api import BackfillRequest

MARCH, APRIL = 1_772_000_000, 1_775_000_000


def old_files(w: Watched) -> None:
    (w.data / "deep").mkdir()
    for name, at in (("a.h5", MARCH), ("b.h5", APRIL), ("deep/c.h5", APRIL), ("d.tif", APRIL), ("e.tmp", APRIL)):
        (w.data / name).write_bytes(b"12")
        os.utime(w.data / name, (at, at))


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (BackfillRequest(), ["a.h5", "b.h5", "d.tif", "deep/c.h5"]),
        (BackfillRequest(glob="*.h5"), ["a.h5", "b.h5", "deep/c.h5"]),
        (BackfillRequest(glob="deep/*"), ["deep/c.h5"]),
        (BackfillRequest(since_us=APRIL * 10**6), ["b.h5", "d.tif", "deep/c.h5"]),
        (BackfillRequest(until_us=APRIL * 10**6), ["a.h5"]),
        (BackfillRequest(glob="no*"), []),
    ],
)
def test_old_files_fire_once(tmp_path: Path, request_: BackfillRequest, names: list[str]) -> None:
    w = Watched(tmp_path)
    old_files(w)

    async def run() -> None:
        async with w.running():
            counted = await w.trigger.backfill(_dry(request_))
            assert (counted.files, counted.bytes, sorted(counted.first)) == (len(names), 2 * len(names), names)
            await w.quiet()
            assert w.names == []
            assert (await w.trigger.backfill(request_)).files == len(names)
            await w.count(len(names))
            assert sorted(w.names) == names
            assert {e.data["cause"] for e in w.events} <= {"backfill"}
            assert w.trigger.status().existing == 4 - len(names)
            assert (await w.trigger.backfill(request_)).files == 0
        async with w.running():
            await w.quiet()
            assert len(w.events) == len(names)

    asyncio.run(run())


def _dry(request: BackfillRequest) -> BackfillRequest:
    return BackfillRequest(glob=request.glob, since_us=request.since_us, until_us=request.until_us, dry_run=True)


def test_files_that_have_fired_are_counted_and_do_not_fire_again(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    old_files(w)

    async def main() -> None:
        async with w.running():
            (w.data / "new.h5").write_bytes(b"1")
            await w.count(1)
            await w.until(lambda: w.trigger.status().emitted == 1)
            found = await w.trigger.backfill(BackfillRequest(glob="*.h5", dry_run=True))
            assert (found.files, found.fired_before) == (3, 1)

    asyncio.run(main())


def test_a_file_that_is_gone_or_written_is_left_out(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    old_files(w)

    async def main() -> None:
        async with w.running():
            (w.data / "a.h5").unlink()
            with (w.data / "b.h5").open("ab") as file:
                assert (await w.trigger.backfill(BackfillRequest(glob="*.h5"))).files == 2
                await w.count(1)
                assert "open for writing" in await w.decided("b.h5")
                file.write(b"34")
            await w.count(2)
            assert w.events[1].data["size"] == 4

    asyncio.run(main())


def test_what_a_backfill_let_fire_fires_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = Watched(tmp_path)
    old_files(w)

    async def main() -> None:
        async with w.running():
            with monkeypatch.context() as m:
                m.setattr("oncue.triggers.file.scanner.Scanner.enter", lambda *a: None)  # dies before the scan
                assert (await w.trigger.backfill(BackfillRequest())).files == 4
        async with w.running():
            await w.count(4)

    asyncio.run(main())


def test_wrong_globs_and_triggers_that_do_not_run_are_refused(tmp_path: Path) -> None:
    w = Watched(tmp_path)

    async def main() -> None:
        async with w.running():
            with pytest.raises(Invalid, match="brace"):
                await w.trigger.backfill(BackfillRequest(glob="{a"))
        w.data.rmdir()
        async with w.running(until="waiting"):
            with pytest.raises(TriggerFailed, match="does not exist"):
                await w.trigger.backfill(BackfillRequest())

    asyncio.run(main())


@pytest.mark.parametrize("fired", [0, 2])
def test_a_dry_run_says_how_many_files_existing_true_lets_fire(tmp_path: Path, fired: int) -> None:
    w = Watched(tmp_path)
    old_files(w)

    async def main() -> None:
        async with w.running():
            for i in range(fired):
                (w.data / f"new{i}.h5").write_bytes(b"1")
            await w.until(lambda: w.trigger.status().emitted == fired)
            w.options["existing"] = True
            after = w._make()
            said = await type(after).preview("detector", after._options, w.trigger, 5.0)
            assert said == "4 files that exist will fire (existing: true)"
            assert "6" in (await type(after).preview("detector", after._options, None, 5.0)) or not fired
        async with w.running():
            await w.count(4 + fired)
            assert w.trigger.status().existing == 0

    asyncio.run(main())
