"""kill -9 of a process that runs the file trigger, at any point.

No file is missed, and none gets two ids. Each process writes one line a file into a record of its
own. SIGKILL ends a write(2) between two pages (Linux checks for it there), so the last line of a
killed process can be torn, at a multiple of 4096 bytes: its emit has not returned, and the next
process must emit the whole batch again, word for word. Every other line must be whole.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

CHILD = """
import asyncio, json, os, random, sys
from pathlib import Path
import msgspec
from oncue.triggers.base import TriggerContext
from oncue.triggers.file.options import FileOptions
from oncue.triggers.file.trigger import FileTrigger

tmp = Path(sys.argv[1])
out = os.open(sys.argv[3], os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY)

async def emit(events):
    await asyncio.sleep(random.random() * 0.01)
    lines = b"".join(
        json.dumps([e.data["relative"], e.id, e.extensions["oncuetimems"]]).encode() + b"\\n" for e in events)
    assert os.write(out, lines) == len(lines)
    await asyncio.sleep(random.random() * 0.01)

options = msgspec.convert(json.loads(sys.argv[2]), FileOptions)
trigger = FileTrigger("detector", options, TriggerContext(emit, tmp / "state", str))
asyncio.run(trigger.run())
"""


class Record(NamedTuple):
    """The lines that one process has emitted."""

    lines: list[bytes]
    torn: bytes  # the beginning of a line that it was killed in


def start(tmp: Path, options: dict[str, object]) -> subprocess.Popen[bytes]:
    given = {"path": str(tmp / "data"), **options}
    record = tmp / f"emitted-{len(records(tmp)):04d}"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp), json.dumps(given), str(record)])
    while not record.exists():  # also of a process that emits nothing: the records are numbered
        assert child.poll() is None
        time.sleep(0.001)
    return child


def records(tmp: Path) -> list[Record]:
    """Return the records, one a process, in the order of their starts."""
    found = [path.read_bytes().split(b"\n") for path in sorted(tmp.glob("emitted-*"))]
    return [Record(lines[:-1], lines[-1]) for lines in found]


def emitted(tmp: Path) -> list[tuple[str, str, str]]:
    """Return (path, event id, time) of all whole lines.

    Fails on a line that no process can have written.
    """
    found = [json.loads(line) for record in records(tmp) for line in record.lines]
    assert all(len(line) == 3 for line in found)
    return [(path, event_id, time_ms) for path, event_id, time_ms in found]


def write_files(data: Path, count: int, stop: threading.Event) -> None:
    """Write files into changing folders: closed, renamed, or moved in with a folder."""
    for i in range(count):
        folder = data / f"run_{i // 50}"
        if i % 50 == 0:
            staged = data.parent / f"run_{i // 50}"
            staged.mkdir()
            (staged / f"{i}.h5").write_bytes(b"x" * i)
            staged.rename(folder)
        elif i % 3:
            (folder / f"{i}.h5").write_bytes(b"x" * i)
        else:
            (folder / f"{i}.tmp").write_bytes(b"x" * i)
            (folder / f"{i}.tmp").rename(folder / f"{i}.h5")
        if stop.wait(0.004):
            return


def wait(tmp: Path, files: int, why: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while len({path for path, _, _ in emitted(tmp)}) < files:
        assert time.monotonic() < end, f"{why}: {len({p for p, _, _ in emitted(tmp)})} of {files}"
        time.sleep(0.02)


def probe(tmp: Path) -> None:
    """Wait until the trigger runs: a file that keeps changing has fired."""
    end = time.monotonic() + 30
    while not emitted(tmp):
        assert time.monotonic() < end
        with (tmp / "data" / "probe").open("a") as f:
            f.write("x")
        time.sleep(0.05)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_point(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / "data").mkdir()
    child = start(tmp_path, {})
    try:
        probe(tmp_path)
    except BaseException:
        child.kill()
        child.wait()
        raise
    stop = threading.Event()
    writer = threading.Thread(target=write_files, args=(tmp_path / "data", 600, stop))
    writer.start()
    try:
        kills = 0
        while writer.is_alive():
            time.sleep(rng.uniform(0.0, 0.25) if kills % 2 else rng.uniform(0.3, 0.6))
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            child = start(tmp_path, {})
        wait(tmp_path, 601, f"after {kills} kills")
        assert kills >= 3
    finally:
        stop.set()
        writer.join()
        child.kill()
        child.wait()
    whole = [line for record in records(tmp_path) for line in record.lines]
    for torn in (record.torn for record in records(tmp_path)):
        assert any(line.startswith(torn) for line in whole), torn
    names: dict[str, set[tuple[str, str]]] = {}
    for path, event_id, time_ms in emitted(tmp_path):
        names.setdefault(path, set()).add((event_id, time_ms))
    del names["probe"]
    assert len(names) == 600
    assert {path: ids for path, ids in names.items() if len(ids) != 1} == {}
