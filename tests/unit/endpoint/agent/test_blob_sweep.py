"""Blobs of tasks that were given up: they do not stay in the agent's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oncue.blobs import Blobs
from oncue.endpoint.agent.blob_arguments import LINGER_US
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.blob_sweep import IDLE_S, KEPT_S, SWEEP_US, BlobSweep
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.payload import Ref, pack_ref
from oncue.protocol.records import CANCELLED, OK, Ended, Failure
from oncue.protocol.run_options import TaskFile
from tests.unit.endpoint.agent.test_agent import Bench, task

LARGE = b"x" * 100_000


class Disk:
    """An agent with a real folder of blobs."""

    def __init__(self, folder: Path) -> None:
        self.blobs = Blobs(folder / "blobs", durable=False)
        self.bench = Bench(cache=DiskCache(folder / "functions", folder / "blobs")).connect()
        self.sweep = BlobSweep(self.bench.agent, folder / "blobs")

    def written(self, content: bytes, age_s: float = 0.0) -> str:
        sha256 = self.blobs.put(content)
        then = time.time() - age_s
        os.utime(self.blobs.folder / sha256[:2] / sha256, (then, then))
        return sha256

    def pass_time(self, us: int) -> None:
        self.bench.now_us += us
        self.bench.turn()

    def swept(self) -> None:
        """Let one sweep end, and the time pass after which a blob goes."""
        self.sweep.check(self.bench.now_us)
        self.sweep.wait()
        self.sweep.check(self.bench.now_us)
        self.pass_time(LINGER_US + 1)
        self.bench.now_us += SWEEP_US


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def result(disk: Disk, sha256: str) -> Ended:
    return Ended(task(1).id, 1, OK, 1, 2, pack_ref(Ref(sha256, len(LARGE))))


def stream(disk: Disk, sha256: str) -> Ended:
    files = (TaskFile("stdout", sha256, len(LARGE), "stdout"),)
    return Ended(task(1).id, 1, CANCELLED, 1, 2, encode(Failure("oncue.TaskCancelled", "", files=files)))


@pytest.mark.parametrize("end", [result, stream])
def test_the_blobs_of_a_double_outcome_go(disk: Disk, end: Callable[[Disk, str], Ended]) -> None:
    sha256 = disk.written(LARGE, age_s=3_600)

    disk.bench.agent.on_results([end(disk, sha256)])  # of a task that is not held: it has ended before
    disk.pass_time(LINGER_US + 1)

    assert not disk.blobs.has(sha256)


def test_the_streams_of_a_script_that_is_given_back_go(disk: Disk) -> None:
    sha256 = disk.written(LARGE, age_s=3_600)
    disk.bench.dispatch(task(1))
    disk.bench.turn(room=1)
    disk.bench.hear(bridge.Recall(running=True), task(1).id)
    disk.bench.turn()

    disk.bench.agent.on_results([stream(disk, sha256)])
    disk.pass_time(LINGER_US + 1)

    assert not disk.blobs.has(sha256)


def test_a_blob_that_no_outcome_names_goes_once_nothing_runs(disk: Disk) -> None:
    left = disk.written(LARGE, age_s=IDLE_S + 60)  # its worker was ended before it told of it
    fresh = disk.written(b"fresh" * 20_000)
    disk.bench.dispatch(task(1))
    disk.bench.turn(room=1)

    disk.swept()
    assert disk.blobs.has(left), "a task that runs may name it"

    disk.bench.finish(task(1))
    disk.swept()
    assert not disk.blobs.has(left)
    assert disk.blobs.has(fresh)


def test_where_tasks_always_run_such_a_blob_goes_after_a_day(disk: Disk) -> None:
    old = disk.written(LARGE, age_s=KEPT_S + 60)
    disk.bench.dispatch(task(1))
    disk.bench.turn(room=1)

    disk.swept()

    assert not disk.blobs.has(old)


def test_what_is_being_sent_stays(disk: Disk) -> None:
    sha256 = disk.written(LARGE, age_s=KEPT_S + 60)
    disk.bench.dispatch(task(1))
    disk.bench.turn(room=1)
    disk.bench.agent.on_results([result(disk, sha256)])

    disk.swept()
    assert disk.blobs.has(sha256)

    disk.bench.agent.outbox.on_upload_ack(bridge.UploadAck(sha256, len(LARGE)))
    disk.pass_time(LINGER_US + 1)
    assert not disk.blobs.has(sha256)


def test_unfinished_uploads_of_killed_workers_go_after_a_day(disk: Disk) -> None:
    left = disk.blobs.folder / "tmp" / "a-part"
    left.write_bytes(LARGE)
    disk.swept()
    assert left.exists()

    then = time.time() - KEPT_S - 60
    os.utime(left, (then, then))
    disk.swept()
    assert not left.exists()
