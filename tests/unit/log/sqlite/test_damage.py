"""Random damage in log.db while no server runs: what is read is what was written, or is told.

ONCUE_TEST_DAMAGE=200 runs so many trials.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from oncue.errors import OncueError
from oncue.log import Log, Partition, Record, Topic
from oncue.log.sqlite.inspection import problems
from oncue.log.sqlite.log import SqliteLog
from oncue.log.sqlite.salvage import finish, salvage
from oncue.protocol.codec import decode
from oncue.protocol.records import DeadLetter
from oncue.protocol.topics import DEAD

TRIALS = int(os.environ.get("ONCUE_TEST_DAMAGE", "30"))
PAGE = 4096
Content = dict[Partition, dict[int, bytes]]
TOPICS = {
    "events": Topic(),
    "results": Topic(partitions=4, retention_ms=10**12),
    "registry": Topic(compact=True),
    DEAD: Topic(),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """Return a closed log's folder, and what is in it."""
    folder = tmp_path_factory.mktemp("filled")
    chance = random.Random(7)

    async def work() -> Content:
        log = await SqliteLog.open(folder)
        await log.ensure(TOPICS)
        for n in range(300):
            await log.append("events", [Record(chance.randbytes(chance.randint(20, 900))) for _ in range(1 + n % 3)])
            await log.append("results", [Record(chance.randbytes(chance.randint(20, 30_000)), b"%d" % n)])
            await log.append("registry", [Record(chance.randbytes(200), b"key %d" % (n % 90))])
        await log.truncate("events", 0, 50)
        await log.housekeep()
        reader = log.read(["events"], group="rules")
        await log.commit("rules", await reader.next(max_batches=40))
        content = await content_of(log)
        await log.close()
        return content

    return folder, asyncio.run(work())


async def content_of(log: Log) -> Content:
    """Read all topics up to their ends."""
    found: Content = {}
    names = list(await log.topics())
    begins, ends = await log.begin_offsets(names), await log.end_offsets(names)
    left = {place for place, end in ends.items() if end > begins[place]}
    reader = log.read(names, start="earliest")
    async with asyncio.timeout(60):
        while left:
            for batch in await reader.next():
                place = (batch.topic, batch.partition)
                for offset, record in zip(batch.offsets, batch.records, strict=True):
                    found.setdefault(place, {})[offset] = record.value
                if batch.next_offset >= ends[place]:
                    left.discard(place)
    await reader.close()
    return found


