"""Measure the embedded log: `python -m bench.log [seconds]` prints JSON.

With the URL of another log (`python -m bench.log 10 kafka://127.0.0.1:9092`) both are measured in
one run, one after the other.

Commits: 100 records and the group's offset, as the rules commit a batch. Appends: one at a time
(each awaited; beside it the same commit by raw SQLite alone), eight at a time, and frames: one
record of 1,024 x 100 bytes, as task topics carry them. Reads: from memory while caught up, and from
the disk.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from oncue.log import Append, Log, Record, RecordBatch, open_log
from oncue.log.sqlite.database import open_writer
from oncue.log.sqlite.log import SqliteLog
from oncue.log.sqlite.writer import INSERT

SMALL = Record(b"x" * 100)
FRAME_TASKS = 1_024
FRAME = Record(b"x" * (FRAME_TASKS * 100))
WINDOW = 8  # frames under way at a time


def run(seconds: float = 10.0) -> dict[str, Any]:
    """Run all parts in about `seconds`; rates a second, latencies in ms."""
    with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
        where = Path(folder)
        return _raw(where, seconds / 9) | asyncio.run(_embedded(where / "log", seconds / 9))


def compare(seconds: float, url: str) -> dict[str, Any]:
    """Measure the embedded log and the log at the URL.

    Topics with a prefix of this run stay in the latter.
    """
    prefix = f"{'&' if '?' in url else '?'}prefix=bench{time.time_ns()}."
    return {"embedded": run(seconds), url.partition("://")[0]: asyncio.run(_other(url + prefix, seconds / 9))}


def _raw(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure one durable commit without threads, queues and futures."""
    db = open_writer(folder / "raw.db")
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        db.execute(INSERT, (1, 0, len(times), 1, 1, 1, None, SMALL.value))
        times.append(time.perf_counter() - started)
    db.close()
    return {"raw_commit_p50_ms": _ms(times), "sqlite": sqlite3.sqlite_version}


async def _embedded(folder: Path, seconds: float) -> dict[str, Any]:
    started = time.perf_counter()
    log = await SqliteLog.open(folder)
    result: dict[str, Any] = {"open_new_ms": round((time.perf_counter() - started) * 1e3, 1)}
    result |= await _log(log, seconds)
    counters = log.counters
    result |= {"commits": counters.commits, "checkpoints": counters.checkpoints}
    await log.close()
    started = time.perf_counter()
    log = await SqliteLog.open(folder)
    result["open_again_ms"] = round((time.perf_counter() - started) * 1e3, 1)
    await log.close()
    return result


async def _other(url: str, seconds: float) -> dict[str, Any]:
    log = await open_log(url)
    # Creates the topics.
    await asyncio.gather(*[log.append(topic, [SMALL]) for topic in ("one", "in", "out")])
    for _ in range(4):  # the first commits create the cluster's own topics
        await log.commit("bench", [RecordBatch("in", 0, (0,), (SMALL,))], [Append("out", [SMALL])])
    try:
        return await _log(log, seconds)
    finally:
        await log.close()


async def _log(log: Log, seconds: float) -> dict[str, Any]:
    times = await _awaited(log, seconds)
    result: dict[str, Any] = {
        "append_awaited_p50_ms": _ms(times),
        "append_awaited_p99_ms": round(statistics.quantiles(times, n=100)[98] * 1e3, 3),
        "append_awaited_per_s": round(len(times) / sum(times)),
    }
    result |= await _commits(log, seconds)
    # CPU before fsync: the log's own share of a commit.
    count, took, cpu = await _stream(log, "many", SMALL, 64, seconds)
    result |= {"append_64_under_way_per_s": round(count / took), "append_64_cpu_us": round(cpu / count * 1e6, 1)}
    frames, took, cpu = await _stream(log, "frames", FRAME, WINDOW, seconds)
    result |= {
        "frames_per_s": round(frames / took),
        "frames_tasks_per_s": round(frames * FRAME_TASKS / took),
        "frames_mb_per_s": round(frames * len(FRAME.value) / took / 1e6),
        "frames_cpu_us_a_task": round(cpu / (frames * FRAME_TASKS) * 1e6, 3),
    }
    return result | await _reads(log, frames, seconds)


async def _commits(log: Log, seconds: float) -> dict[str, Any]:
    """Measure sequential commits, with a batch's appends and without.

    The engine of the rules makes such commits.
    """
    caused = [Append("out", [SMALL] * 100)]
    found: dict[str, Any] = {}
    for name, appends in (("commit_100_p50_ms", caused), ("commit_offset_p50_ms", [])):
        times: list[float] = []
        end = time.perf_counter() + seconds / 2
        while (started := time.perf_counter()) < end:
            await log.commit("bench", [RecordBatch("in", 0, (len(times),), (SMALL,))], appends)
            times.append(time.perf_counter() - started)
        found[name] = _ms(times)
    return found


async def _awaited(log: Log, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        await log.append("one", [SMALL])
        times.append(time.perf_counter() - started)
    return times


async def _stream(log: Log, topic: str, record: Record, window: int, seconds: float) -> tuple[int, float, float]:
    """Append with `window` appends in flight: (count, seconds, CPU seconds)."""
    count = 0
    started, cpu = time.perf_counter(), time.process_time()

    async def one() -> None:
        nonlocal count
        while time.perf_counter() - started < seconds:
            await log.append(topic, [record])
            count += 1

    await asyncio.gather(*[one() for _ in range(window)])
    return count, time.perf_counter() - started, time.process_time() - cpu


async def _reads(log: Log, frames: int, seconds: float) -> dict[str, Any]:
    reader = log.read(["frames"], start="earliest")
    found, took = await _timed(lambda: _drain(reader.next, frames))
    disk = {"read_disk_frames_per_s": round(found / took), "read_disk_tasks_per_s": round(found * FRAME_TASKS / took)}
    # Each offset is a record: this topic has no markers of transactions.
    small_count = (await log.end_offsets(["many"]))[("many", 0)]
    small = log.read(["many"], start="earliest")
    found, took = await _timed(lambda: _drain(small.next, small_count))
    disk["read_disk_small_per_s"] = round(found / took)
    # Caught up: appended records come from memory. Only the reader's share of the time counts.
    live = log.read(["fresh"])
    await log.append("fresh", [SMALL])
    await _drain(live.next, 1)
    spent, got = 0.0, 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.gather(*[log.append("fresh", [SMALL]) for _ in range(1_024)])
        found, took = await _timed(lambda: _drain(live.next, 1_024))
        got, spent = got + found, spent + took
    return disk | {"read_memory_batches_per_s": round(got / spent)}


async def _drain(next_batches: Callable[[], Awaitable[list[RecordBatch]]], count: int) -> int:
    found = 0
    while found < count:
        found += sum(len(b.records) for b in await next_batches())
    return found


async def _timed(work: Callable[[], Awaitable[int]]) -> tuple[int, float]:
    started = time.perf_counter()
    return await work(), time.perf_counter() - started


def _ms(times: list[float]) -> float:
    return round(statistics.median(times) * 1e3, 3)


if __name__ == "__main__":
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print(json.dumps(compare(length, sys.argv[2]) if len(sys.argv) > 2 else run(length), indent=2))
