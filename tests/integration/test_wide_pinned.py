"""Tasks that take the room of several pinned workers: they get what all of these are pinned to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.endpoint.pool.pinning import Pinning
from oncue.functions import Packed, pack_function
from oncue.functions.shell.pack import shell
from oncue.ids import new_uuid7
from oncue.protocol.payload import pack_args, unpack
from oncue.protocol.records import OK, TaskRecord
from oncue.protocol.run_options import Resources, RunOptions
from tests.pool_rig import Rig, rig_in, why

GPUS = {
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "ROCR_VISIBLE_DEVICES": "4,5,6,7",
    "ZE_AFFINITY_MASK": "0.0,0.1,1.0,1.1",
}
PAIR, WHOLE = RunOptions(Resources(gpus=2)), RunOptions(Resources(gpus=4))


def seen() -> tuple[int, list[str]]:
    """Return the worker's process, and the GPUs that it sees."""
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    return os.getpid(), [os.environ[name] for name in names]


def hold(folder: str, name: str) -> str:
    """Return the GPUs that it sees, once `go` is there."""
    Path(folder, name).touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    for name, value in GPUS.items():
        monkeypatch.setenv(name, value)
    with rig_in(tmp_path / "endpoint", 4, pinning=Pinning("gpus")) as found:
        yield found


def start(rig: Rig, packed: Packed, options: RunOptions | None, *args: Any) -> TaskRecord:
    """Submit a task as the agent does: again when the pool returns it."""
    task = TaskRecord(new_uuid7(), pack_args(args, {}))
    rig.packed[task.id] = (packed, 0)
    rig.until(rig.pool.room)
    rig.pool.run(packed.id, packed.body, 0, 1, [task], options)
    return task


def value(rig: Rig, packed: Packed, options: RunOptions | None = None) -> Any:
    ended = rig.end_of(start(rig, packed, options))
    assert ended.status == OK, why(ended)
    return unpack(ended.value)


def test_a_wide_task_sees_the_gpus_of_all_workers_whose_room_it_takes(rig: Rig) -> None:
    packed = pack_function(seen)
    assert value(rig, packed)[1] == ["0", "4", "0.0"]

    _, pair = value(rig, packed, PAIR)
    _, whole = value(rig, packed, WHOLE)

    assert pair in (["0,1", "4,5", "0.0,0.1"], ["2,3", "6,7", "1.0,1.1"])
    assert whole == list(GPUS.values())


def test_the_children_of_a_wide_script_see_them_too(rig: Rig) -> None:
    script = "sh -c 'echo $CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES $ZE_AFFINITY_MASK'"

    found = value(rig, shell(script, resources={"gpus": 4}))

    assert found["stdout"] == " ".join(GPUS.values()) + "\n"


def test_afterwards_each_worker_sees_its_own_again(rig: Rig, tmp_path: Path) -> None:
    value(rig, pack_function(seen), WHOLE)

    packed = pack_function(hold)
    names = [f"one{n}" for n in range(4)]
    tasks = [start(rig, packed, None, str(tmp_path), name) for name in names]
    rig.until(lambda: all((tmp_path / name).exists() for name in names))
    (tmp_path / "go").touch()

    assert sorted(unpack(rig.end_of(t).value) for t in tasks) == ["0", "1", "2", "3"]


def test_tasks_side_by_side_share_no_gpu(rig: Rig, tmp_path: Path) -> None:
    packed = pack_function(hold)
    started = []
    for name, options in (("narrow", None), ("wide", PAIR), ("another", None)):
        started.append(start(rig, packed, options, str(tmp_path), name))
        rig.wait_for(tmp_path / name)
    (tmp_path / "go").touch()

    found = [unpack(rig.end_of(t).value) for t in started]

    assert sorted(",".join(found).split(",")) == ["0", "1", "2", "3"]
    assert [len(text.split(",")) for text in found] == [1, 2, 1]


def test_wide_tasks_in_a_row_find_the_worker_warm(rig: Rig) -> None:
    packed = pack_function(seen)

    assert value(rig, packed, WHOLE) == value(rig, packed, WHOLE)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's: run this on Linux")
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core only: run this on a machine with two")
def test_a_wide_task_runs_on_the_cores_of_all_these_workers(tmp_path: Path) -> None:
    here = cores()
    with rig_in(tmp_path, 2, pinning=Pinning("cores")) as rig:
        packed = pack_function(cores)
        narrow = value(rig, packed)
        wide = value(rig, packed, RunOptions(Resources(cores=len(here))))
        child = f"{sys.executable} -c 'import os; print(len(os.sched_getaffinity(0)))'"
        script = value(rig, shell(child, resources={"cores": len(here)}))
        again = value(rig, packed)

    assert (wide, script["stdout"]) == (here, f"{len(here)}\n")
    assert len(narrow) == len(again) == len(here) // 2
