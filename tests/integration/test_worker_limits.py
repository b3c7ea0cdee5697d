"""Workers that are replaced: limits, fresh functions, memory; and how an idle one ends."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from oncue.endpoint.pool.limits import WorkerLimits
from oncue.functions import Packed, describe, pack_function
from oncue.protocol.codec import encode
from oncue.protocol.payload import unpack
from oncue.protocol.records import ERROR, OK, Ended
from tests.pool_rig import Rig, rig_in, script, why


def with_properties(fn: Any, **properties: Any) -> Packed:
    packed = pack_function(fn)
    body = encode(msgspec.structs.replace(describe(packed.body), **properties))
    return msgspec.structs.replace(packed, id=hashlib.sha256(body).hexdigest(), body=body)


def values(rig: Rig, packed: Packed, calls: int) -> list[Any]:
    ended = [rig.end_of(t) for t in rig.run(packed, *[()] * calls)]
    assert all(e.status == OK for e in ended), [why(e) for e in ended if e.status != OK]
    return [unpack(e.value) for e in ended]


def test_a_worker_is_replaced_after_so_many_tasks(tmp_path: Path) -> None:
    with rig_in(tmp_path, limits=WorkerLimits(max_tasks=3)) as rig:
        pids = values(rig, pack_function(os.getpid), 7)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


def test_a_worker_that_holds_much_memory_is_replaced(tmp_path: Path) -> None:
    f = script("import os\nKEPT = []\ndef f():\n KEPT.append(b'x' * 50_000_000)\n return os.getpid()\n")
    with rig_in(tmp_path, limits=WorkerLimits(max_memory_bytes=150_000_000)) as rig:
        pids = [rig.value(f) for _ in range(8)]
    assert 2 < len(set(pids)) < 8


def test_each_task_of_a_fresh_function_has_a_new_process(tmp_path: Path) -> None:
    f = script("import os\nSEEN = []\ndef f():\n SEEN.append(1)\n return os.getpid(), len(SEEN)\n")
    with rig_in(tmp_path, 2) as rig:
        others = {rig.value(os.getpid) for _ in range(3)}
        found = values(rig, with_properties(f, fresh=True), 5)
        later = rig.value(os.getpid)
    pids = {pid for pid, _ in found}
    assert [seen for _, seen in found] == [1] * 5
    assert len(pids) == 5
    assert not pids & others
    assert later not in pids


MEMORY = {
    "itself": "kept = [b'x' * 10_000_000 for _ in range(10)]\n while True: kept.append(b'x' * 10_000_000)",
    "a child": "os.system(f'{sys.executable} -c \"kept=[]\\nwhile 1: kept.append(bytearray(10**7))\"')",
    "a pool": "multiprocessing.get_context('fork').Pool(1).map(bytes_of, [10**9])",
}


@pytest.mark.parametrize("way", MEMORY)
def test_a_task_over_its_memory_limit_ends_with_a_reason_that_names_it(tmp_path: Path, way: str) -> None:
    f = script(
        "import multiprocessing, os, sys, time\n"
        "def bytes_of(n):\n kept = []\n for _ in range(100): kept.append(bytearray(10**7)); time.sleep(0.01)\n"
        " time.sleep(100)\n"
        f"def f():\n {MEMORY[way]}\n"
    )
    with rig_in(tmp_path) as rig:
        (task,) = rig.run(with_properties(f, memory_bytes=300_000_000), ())
        ended = rig.end_of(task)
        assert rig.value(lambda: 1) == 1
    assert ended.status == ERROR
    assert why(ended).type == "MemoryError"
    assert "memory limit of 300 MB" in why(ended).message


def test_workers_have_numbers_and_share_the_cores(tmp_path: Path) -> None:
    f = script(
        "import os, time\ndef f():\n time.sleep(0.2)\n"
        " return os.environ['ONCUE_WORKER'], os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']\n"
    )
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    with rig_in(tmp_path, 2, env=plain) as rig:
        tasks = [rig.run(pack_function(f), ())[0] for _ in range(2)]
        found = sorted(unpack(rig.end_of(t).value) for t in tasks)
        assert found == [(str(n), str(max(1, cores // 2)), str(max(1, cores // 2))) for n in range(2)]
        (pid, _) = rig.pool.pids
        os.kill(pid, signal.SIGKILL)
        rig.until(lambda: rig.pool.ready == 2 and pid not in rig.pool.pids)
        tasks = [rig.run(pack_function(f), ())[0] for _ in range(2)]
        assert sorted(unpack(rig.end_of(t).value)[0] for t in tasks) == ["0", "1"]


@pytest.mark.parametrize(
    ("environ", "threads", "expected"),
    [({}, 3, ["3", "3"]), ({"OMP_NUM_THREADS": "5"}, 0, ["5", "5"]), ({"MKL_NUM_THREADS": "4"}, 2, ["2", "4"])],
)
def test_threads_can_be_set(tmp_path: Path, environ: dict[str, str], threads: int, expected: list[str]) -> None:
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")} | environ
    with rig_in(tmp_path, env=plain, limits=WorkerLimits(threads=threads)) as rig:
        f = script("import os\ndef f(): return [os.environ[n + '_NUM_THREADS'] for n in ('OMP', 'MKL')]")
        assert rig.value(f) == expected


@pytest.mark.parametrize("way", ["close", "worn", "limit", "fresh"])
def test_an_orderly_end_runs_exit_functions(tmp_path: Path, way: str) -> None:
    note = tmp_path / "note"
    f = script(
        "import atexit, os, sys, threading, weakref\n"
        "def write(note, text): open(note, 'a').write(text)\n"
        "def f(note, worn):\n atexit.register(write, note, 'atexit ')\n"
        " if worn: os.setpgid(0, 0)\n"
    )
    with rig_in(tmp_path, limits=WorkerLimits(max_tasks=1 if way == "limit" else 0)) as rig:
        packed = with_properties(f, fresh=way == "fresh")
        (task,) = rig.run(packed, (str(note), way == "worn"))
        assert rig.end_of(task).status == OK
        if way != "close":
            rig.wait_for(note)
    assert note.read_text() == "atexit "


def test_an_exit_function_that_hangs_stops_nobody(tmp_path: Path) -> None:
    f = script("import atexit, time\ndef f():\n atexit.register(time.sleep, 600)\n")
    with rig_in(tmp_path, limits=WorkerLimits(max_tasks=1)) as rig:
        assert [rig.one(f).status for _ in range(2)] == [OK, OK]


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans needs Linux")
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), 9)", "return pid"])
def test_what_a_dead_worker_left_behind_ends_too(tmp_path: Path, death: str, detached: bool) -> None:
    """In a process of its own, which adopts orphans as the agent's does."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from oncue.endpoint.pool.orphans import Orphans\nfrom oncue.processes.children import adopt_orphans\n"
        "from tests.integration.test_worker_limits import leave\n"
        "assert adopt_orphans()\nleave(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == 'True', Orphans())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), death, str(detached)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pid = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(pid) == detached
    if detached:
        os.kill(pid, signal.SIGKILL)


def leave(folder: Path, death: str, detached: bool, orphans: Any) -> None:
    """Run a function that leaves a process in a session of its own; then another."""
    f = script(
        "import os, subprocess\n"
        "def f(note):\n"
        " pid = subprocess.Popen(['sleep', '1000'], start_new_session=True, env={}, stdout=-3, stderr=-3).pid\n"
        f" open(note, 'w').write(str(pid))\n {death}\n"
    )
    with rig_in(folder, orphans=orphans) as rig:
        (task,) = rig.run(with_properties(f, detached=detached), (str(folder / "pid"),))
        ended: Ended = rig.end_of(task)
        pid = int((folder / "pid").read_text())
        assert (ended.status == OK) == death.startswith("return"), ended
        assert rig.value(lambda: 1) == 1
        if not detached:
            rig.until(lambda: not psutil.pid_exists(pid))
