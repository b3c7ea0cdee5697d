"""ObserverWatch, with the observer that watchdog has for this machine."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from watched import Watched

from oncue.triggers.file import watcher
from oncue.triggers.file.watch.base import CHANGED, FOLDER_ADDED, RENAMED
from oncue.triggers.file.watch.open import open_watch


def test_changes_become_notices(tmp_path: Path) -> None:
    watch = open_watch(tmp_path, "darwin")
    try:
        assert not watch.reports_closes
        noticed: set[tuple[int, str, str]] = set()

        def expect(*any_of: tuple[int, str, str]) -> None:
            end = time.monotonic() + 30
            while not noticed & set(any_of):
                assert time.monotonic() < end, noticed
                noticed.update((n.kind, n.folder, n.name) for n in watch.read(0.1))

        (tmp_path / "sub").mkdir()
        expect((FOLDER_ADDED, "sub", ""))
        (tmp_path / "sub" / "a.h5").write_bytes(b"1")
        expect((CHANGED, "sub", "a.h5"))
        (tmp_path / "sub" / "a.h5").rename(tmp_path / "b.h5")
        expect((RENAMED, "", "b.h5"), (CHANGED, "", "b.h5"))
    finally:
        watch.close()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a folder"):
        open_watch(tmp_path / "none", "darwin")


def test_files_fire_when_unchanged_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "open_watch", lambda root: open_watch(root, "darwin"))
    w = Watched(tmp_path, ready={"any": ["close_write", "rename"], "stable": "300ms"})
    monkeypatch.setattr("oncue.triggers.file.readiness.FALLBACK_S", 0.3)

    async def main() -> None:
        async with w.running():
            await w.until(lambda: "does not report" in w.trigger.status().detail)
            fd = os.open(w.data / "a.h5", os.O_CREAT | os.O_WRONLY)
            for _ in range(5):
                os.write(fd, b"x" * 10)
                await asyncio.sleep(0.1)
                assert w.names == []
            os.close(fd)
            (event,) = await w.count(1)
            assert (event.data["size"], event.data["cause"]) == (50, "stable")

    asyncio.run(main())
