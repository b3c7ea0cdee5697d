"""Tasks that state resources: how many run at once, and which are refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import oncue
from oncue.endpoint.pool.capacity import NodeCapacity, capacity_here
from oncue.endpoint.pool.pinning import Pinning, gpu_devices, worker_variables
from oncue.functions import Packed, pack_function
from oncue.ids import new_uuid7
from oncue.protocol.payload import pack_args, unpack
from oncue.protocol.records import OK, REFUSED, TaskRecord
from oncue.protocol.run_options import Resources, RunOptions
from tests.pool_rig import Rig, rig_in, why

NODE = NodeCapacity(workers=4, cores=4, memory_bytes=16 << 30, gpus=2)


@pytest.mark.parametrize(
    ("needed", "width"),
    [
        (Resources(), 1),
        (Resources(cores=1), 1),
        (Resources(cores=4), 4),
        (Resources(ranks=3), 3),
        (Resources(cores=2, ranks=3, nodes=1), 3),
        (Resources(memory_bytes=1 << 30), 1),
        (Resources(memory_bytes=(4 << 30) + 1), 2),
        (Resources(gpus=1), 2),
        (Resources(gpus=2), 4),
        (Resources(walltime_ms=1), 1),
    ],
)
def test_a_task_takes_the_room_of_as_many_workers_as_have_what_it_needs(needed: Resources, width: int) -> None:
    assert NODE.width(needed) == width
    assert NODE.misfit(needed) == ""


@pytest.mark.parametrize(
    ("needed", "reason"),
    [
        (Resources(cores=5), "it needs 5 cores, and this endpoint's workers have 4 in all"),
        (Resources(ranks=5), "it needs 5 ranks"),
        (Resources(gpus=3), "it needs 3 GPUs, and this endpoint has 2"),
        (Resources(nodes=2), "it needs 2 nodes"),
        (Resources(memory_bytes=17 << 30), "of memory, and this endpoint has"),
    ],
)
def test_a_task_that_can_never_fit_has_a_reason(needed: Resources, reason: str) -> None:
    assert reason in NODE.misfit(needed)


def test_more_workers_than_cores_have_one_core_each() -> None:
    assert NodeCapacity(8, 2, 1 << 30, 0).width(Resources(cores=8)) == 8
    assert NodeCapacity(2, 64, 1 << 30, 0).width(Resources(cores=32)) == 1
    assert "has none" in NodeCapacity(2, 2, 1 << 30, 0).misfit(Resources(gpus=1))


def test_pinned_workers_have_no_more_than_they_are_pinned_to() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    own = worker_variables(Pinning("gpus", cores=1, gpus=1), 2, range(64), gpu_devices(environ))

    found = capacity_here(2, environ, own)

    assert (found.cores, found.gpus) == (2, 2)
    assert found.width(Resources(gpus=2)) == 2
    assert capacity_here(2, environ, worker_variables(None, 2, [], {})).gpus == 4


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path, 4) as found:
        yield found


def note(path: str, name: str) -> tuple[float, float]:
    """Write a file, and wait until its name with `.go` is there."""
    began = time.monotonic()
    Path(path, name).touch()
    while not Path(path, f"{name}.go").exists():
        time.sleep(0.01)
    return began, time.monotonic()


def start(rig: Rig, packed: Packed, options: RunOptions | None, *args: str) -> TaskRecord:
    """Submit a task as the agent does: again when the pool returns it."""
    task = TaskRecord(new_uuid7(), pack_args(args, {}))
    rig.submit(packed, [task], options=options)
    return task


def test_a_wide_task_waits_for_room_and_is_not_overtaken(rig: Rig, tmp_path: Path) -> None:
    packed, wide = pack_function(note), RunOptions(Resources(cores=4))
    small = start(rig, packed, None, str(tmp_path), "small")
    rig.wait_for(tmp_path / "small")
    assert rig.pool.room() > 0

    large = start(rig, packed, wide, str(tmp_path), "large")

    rig.drain()
    assert [t.id for t in rig.requeued] == [large.id]
    assert rig.pool.room() == 0  # it is kept for the wide one
    (tmp_path / "small.go").touch()
    rig.end_of(small)
    rig.until(rig.pool.room)
    rig.requeued.clear()
    other = TaskRecord(new_uuid7(), pack_args((str(tmp_path), "other"), {}))
    rig.pool.run(packed.id, None, 0, 1, [other], None)
    rig.pool.run(packed.id, None, 0, 1, [large], wide)
    rig.wait_for(tmp_path / "large")
    assert [t.id for t in rig.requeued] == [other.id]
    assert rig.pool.room() == 0  # three workers stay idle
    assert rig.pool.busy == 1
    (tmp_path / "large.go").touch()
    assert rig.end_of(large).status == OK
    rig.until(rig.pool.room)


def test_two_tasks_of_two_cores_run_at_once(rig: Rig, tmp_path: Path) -> None:
    @oncue.function(resources={"cores": 2})
    def pair(path: str, name: str) -> tuple[float, float]:
        return note(path, name)

    tasks = [start(rig, pack_function(pair), None, str(tmp_path), name) for name in ("one", "two")]
    rig.until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists())
    assert rig.pool.room() == 0
    for name in ("one", "two"):
        (tmp_path / f"{name}.go").touch()
    spans = [unpack(rig.end_of(t).value) for t in tasks]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans)


def test_room_for_a_task_that_was_cancelled_is_given_back(rig: Rig, tmp_path: Path) -> None:
    packed = pack_function(note)
    small = start(rig, packed, None, str(tmp_path), "small")
    rig.wait_for(tmp_path / "small")
    start(rig, packed, RunOptions(Resources(cores=4)), str(tmp_path), "large")
    (tmp_path / "small.go").touch()
    rig.end_of(small)

    def given_back() -> bool:  # the wide one never comes again
        return rig.pool.room() > 1

    rig.until(given_back)


def test_a_task_that_can_never_fit_is_refused_at_once(rig: Rig) -> None:
    (task,) = [start(rig, pack_function(note), RunOptions(Resources(cores=1_000)), "", "")]
    ended = rig.end_of(task)
    assert (ended.status, why(ended).type) == (REFUSED, "oncue.TaskRefused")
    assert "it needs 1000 cores" in why(ended).message
