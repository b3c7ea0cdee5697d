"""kill -9 of a process that runs the file trigger, at any point: no file is missed, and none has two ids."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

CHILD = """
import asyncio, json, os, random, sys
from pathlib import Path
import msgspec
from oncue.triggers.base import TriggerContext
from oncue.triggers.files import FileOptions, FileTrigger

tmp = Path(sys.argv[1])
out = os.open(tmp / "emitted", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

async def emit(events):
    await asyncio.sleep(random.random() * 0.01)
    lines = b"".join(
        json.dumps([e.data["relative"], e.id, e.extensions["oncuetimems"]]).encode() + b"\\n" for e in events)
    os.write(out, lines)
    await asyncio.sleep(random.random() * 0.01)

options = msgspec.convert(json.loads(sys.argv[2]), FileOptions)
trigger = FileTrigger("detector", options, TriggerContext(emit, tmp / "state", str))
asyncio.run(trigger.run())
"""


def start(tmp: Path, options: dict[str, object]) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", CHILD, str(tmp), json.dumps({"path": str(tmp / "data"), **options})]
    return subprocess.Popen(arguments)


def emitted(tmp: Path) -> list[tuple[str, str, str]]:
    try:
        # A line that a kill tore was not emitted; what the next process wrote begins behind it.
        lines = (tmp / "emitted").read_bytes().splitlines()
        whole = [line[line.rindex(b'["') :] for line in lines if b'["' in line and line.endswith(b'"]')]
        return [tuple(json.loads(line)) for line in whole]
    except FileNotFoundError:
        return []


def write_files(data: Path, count: int, stop: threading.Event) -> None:
    """Files in changing folders: closed in place, renamed into place, moved in with their folder."""
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
    """Waits until the trigger is up: a file that keeps changing has fired."""
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
    names: dict[str, set[tuple[str, str]]] = {}
    for path, event_id, time_ms in emitted(tmp_path):
        names.setdefault(path, set()).add((event_id, time_ms))
    del names["probe"]
    assert len(names) == 600
    assert {path: ids for path, ids in names.items() if len(ids) != 1} == {}
