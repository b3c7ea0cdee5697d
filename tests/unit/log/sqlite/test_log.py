"""Behaviour of the embedded log only; tests/contract has that of every log."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import uvloop

from oncue.errors import LogError, LogLocked, NetworkMount
from oncue.log import Append, Record, RecordBatch, Topic, open_log
from oncue.log.sqlite import read_pool
from oncue.log.sqlite import reader as reader_module
from oncue.log.sqlite.database import WAL_BYTES
from oncue.log.sqlite.log import SqliteLog


def _values(batches: list[RecordBatch]) -> list[bytes]:
    return [r.value for b in batches for r in b.records]


def test_a_second_open_names_the_process_that_holds_the_log(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from oncue.log.sqlite.log import SqliteLog\n"
        "async def main():\n"
        "    log = await SqliteLog.open(sys.argv[1])\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            with pytest.raises(LogLocked, match=f"process {child.pid}") as caught:
                asyncio.run(SqliteLog.open(tmp_path))
            assert caught.value.details["pid"] == child.pid
            assert caught.value.remedy
        finally:
            child.kill()
            child.wait()

    async def main() -> None:
        log = await SqliteLog.open(tmp_path)  # the lock died with its process
        with pytest.raises(LogLocked, match=f"process {os.getpid()}"):
            await SqliteLog.open(tmp_path)
        await log.close()
        await (await SqliteLog.open(tmp_path)).close()

    asyncio.run(main())


def test_a_network_mount_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.log.sqlite.opening.network_mount", lambda path: "nfs4")
    with pytest.raises(NetworkMount, match="nfs4") as caught:
        asyncio.run(SqliteLog.open(tmp_path / "log"))
    assert "local disk" in caught.value.remedy
    assert not (tmp_path / "log").exists()


def test_a_sqlite_url_opens_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        log = await open_log(f"sqlite://{tmp_path}/deep/log")
        await log.append("a", [Record(b"x")])
        await log.close()

    asyncio.run(main())
    assert (tmp_path / "deep" / "log" / "log.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", [b"this is no database, but a long enough text" * 100, b"SQLite format 3\0" + b"x" * 9000]
)
def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(LogError, match=r"log\.db") as caught:
        asyncio.run(SqliteLog.open(tmp_path))
    assert caught.value.remedy
    (tmp_path / "log.db").unlink()
    asyncio.run(_touch(tmp_path))  # the lock was released


async def _touch(folder: Path) -> None:
    log = await SqliteLog.open(folder)
    await log.append("a", [Record(b"x" * 50_000) for _ in range(20)])
    await log.close()


def test_databases_of_other_programs_and_newer_versions_are_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("PRAGMA application_id=7")
        db.execute("CREATE TABLE batches(x)")
        db.commit()
    with pytest.raises(LogError, match="not a log of oncue"):
        asyncio.run(SqliteLog.open(tmp_path))
    (tmp_path / "new").mkdir()
    asyncio.run(_touch(tmp_path / "new"))
    with closing(sqlite3.connect(tmp_path / "new" / "log.db")) as db:
        db.execute("PRAGMA user_version=99")
        db.commit()
    with pytest.raises(LogError, match="newer oncue"):
        asyncio.run(SqliteLog.open(tmp_path / "new"))


def test_a_reader_of_a_damaged_database_raises_a_clear_error(tmp_path: Path) -> None:
    asyncio.run(_touch(tmp_path))
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'batches'").fetchone()[0]

    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        reader = log.read(["a"])
        # Damage it while the log is open: at the start it would be refused.
        with path.open("r+b") as file:
            file.seek((root - 1) * 4096)
            file.write(b"\xff" * 4096)
        with pytest.raises(LogError, match="damaged") as caught:
            await reader.next()
        assert "backup" in caught.value.remedy
        await log.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_a_reader_switches_between_memory_and_disk_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A reader at a random pace, with a queue so small that it often falls behind."""
    monkeypatch.setattr(reader_module, "QUEUE_BATCHES", 6)
    monkeypatch.setattr(reader_module, "QUEUE_BYTES", 4_000)
    monkeypatch.setattr(read_pool, "FETCH_ROWS", 9)
    chance = random.Random(seed)
    count = 1_500

    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        await log.ensure({"a": Topic(partitions=3)})
        reader = log.read(["a"])
        behind = 0

        async def write() -> None:
            n = 0
            while n < count:
                # Never more than `count`: the reader stops there, in whatever partition.
                size = min(chance.randint(1, 4), count - n)
                future = log.append("a", [Record(b"%d" % i) for i in range(n, n + size)], n % 3)
                n += size
                if chance.random() < 0.4:
                    await future

        async def read() -> None:
            nonlocal behind
            seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
            got: list[int] = []
            while len(got) < count:
                for batch in await reader.next(max_batches=chance.randint(1, 8)):
                    seen[batch.partition] += batch.offsets
                    got += [int(r.value) for r in batch.records]
                behind += bool(reader._behind)  # type: ignore[attr-defined]
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.random() * 0.004)
            for offsets in seen.values():
                assert offsets == list(range(len(offsets)))
            assert sorted(got)[:count] == list(range(count))

        async with asyncio.timeout(60):
            await asyncio.gather(read(), write())
        assert behind > 10, "the reader fell back to the disk"
        await log.close()

    asyncio.run(main())


