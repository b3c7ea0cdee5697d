"""LedgerReplica: a file trigger resumes on another server from the state in the log."""

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


class CountedState(LogReplicatedState):
    """Counts the entries it loads; persisting fails while it is `away`."""

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
async def state_in(folder: Path) -> AsyncIterator[CountedState]:
    log = await open_log(f"sqlite://{folder}")
    try:
        await log.ensure({FILES: Topic(partitions=PARTITIONS, compact=True)})
        yield CountedState(log)
    finally:
        await log.close()


def on(w: Watched, server: str, state: CountedState | None) -> Watched:
    w.server, w.state = server, state
    return w


def fired(w: Watched) -> list[str]:
    """Return the names of the files that fired, without the fences.

    The next server may not know a fence: the test waits until it is emitted, not until it is recorded."""
    return sorted({name for name in w.names if not name.startswith("fence-")})


async def state(w: Watched, path: str) -> str:
    return (await w.trigger.explain(path)).state


def test_another_server_resumes_from_the_replicated_state(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    (w.data / "old.h5").write_bytes(b"1")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "in_tree.h5").write_bytes(b"1")
    os.utime(tree / "in_tree.h5", (1, 1))

    async def main() -> None:
        async with state_in(tmp_path / "log") as replicated:
            async with on(w, "s1", replicated).running():
                (w.data / "a.h5").write_bytes(b"1")
                await w.count(1)
                await w.until(lambda: not w.trigger._watcher._in_flight)  # type: ignore[union-attr]
            tree.rename(w.data / "tree")  # while no server runs it
            (w.data / "b.h5").write_bytes(b"1")
            async with on(w, "s2", replicated).running():
                await w.until(lambda: len(w.events) >= 3)
                await w.quiet()
                assert fired(w) == ["a.h5", "b.h5", "tree/in_tree.h5"]
                assert len(w.events) == 3
                assert [await state(w, p) for p in ("old.h5", "a.h5", "tree/in_tree.h5")] == ["old", "fired", "fired"]
                (w.data / "old.h5").write_bytes(b"22")  # a change fires on any server
                await w.count(4)
                await w.until(lambda: not w.trigger._watcher._in_flight)  # type: ignore[union-attr]
            w.events.clear()
            async with on(w, "s1", replicated).running():
                await w.quiet()
                assert fired(w) == []
                assert await state(w, "old.h5") == "fired"

    asyncio.run(main())


def test_files_missing_in_the_copy_fire_again_with_the_same_ids(tmp_path: Path) -> None:
    w = Watched(tmp_path)

    async def main() -> None:
        async with state_in(tmp_path / "log") as replicated:
            async with on(w, "s1", replicated).running():
                replicated.away = True
                (w.data / "a.h5").write_bytes(b"1")
                await w.count(1)
                await replicated.tried.wait()
            replicated.away = False
            async with on(w, "s2", replicated).running():
                first, again = await w.count(2)
                assert (first.id, first.source) == (again.id, again.source)

    asyncio.run(main())


def test_the_initial_scan_is_durable_before_the_deploy_is_answered(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    (w.data / "old.h5").write_bytes(b"1")
    aged(w.data / "old.h5")

    async def main() -> None:
        async with state_in(tmp_path / "log") as replicated:
            replicated.away = True
            async with on(w, "s1", replicated).running():
                await replicated.tried.wait()
                assert not w.trigger.status().scanned
                replicated.away = False
                await w.trigger.initial_scan()
                assert w.trigger.status().scanned

    asyncio.run(main())


def test_a_ledger_without_replicated_state_is_uploaded_completely(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    for n in range(5_000):
        (w.data / f"old{n}.h5").write_bytes(b"1")

    async def main() -> None:
        async with on(w, "s1", None).running():
            (w.data / "a.h5").write_bytes(b"1")
            await w.count(1)
        for folder in ("log", "another log"):  # as when the first is lost
            async with state_in(tmp_path / folder) as replicated:
                replicated._log.identity = folder
                async with on(w, "s1", replicated).running():
                    await w.quiet()
                async with on(w, f"s2 of {folder}", replicated).running():
                    await w.quiet()
                    assert w.trigger.status().existing == 5_000
                    assert await state(w, "a.h5") == "fired"
        assert fired(w) == ["a.h5"]
        assert w.names.count("a.h5") == 1

    asyncio.run(main())


def test_a_restart_reads_new_entries_and_deletions_reach_every_server(tmp_path: Path) -> None:
    w = Watched(tmp_path)
    for n in range(100):
        (w.data / f"old{n}.h5").write_bytes(b"1")

    def ledger(server: str) -> Ledger:
        (path,) = (tmp_path / server).glob("files-*.db")
        return Ledger(path)

    async def main() -> None:
        async with state_in(tmp_path / "log") as replicated:
            async with on(w, "s1", replicated).running():
                await w.quiet()
            async with on(w, "s1", replicated).running():  # it reads its own entries
                await w.quiet()
            replicated.loaded = 0
            async with on(w, "s1", replicated).running():
                await w.quiet()
            assert replicated.loaded < 5  # fences
            async with on(w, "s2", replicated).running():
                await w.quiet()
            for n in range(100):
                (w.data / f"old{n}.h5").unlink()
            w.options["rescan"] = "1s"
            async with on(w, "s1", replicated).running():
                await w.quiet()
            copied = ledger("s1")
            assert copied.count(EXISTING) == 100  # for a disk that is mounted again
            copied.close()
            monkey = pytest.MonkeyPatch()
            monkey.setattr("oncue.triggers.file.ledger.KEEP_GONE_US", 0)
            try:
                async with on(w, "s1", replicated).running():
                    await w.quiet()
            finally:
                monkey.undo()
            async with on(w, "s2", replicated).running():
                await w.quiet()
            for server in ("s1", "s2"):
                left = ledger(server)
                assert left.count(EXISTING) == 0, server
                left.close()

    asyncio.run(main())
