"""CPU time and peak memory of tasks, as the kernel counts them."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.endpoint.worker.task_usage import TaskUsage
from oncue.functions import Packed, pack_function
from oncue.functions.shell.pack import shell
from oncue.ids import new_uuid7
from oncue.protocol.payload import pack_args
from oncue.protocol.records import OK, Ended, TaskRecord
from tests.pool_rig import Rig, rig_in, why

LARGE = 200_000_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel sets a peak back on Linux only: run it there")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path / "endpoint", workers=1) as found:
        yield found


def run(rig: Rig, packed: Packed, *chunk: dict[str, Any]) -> list[Ended]:
    """Run calls as one chunk, in one worker."""
    tasks = [TaskRecord(new_uuid7(), pack_args((), values)) for values in chunk]
    rig.submit(packed, tasks)
    ends = [rig.end_of(task) for task in tasks]
    assert [e.status for e in ends] == [OK] * len(ends), [why(e) for e in ends]
    return ends


def burn(seconds: float = 0.0, size: int = 0) -> None:
    import time

    held, until = bytearray(size), time.process_time() + seconds
    held[::4096] = bytes(len(held[::4096]))
    while time.process_time() < until:
        pass


def doze() -> None:
    import time

    time.sleep(0.1)


def in_a_child(seconds: float) -> None:
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", f"import time\nwhile time.process_time() < {seconds}: pass"], check=True)


def test_a_task_has_its_own_cpu_time_and_not_that_of_its_neighbours(rig: Rig) -> None:
    heavy, light = run(rig, pack_function(burn), {"seconds": 0.3}, {"seconds": 0.02})
    (asleep,) = run(rig, pack_function(doze), {})
    assert heavy.cpu_us >= 300_000
    assert 10_000 < light.cpu_us < 300_000
    assert asleep.cpu_us < 300_000


def test_cpu_time_of_child_processes_counts(rig: Rig) -> None:
    (python,) = run(rig, pack_function(in_a_child), {"seconds": 0.3})
    (script,) = run(
        rig, shell('"${python}" -c "import time\nwhile time.process_time() < 0.3: pass"'), {"python": sys.executable}
    )
    assert python.cpu_us >= 250_000
    assert script.cpu_us >= 250_000


@linux
def test_peak_memory_is_that_of_the_task_and_not_of_an_earlier_one(rig: Rig) -> None:
    (large,) = run(rig, pack_function(burn), {"seconds": 0.05, "size": LARGE})
    (small,) = run(rig, pack_function(burn), {"seconds": 0.05})
    assert large.peak_bytes >= LARGE
    assert 0 < small.peak_bytes < LARGE


@linux
def test_peak_memory_of_scripts_is_each_ones_own(rig: Rig) -> None:
    script = shell('"${python}" -c "import sys; x = b\'x\' * int(sys.argv[1])" ${size}')
    (large,) = run(rig, script, {"python": sys.executable, "size": LARGE})
    (small,) = run(rig, script, {"python": sys.executable, "size": 1})
    assert large.peak_bytes >= LARGE
    assert 0 < small.peak_bytes < LARGE


def test_short_tasks_are_not_measured(rig: Rig) -> None:
    ends = run(rig, pack_function(burn), *[{}] * 20)
    quick = [e for e in ends if e.ended_us - e.started_us < 10_000]
    assert quick
    assert {(e.cpu_us, e.peak_bytes) for e in quick} == {(0, 0)}


def test_where_the_peak_cannot_be_set_back_it_is_told_when_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> int:
        raise PermissionError(1, "not in this container")

    monkeypatch.setattr("oncue.endpoint.worker.task_usage._peak_then_reset", forbidden)
    usage = TaskUsage()
    assert usage.measure()[1] == 0
    # More than this process ever had: other tests may have used much.
    held = bytearray(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + LARGE)
    held[::4096] = bytes(len(held[::4096]))
    assert usage.measure()[1] >= LARGE
    assert usage.measure()[1] == 0
