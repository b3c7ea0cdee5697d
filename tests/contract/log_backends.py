"""The backends that the contract suite runs over. A new one is an entry in BACKENDS."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from oncue.log import Batch, Log, Reader, Record
from oncue.log.sqlite import SqliteLog

Seen = tuple[str, int, int, bytes]  # topic, partition, offset, value


@dataclass(frozen=True)
class Backend:
    name: str
    open: Callable[[Path], Awaitable[Log]]  # in this folder; again in the same one: the same log
    damage: Callable[[Path, str, int], None]  # the stored batch of (topic, 0) that begins at this offset; log closed


def _damage_sqlite(folder: Path, topic: str, first: int) -> None:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        changed = db.execute(
            "UPDATE batches SET blob = x'c1c1c1' WHERE topic = (SELECT id FROM topics WHERE name = ?) AND first = ?",
            (topic, first),
        ).rowcount
    assert changed == 1


BACKENDS = {"sqlite": Backend("sqlite", SqliteLog.open, _damage_sqlite)}


def records(*values: bytes | str, key: bytes = b"", time_ms: int = 0) -> list[Record]:
    return [Record(v.encode() if isinstance(v, str) else v, key, (), time_ms) for v in values]


def flat(batches: Iterable[Batch]) -> list[Seen]:
    return [(b.topic, b.partition, o, r.value) for b in batches for o, r in zip(b.offsets, b.records, strict=True)]


async def take(reader: Reader, count: int, timeout: float = 30) -> list[Seen]:
    """Exactly so many records, and no more than those may have come with them."""
    found: list[Seen] = []
    async with asyncio.timeout(timeout):
        while len(found) < count:
            found += flat(await reader.next())
    assert len(found) == count, f"{len(found)} records instead of {count}"
    return found


async def quiet(reader: Reader, seconds: float = 0.05) -> bool:
    """Nothing more comes."""
    try:
        found = await asyncio.wait_for(reader.next(), seconds)
    except TimeoutError:
        return True
    raise AssertionError(f"unexpected: {flat(found)[:10]}")


def values(seen: Iterable[Seen]) -> list[bytes]:
    return [s[3] for s in seen]