def test_the_write_ahead_log_does_not_grow_and_the_file_shrinks(tmp_path: Path) -> None:
    wal, path = tmp_path / "log.db-wal", tmp_path / "log.db"

    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        await log.ensure({"a": Topic(retention_ms=1)})
        start = wal.stat().st_size
        assert start >= WAL_BYTES
        for _ in range(12):
            await asyncio.gather(*[log.append("a", [Record(b"." * 500_000, time_ms=1)]) for _ in range(10)])
        assert wal.stat().st_size < 3 * start
        full = path.stat().st_size
        assert full > 40_000_000
        freed = await log.housekeep()
        assert freed["a"] >= 60_000_000
        await log.close()
        assert path.stat().st_size < full / 2

    asyncio.run(main())


def test_the_log_works_on_uvloop(tmp_path: Path) -> None:
    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        reader = log.read(["a"])
        await asyncio.gather(*[log.append("a", [Record(b"%d" % n)]) for n in range(500)])
        found: list[bytes] = []
        while len(found) < 500:
            found += _values(await reader.next())
        assert found == [b"%d" % n for n in range(500)]
        assert log.counters.records == 500
        assert 0 < log.counters.commits < 500, "many appends, one transaction"
        assert log.queue_depth == 0
        await log.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_an_append_that_cannot_be_encoded_fails_alone(tmp_path: Path) -> None:
    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        futures = [
            log.append("a", [Record(b"1")]),
            log.append("a", [Record(object())]),  # type: ignore[arg-type]
            log.append("a", [Record(b"2")]),
        ]
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(found[1], LogError)
        assert "cannot be stored" in found[1].message
        assert [p.first for f in (found[0], found[2]) for p in f] == [0, 1]  # type: ignore[union-attr]
        await log.close()

    asyncio.run(main())


def test_a_failed_commit_stores_neither_offset_nor_records(tmp_path: Path) -> None:
    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        await log.append("in", [Record(b"1")])
        batches = await log.read(["in"], group="g").next()
        with pytest.raises(LogError):
            await log.commit("g", batches, [Append("out", [Record(b"fine")]), Append("out", [Record(object())])])  # type: ignore[arg-type]
        assert await log.committed("g") == {}
        assert (await log.end_offsets(["out"])).get(("out", 0), 0) == 0
        await log.commit("g", batches, [Append("out", [Record(b"fine")])])
        assert await log.committed("g") == {("in", 0): 1}
        assert await log.end_offsets(["out"]) == {("out", 0): 1}
        await log.close()

    asyncio.run(main())


def test_a_commit_is_durable_before_it_is_acknowledged(tmp_path: Path) -> None:
    """Check the database's settings.

    A kill leaves the kernel's pages in place, so a test cannot show the effect of a power cut.
    """

    async def main() -> None:
        log = await SqliteLog.open(tmp_path)

        def settings(db: sqlite3.Connection) -> list[object]:
            names = ("synchronous", "journal_mode", "wal_autocheckpoint", "auto_vacuum", "secure_delete")
            return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        assert await log._writer.call(settings) == [2, "wal", 0, 2, 0]
        await log.close()

    asyncio.run(main())


def test_the_log_tells_why_it_cannot_be_written_until_it_can(tmp_path: Path) -> None:
    async def main() -> None:
        log = await SqliteLog.open(tmp_path)
        log._db.execute("PRAGMA query_only=1")
        with pytest.raises(LogError):
            await log.append("a", [Record(b"1")])
        assert "log.db" in log.trouble()
        log._db.execute("PRAGMA query_only=0")
        await log.housekeep()
        await log.append("a", [Record(b"2")])
        assert log.trouble() == ""
        await log.close()

    asyncio.run(main())
