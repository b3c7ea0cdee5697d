"""A file trigger that another server runs next: what the first remembered is in the log."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from watched import Watched, aged

from oncue.dispatcher.trigger_state import PARTITIONS, LogReplicatedState
from oncue.errors import LogError
from oncue.log import open_log
from oncue.log.base import Log, Topic
from oncue.protocol.topics import FILES
from oncue.triggers.base import StateChunk
from oncue.triggers.file.ledger import EXISTING, Ledger


class Counted(LogReplicatedState):
    """Counts what it brings, and keeps nothing while it is `away`."""

    def __init__(self, log: Log) -> None:
        super().__init__(log, "detector")
        self.loaded, self.away = 0, False
        self.tried = asyncio.Event()

    async def load(self, position: str) -> AsyncIterator[StateChunk]:
        async for kept in super().load(position):
            self.loaded += len(kept.entries)
            yield kept

    async def persist(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        self.tried.set()
        if self.away:
            raise LogError("the log is away")
        await super().persist(entries)


@contextlib.asynccontextmanager
async def memory_in(folder: Path) -> AsyncIterator[Counted]:
    log = await open_log(f"sqlite://{folder}")
    try:
        await log.ensure({FILES: Topic(partitions=PARTITIONS, compact=True)})
        yield Counted(log)
    finally:
        await log.close()


def on(w: Watched, server: str, memory: Counted | None) -> Watched:
    w.server, w.memory = server, memory
    return w


def fired(w: Watched) -> list[str]:
    """Of a fence the next server may not know: it was waited for until it was emitted, not until it was remembered."""
    return sorted({name for name in w.names if not name.startswith("fence-")})


async def state(w: Watched, path: str) -> str:
    return (await w.trigger.explain(path)).state


def test_another_server_goes_on(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    (w.data / "old.h5").write_bytes(b"1")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "in_tree.h5").write_bytes(b"1")
    os.utime(tree / "in_tree.h5", (1, 1))

    async def main() -> None:
        async with memory_in(tmp_path / "log") as memory:
            async with on(w, "s1", memory).running():
                (w.data / "a.h5").write_bytes(b"1")
                await w.count(1)
                await w.until(lambda: not w.trigger._watcher._in_flight)  # type: ignore[union-attr]
            tree.rename(w.data / "tree")  # while nobody runs it
            (w.data / "b.h5").write_bytes(b"1")
            async with on(w, "s2", memory).running():
                await w.until(lambda: len(w.events) >= 3)
                await w.quiet()
                assert fired(w) == ["a.h5", "b.h5", "tree/in_tree.h5"]
                assert len(w.events) == 3
                assert [await state(w, p) for p in ("old.h5", "a.h5", "tree/in_tree.h5")] == ["old", "fired", "fired"]
                (w.data / "old.h5").write_bytes(b"22")  # a change counts as everywhere
                await w.count(4)
                await w.until(lambda: not w.trigger._watcher._in_flight)  # type: ignore[union-attr]
            w.events.clear()
            async with on(w, "s1", memory).running():
                await w.quiet()
                assert fired(w) == []
                assert await state(w, "old.h5") == "fired"

    asyncio.run(main())


def test_what_the_copy_lacks_fires_again_as_the_same_event(tmp_path: Path) -> None:
    w = Watched(tmp_path)

    async def main() -> None:
        async with memory_in(tmp_path / "log") as memory:
            async with on(w, "s1", memory).running():
                memory.away = True
                (w.data / "a.h5").write_bytes(b"1")
                await w.count(1)
                await memory.tried.wait()
            memory.away = False
            async with on(w, "s2", memory).running():
                first, again = await w.count(2)
                assert (first.id, first.source) == (again.id, again.source)

    asyncio.run(main())


def test_the_first_look_is_kept_before_the_deploy_is_answered(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    (w.data / "old.h5").write_bytes(b"1")
    aged(w.data / "old.h5")

    async def main() -> None:
        async with memory_in(tmp_path / "log") as memory:
            memory.away = True
            async with on(w, "s1", memory).running():
                await memory.tried.wait()
                assert not w.trigger.status().scanned
                memory.away = False
                await w.trigger.initial_scan()
                assert w.trigger.status().scanned

    asyncio.run(main())


def test_a_ledger_from_before_there_was_a_memory_is_told_whole(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    for n in range(5_000):
        (w.data / f"old{n}.h5").write_bytes(b"1")

    async def main() -> None:
        async with on(w, "s1", None).running():
            (w.data / "a.h5").write_bytes(b"1")
            await w.count(1)
        for folder in ("log", "another log"):  # as when the first is lost
            async with memory_in(tmp_path / folder) as memory:
                memory._log.identity = folder
                async with on(w, "s1", memory).running():
                    await w.quiet()
                async with on(w, f"s2 of {folder}", memory).running():
                    await w.quiet()
                    assert w.trigger.status().existing == 5_000
                    assert await state(w, "a.h5") == "fired"
        assert fired(w) == ["a.h5"]
        assert w.names.count("a.h5") == 1

    asyncio.run(main())


def test_a_restart_reads_what_is_new_and_what_is_forgotten_is_forgotten_everywhere(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    for n in range(100):
        (w.data / f"old{n}.h5").write_bytes(b"1")

    def ledger(server: str) -> Ledger:
        (path,) = (tmp_path / server).glob("files-*.db")
        return Ledger(path)

    async def main() -> None:
        async with memory_in(tmp_path / "log") as memory:
            async with on(w, "s1", memory).running():
                await w.quiet()
            async with on(w, "s1", memory).running():  # what it wrote itself
                await w.quiet()
            memory.loaded = 0
            async with on(w, "s1", memory).running():
                await w.quiet()
            assert memory.loaded < 5  # fences
            async with on(w, "s2", memory).running():
                await w.quiet()
            for n in range(100):
                (w.data / f"old{n}.h5").unlink()
            w.options["rescan"] = "1s"
            async with on(w, "s1", memory).running():
                await w.quiet()
            copied = ledger("s1")
            assert copied.count(EXISTING) == 100  # for a disk that is mounted again
            copied.close()
            monkey = pytest.MonkeyPatch()
            monkey.setattr("oncue.triggers.file.ledger.KEEP_GONE_US", 0)
            try:
                async with on(w, "s1", memory).running():
                    await w.quiet()
            finally:
                monkey.undo()
            async with on(w, "s2", memory).running():
                await w.quiet()
            for server in ("s1", "s2"):
                left = ledger(server)
                assert left.count(EXISTING) == 0, server
                left.close()

    asyncio.run(main())