def overwritten_page(chance: random.Random, size: int) -> tuple[int, bytes]:
    return chance.randrange(size // PAGE) * PAGE, chance.randbytes(PAGE)


def zeroed_page(chance: random.Random, size: int) -> tuple[int, bytes]:
    return chance.randrange(size // PAGE) * PAGE, bytes(PAGE)


def flipped_bytes(chance: random.Random, size: int) -> tuple[int, bytes]:
    return chance.randrange(size - 8), chance.randbytes(chance.randint(1, 8))


def flipped_page_head(chance: random.Random, size: int) -> tuple[int, bytes]:
    """Damage where the structure of a page is."""
    return chance.randrange(size // PAGE) * PAGE + chance.randint(1, 40), chance.randbytes(2)


def swapped_page(chance: random.Random, size: int) -> tuple[int, bytes]:
    return chance.randrange(size // PAGE) * PAGE, b""  # the content of another page


KINDS = (overwritten_page, zeroed_page, flipped_bytes, flipped_page_head, swapped_page)


def damage(path: Path, kind: Callable[[random.Random, int], tuple[int, bytes]], chance: random.Random) -> None:
    size = path.stat().st_size
    at, content = kind(chance, size)
    with path.open("r+b") as file:
        if not content:
            file.seek(chance.randrange(size // PAGE) * PAGE)
            content = file.read(PAGE)
        file.seek(at)
        file.write(content)


def told(letters: list[DeadLetter], place: Partition, offset: int) -> bool:
    for letter in letters:
        if (letter.topic, letter.partition) == place:
            stretch = re.search(r"records at (\d+) to (\d+)", letter.reason)
            first, last = map(int, stretch.groups()) if stretch else (letter.offset, letter.offset + 2)
            if first <= offset <= last:
                return True
    return False


@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_damaged_log_gives_what_was_written_or_tells(filled: tuple[Path, Content], tmp_path: Path, seed: int) -> None:
    folder, content = tmp_path / "log", filled[1]
    shutil.copytree(filled[0], folder)
    chance = random.Random(seed)
    for _ in range(chance.choice((1, 1, 1, 4))):
        damage(folder / "log.db", KINDS[seed % len(KINDS)], chance)

    async def letters_of(log: Log) -> list[DeadLetter]:
        await log.commit("barrier", [])
        values = (await content_of(log)).get((DEAD, 0), {})
        return [decode(DeadLetter, value) for value in values.values()]

    async def work() -> None:
        try:
            log = await SqliteLog.open(folder)
        except OncueError as e:
            refusals.append(e)
            return
        found = await content_of(log)
        letters = await letters_of(log)
        note = folder / "damage.json"
        salvaged = note.exists()
        assert not salvaged or (json.loads(note.read_text())["reason"] and note.stat().st_mode & 0o777 == 0o600)
        for place, records in content.items():
            for offset, value in found.get(place, {}).items():
                assert records.get(offset) == value, f"{place} {offset} is not what was written"
            for offset in records.keys() - found.get(place, {}).keys():
                assert told(letters, place, offset) or salvaged, f"{place} {offset} is missing, and nothing says so"
        if not salvaged:
            ends = await log.end_offsets({topic for topic, _ in content})
            assert {place: ends[place] for place in content} == {p: max(records) + 1 for p, records in content.items()}
        (position,) = await log.append("events", [Record(b"new")])
        await log.close()
        log = await SqliteLog.open(folder)  # it is sound now
        again = await content_of(log)
        assert again["events", 0][position.first] == b"new"
        assert len(await letters_of(log)) == len(letters), "told once"
        await log.close()

    refusals: list[OncueError] = []
    asyncio.run(work())
    assert [e for e in refusals if not e.remedy or "log" not in e.message] == []


def test_a_damaged_list_of_free_pages_loses_nothing(filled: tuple[Path, Content], tmp_path: Path) -> None:
    """An open log writes at once, and would write into pages that it takes for free ones."""
    source, before = filled
    path = shutil.copytree(source, tmp_path / "log") / "log.db"
    with path.open("r+b") as file:
        file.seek(32)
        trunk = int.from_bytes(file.read(4))
        assert trunk, "the file has free pages"
        file.seek((trunk - 1) * PAGE)
        file.write(random.Random(1).randbytes(PAGE))
    damaged = path.read_bytes()

    async def work() -> Content:
        log = await SqliteLog.open(path.parent)
        try:
            return await content_of(log)
        finally:
            await log.close()

    assert asyncio.run(work()) == before
    (kept,) = path.parent.glob("damaged-*/log.db")
    assert kept.read_bytes() == damaged


def test_a_log_whose_topics_are_lost_names_the_backup(filled: tuple[Path, Content], tmp_path: Path) -> None:
    path = shutil.copytree(filled[0], tmp_path / "log") / "log.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'topics'").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * PAGE)
        file.write(random.Random(1).randbytes(PAGE))
    for _ in range(2):
        with pytest.raises(OncueError, match="the table of its topics cannot be read") as caught:
            asyncio.run(SqliteLog.open(path.parent))
        assert "oncue restore DIR --force" in caught.value.remedy
        assert "restart" not in caught.value.remedy


def test_doctor_finds_what_a_reader_would_tell(filled: tuple[Path, Content], tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    shutil.copy(filled[0] / "log.db", path)
    assert problems(path) == []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        events, results = (
            db.execute("SELECT id FROM topics WHERE name = ?", (n,)).fetchone()[0] for n in ("events", "results")
        )
        # A value of another type, as a damaged column may have.
        first = db.execute("SELECT max(first) FROM batches WHERE topic = ? AND first < 305", (events,)).fetchone()[0]
        db.execute("UPDATE batches SET blob = blob || x'00' WHERE topic = ? AND first = ?", (events, first))
        db.execute("DELETE FROM batches WHERE topic = ? AND partition = 1 AND first = 3", (results,))
        db.execute("UPDATE offsets SET next = next + 1")
    assert [text.partition(" at ")[0] for text in problems(path)] == [
        "a row of the table offsets does not have its checksum",
        "events/0: the batch",
        "results/1: the records",
    ]


def test_missing_last_rows_are_told_after_a_clean_stop(filled: tuple[Path, Content], tmp_path: Path) -> None:
    shutil.copytree(filled[0], tmp_path / "log")
    with contextlib.closing(sqlite3.connect(tmp_path / "log" / "log.db", isolation_level=None)) as db:
        db.execute("DELETE FROM batches WHERE first > 500")

    async def work() -> None:
        log = await SqliteLog.open(tmp_path / "log")
        end = max(filled[1]["events", 0]) + 1
        assert (await log.end_offsets(["events"]))["events", 0] == end, "offsets are not used again"
        await content_of(log)
        await log.commit("barrier", [])
        (letter,) = [decode(DeadLetter, v) for v in (await content_of(log))[DEAD, 0].values()]
        assert f"to {end - 1} are missing" in letter.reason
        await log.close()

    asyncio.run(work())


def test_a_log_of_schema_1_goes_on(tmp_path: Path) -> None:
    async def write() -> None:
        log = await SqliteLog.open(tmp_path)
        await log.ensure({"a": Topic(partitions=2)})
        for n in range(20):
            await log.append("a", [Record(b"%d" % n)], 0)
        await log.truncate("a", 0, 5)
        await log.commit("g", await log.read(["a"], group="g").next())
        await log.close()

    asyncio.run(write())
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as db:
        for first, blob in db.execute("SELECT first, blob FROM batches").fetchall():
            db.execute("UPDATE batches SET crc = ? WHERE first = ?", (zlib.crc32(blob), first))
        for table, column in (("topics", "crc"), ("partitions", "crc"), ("partitions", "begin"), ("offsets", "crc")):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.execute("DROP TABLE identity")
        db.execute("PRAGMA user_version=1")

    async def read() -> None:
        log = await SqliteLog.open(tmp_path)
        assert await content_of(log) == {("a", 0): {n: b"%d" % n for n in range(5, 20)}}
        assert await log.committed("g") == {("a", 0): 20}
        assert (await log.append("a", [Record(b"new")], 0))[0].first == 20
        await log.close()

    asyncio.run(read())
    assert problems(tmp_path / "log.db") == []


def test_a_crash_between_two_steps_of_the_rescue_repeats_the_rest(filled: tuple[Path, Content], tmp_path: Path) -> None:
    folder = tmp_path / "log"
    shutil.copytree(filled[0], folder)
    size = (folder / "log.db").stat().st_size
    with (folder / "log.db").open("r+b") as file:
        file.seek(size // 2 // PAGE * PAGE)
        file.write(b"\xff" * PAGE)
    damaged = (folder / "log.db").read_bytes()
    salvage(folder / "log.db", "a test")
    sound = (folder / "log.db").read_bytes()
    # As if the process had died before the copy was put in place.
    (folder / "log.db").write_bytes(damaged)
    (folder / "log.db-wal").write_bytes(b"of the damaged one")
    (folder / "log.db.sound").write_bytes(sound)
    finish(folder / "log.db")
    assert (folder / "log.db").read_bytes() == sound
    assert not (folder / "log.db-wal").exists()
    assert problems(folder / "log.db")[:1] != ["database disk image is malformed"]
    kept = list(folder.glob("damaged-*/log.db"))  # two, if a second has passed in between
    assert kept
    assert all(path.read_bytes() for path in kept)
