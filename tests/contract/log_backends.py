"""Log backends of the contract suite.

Add an entry to BACKENDS to run the suite over another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from oncue.log import Log, Reader, Record, RecordBatch, open_log
from oncue.log.sqlite.log import SqliteLog

Seen = tuple[str, int, int, bytes]  # topic, partition, offset, value


@dataclass(frozen=True)
class Backend:
    name: str
    open: Callable[[Path], Awaitable[Log]]  # in this folder; opening it again gives the same log
    # Damages the stored batch of (topic, 0) that begins at this offset, while the log is closed.
    # Returns the bytes that its dead letter holds.
    damage: Callable[[Path, str, int], bytes]
    topics: int  # number of topics in test_many_topics
    record_bytes: int  # largest record; 0: no limit that a test could reach
    whole_rows: bool  # truncation removes whole stored batches only


def _damage_sqlite(folder: Path, topic: str, first: int) -> bytes:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        changed = db.execute(
            "UPDATE batches SET blob = x'c1c1c1' WHERE topic = (SELECT id FROM topics WHERE name = ?) AND first = ?",
            (topic, first),
        ).rowcount
    assert changed == 1
    return b"\xc1\xc1\xc1"


KAFKA = "ONCUE_TEST_KAFKA"  # host:port of a broker
KAFKA_DATA = "ONCUE_TEST_KAFKA_DATA"  # its data folder, if the tests started it


async def _open_kafka(folder: Path) -> Log:
    return await open_log(f"kafka://{os.environ[KAFKA]}?prefix={_prefix(folder)}&session_s=1&record_mb=8")


def _prefix(folder: Path) -> str:
    return f"t{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}."


def _damage_kafka(folder: Path, topic: str, first: int) -> bytes:
    """Flip the last byte of the stored batch.

    The broker does not check the batches that it returns.
    """
    segment = Path(os.environ[KAFKA_DATA], f"{_prefix(folder)}{topic}-0", "0" * 20 + ".log")
    with segment.open("r+b") as file:
        data, place = file.read(), 0
        while struct.unpack_from(">q", data, place)[0] < first:
            place += 12 + struct.unpack_from(">i", data, place + 8)[0]
        assert struct.unpack_from(">q", data, place)[0] == first
        last = place + 11 + struct.unpack_from(">i", data, place + 8)[0]
        changed = bytes([data[last] ^ 0xFF])
        file.seek(last)
        file.write(changed)
        return data[place:last] + changed


BACKENDS = {
    "sqlite": Backend("sqlite", SqliteLog.open, _damage_sqlite, topics=2_000, record_bytes=0, whole_rows=True),
    "kafka": Backend(
        "kafka", _open_kafka, _damage_kafka, topics=200, record_bytes=8 * 1024 * 1024 - 100, whole_rows=False
    ),
}


def records(*values: bytes | str, key: bytes = b"", time_ms: int = 0) -> list[Record]:
    return [Record(v.encode() if isinstance(v, str) else v, key, (), time_ms) for v in values]


def flat(batches: Iterable[RecordBatch]) -> list[Seen]:
    return [(b.topic, b.partition, o, r.value) for b in batches for o, r in zip(b.offsets, b.records, strict=True)]


async def read_exactly(reader: Reader, count: int, timeout: float = 30) -> list[Seen]:
    """Return exactly `count` records; fail if more come with them."""
    found: list[Seen] = []
    async with asyncio.timeout(timeout):
        while len(found) < count:
            found += flat(await reader.next())
    assert len(found) == count, f"{len(found)} records instead of {count}"
    return found


async def quiet(reader: Reader, seconds: float = 0.05) -> bool:
    """Return True if no record comes within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not (found := flat(await reader.next())):
                pass
    except TimeoutError:
        return True
    raise AssertionError(f"unexpected: {found[:10]}")


def values(seen: Iterable[Seen]) -> list[bytes]:
    return [s[3] for s in seen]
