"""Pool and workers with real processes: every end of a task."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from oncue.blobs import Blobs
from oncue.endpoint.pool.pool import Pool
from oncue.functions import pack_file, pack_function
from oncue.ids import new_uuid7
from oncue.protocol.payload import Ref, pack, pack_args, pack_ref, ref_of, unpack
from oncue.protocol.records import (
    CANCELLED,
    ERROR,
    INLINE_BYTES,
    LOST,
    OK,
    OUTPUT_BYTES,
    TIMEOUT,
    TRACEBACK_BYTES,
    TaskRecord,
)
from tests.pool_rig import LIMIT_S, Rig, rig_in, script, why


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path) as found:
        yield found


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path, 2) as found:
        yield found


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rig whose pool gives no task back, however long the task before it takes.

    On a busy machine any task may take long.
    """
    monkeypatch.setattr("oncue.endpoint.pool.pool.LONG_US", 600_000_000)


# ---------------------------------------------------------------- values


def test_values_come_back(rig: Rig) -> None:
    assert rig.value(lambda x, y: x + y, 2, 3) == 5
    assert rig.value(script("def f(x): return {'a': [x, None, 1.5, b'x']}"), "s") == {"a": ["s", None, 1.5, b"x"]}
    assert rig.value(lambda: (1, {2})) == (1, {2})
    assert rig.value(lambda n: "\ud800" * n, 2) == "\ud800\ud800"


def test_async_functions(rig: Rig) -> None:
    assert rig.value(script("async def f(x):\n import asyncio\n await asyncio.sleep(0)\n return x+1"), 1) == 2
    assert rig.value(script("async def g(x): return x+2\ndef f(x): return g(x)"), 1) == 3


def test_fields_of_an_outcome(rig: Rig) -> None:
    packed = pack_function(lambda: 1)
    task = TaskRecord(new_uuid7(), pack_args((), {}), ("src", "id"), b"r" * 16, 77)
    before = time.time_ns() // 1000
    rig.pool.run(packed.id, packed.body, 0, 3, [task])
    e = rig.end_of(task)
    assert (e.attempt, e.event, e.retry_of, e.mark_us) == (3, ("src", "id"), b"r" * 16, 77)
    assert before <= e.started_us <= e.ended_us <= time.time_ns() // 1000


def test_a_function_body_is_sent_once(rig: Rig) -> None:
    packed = pack_function(lambda: 5)
    rig.end_of(rig.run(packed, ())[0])
    task = TaskRecord(new_uuid7(), pack_args((), {}))
    rig.until(rig.pool.room)
    rig.pool.run(packed.id, None, 0, 1, [task])
    assert unpack(rig.end_of(task).value) == 5
    with pytest.raises(Exception, match="does not have the function"):
        rig.pool.run("0" * 64, None, 0, 1, [task])


def test_large_arguments_and_results_are_blobs(rig: Rig) -> None:
    blobs = Blobs(rig.folder / "blobs")
    data = os.urandom(INLINE_BYTES + 10)
    args = pack_args((data,), {})
    packed = pack_function(lambda d: d + b"!")
    task = TaskRecord(new_uuid7(), pack_ref(Ref(blobs.put(args), len(args))))
    rig.pool.run(packed.id, packed.body, 0, 1, [task])
    ended = rig.end_of(task)
    ref = ref_of(ended.value)
    assert ref is not None
    assert unpack(blobs.read(ref.sha256)) == data + b"!"
    gone = TaskRecord(new_uuid7(), pack_ref(Ref("0" * 64, 1)))
    rig.submit(packed, [gone])
    assert why(rig.end_of(gone)).type == "oncue.BlobMissing"


def test_large_inline_chunks(rig: Rig) -> None:
    data = os.urandom(INLINE_BYTES - 100)
    tasks = rig.run(pack_function(lambda d: d), *[(data,)] * 64)
    assert all(unpack(rig.end_of(t).value) == data for t in tasks)
    assert len(rig.ended) == 64


# ---------------------------------------------------------------- failures


def test_an_exception_is_data_with_the_users_lines(rig: Rig) -> None:
    def inner() -> None:
        raise KeyError("k")

    def f() -> None:
        try:
            inner()
        except KeyError as e:
            raise ValueError("bad [/scan]") from e

    found = why(rig.one(f))
    assert (found.type, found.message) == ("ValueError", "bad [/scan]")
    assert "KeyError" in found.traceback
    assert "direct cause" in found.traceback
    assert "in inner" in found.traceback
    assert "endpoint/worker" not in found.traceback


def test_source_lines_of_a_sibling_file_are_shown(rig: Rig, tmp_path: Path) -> None:
    from oncue.functions import pack_file

    (tmp_path / "beam.py").write_text("import lens\ndef f(x):\n    return lens.focus(x)  # here\n")
    (tmp_path / "lens.py").write_text("def focus(x):\n    raise ValueError(x)  # there\n")
    (task,) = rig.run(pack_file(tmp_path / "beam.py", "f"), (1,))
    text = why(rig.end_of(task)).traceback
    assert 'File "beam.py", line 3, in f' in text
    assert "# here" in text
    assert "# there" in text


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def f():\n raise SystemExit(3)", "SystemExit"),
        ("def f():\n raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f():\n import sys\n sys.exit('bye')", "SystemExit"),
        ("class E(Exception):\n  def __str__(self): raise ValueError\ndef f():\n raise E", "E"),
        ("def f():\n def r(): return r()\n return r()", "RecursionError"),
        ("def f():\n return (i for i in [1])", "oncue.CannotPack"),
        ("def f():\n import threading\n return threading.Lock()", "oncue.CannotPack"),
        ("def f():\n import nowhere_to_be_found", "ModuleNotFoundError"),
        ("def f():\n raise ValueError('x' * 10**6)", "ValueError"),
    ],
)
def test_any_exception_fails_only_its_task(rig: Rig, source: str, kind: str) -> None:
    pid = rig.pool.pids
    ended = rig.one(script(source))
    found = why(ended)
    assert (ended.status, found.type) == (ERROR, kind)
    assert len(found.traceback) <= TRACEBACK_BYTES
    assert len(ended.value) < 2 * TRACEBACK_BYTES
    if "list" in source or "nowhere" in source:
        assert found.remedy
    assert rig.value(lambda: 1) == 1
    assert rig.pool.pids == pid


def test_a_function_that_cannot_be_loaded(rig: Rig) -> None:
    body = msgspec.msgpack.decode(pack_function(script("def f(): return 1")).body)
    body[4] = "3.9"
    raw = msgspec.msgpack.encode(body)
    task = TaskRecord(new_uuid7(), pack_args((), {}))
    rig.pool.run("f" * 64, raw, 0, 1, [task])
    found = why(rig.end_of(task))
    assert found.type == "oncue.CannotLoad"
    assert "3.9" in found.message
    assert "3.9" in found.remedy


# ---------------------------------------------------------------- output


def test_output_of_python_c_and_children_in_order(rig: Rig) -> None:
    def f() -> None:
        import ctypes
        import subprocess
        import sys

        print("python")
        ctypes.CDLL(None).dprintf(1, b"see\n")
        subprocess.run(["echo", "child"], check=True)
        sys.stderr.write("err\n")
        os.write(2, b"fd\n")

    assert rig.one(f).output == b"python\nsee\nchild\nerr\nfd\n"
    assert rig.one(lambda: None).output == b""


def test_each_task_has_its_own_output(rig: Rig) -> None:
    tasks = rig.run(pack_function(lambda i: print(i, end="") if i % 2 else None), *[(i,) for i in range(10)])
    assert [rig.end_of(t).output for t in tasks] == [str(i).encode() if i % 2 else b"" for i in range(10)]


def test_long_output_is_cut_in_the_middle(rig: Rig) -> None:
    output = rig.one(lambda: print("start", "x" * 10**6, "end")).output
    assert len(output) <= OUTPUT_BYTES
    assert output.startswith(b"start")
    assert output.endswith(b"end\n")
    assert b"left out" in output


def test_output_survives_changes_to_the_standard_streams(rig: Rig) -> None:
    def f() -> None:
        import io
        import sys

        sys.stdout = io.StringIO()
        os.close(1)

    def g() -> None:
        import sys

        sys.stdout.close()

    rig.one(f)
    assert rig.one(lambda: print("still")).output == b"still\n"
    rig.one(g)
    assert rig.one(lambda: print("there")).output == b"there\n"


BROKEN_FDS = {
    "read to its end": "open({fd}, 'rb').read()",
    "closed": "os.close({fd})",
    "both closed": "os.close(1); os.close(2)",
    "null": "os.dup2(os.open(os.devnull, os.O_RDWR), {fd})",
    "pipe": "os.dup2(os.pipe()[1], {fd})",
    "file": "os.dup2(os.open('log', os.O_RDWR | os.O_CREAT), {fd})",
    "both one empty file": "a = os.open('log', os.O_RDWR | os.O_CREAT); os.dup2(a, 1); os.dup2(a, 2)",
    "the other's file": "print('x'); a = open('log', 'w'); os.dup2(a.fileno(), {fd}); os.write(a.fileno(), b'there')",
}


@pytest.mark.parametrize("fd", [0, 1, 2])
@pytest.mark.parametrize("way", BROKEN_FDS)
def test_a_task_that_breaks_a_standard_descriptor_affects_only_itself(rig: Rig, way: str, fd: int) -> None:
    """Later tasks of the chunk print; stdin is restored with the next chunk."""
    spoil = BROKEN_FDS[way].format(fd=fd)
    source = (
        f"def f(i):\n import os, sys\n if i == 1:\n  {spoil}\n  return 0\n"
        " print('out', i)\n sys.stderr.write('err\\n')\n os.write(1, b'1')\n os.write(2, b'2')\n return i"
    )
    pid = rig.pool.pids
    packed, numbers = pack_function(script(source)), [0, 1, 2, 1, 3]
    tasks = rig.run(packed, *[(i,) for i in numbers]) if fd else [rig.run(packed, (i,))[0] for i in numbers]
    ends = [rig.end_of(t) for t in tasks]
    assert [(e.status, unpack(e.value)) for e in ends] == [(OK, i) for i in (0, 0, 2, 0, 3)]
    assert [ends[n].output for n in (0, 2, 4)] == [b"out %d\nerr\n12" % i for i in (0, 2, 3)]
    assert rig.value(lambda: os.read(0, 1) + sys.stdin.read().encode()) == b""
    assert rig.pool.pids == pid


@pytest.mark.skipif(sys.platform != "linux", reason="holes are punched on Linux only")
def test_a_flood_of_output_does_not_fill_the_memory(rig: Rig, tmp_path: Path) -> None:
    go, size = tmp_path / "go", 40 << 20

    def f(go: str, size: int) -> None:
        print("start")
        os.write(1, b"x" * size)
        while not os.path.exists(go):
            time.sleep(0.01)
        print("end")

    (task,) = rig.run(pack_function(f), (str(go), size))
    (worker,) = rig.pool._workers.values()
    rig.until(lambda: rig.events.started and os.fstat(worker.capture).st_size > size)
    rig.until(lambda: os.fstat(worker.capture).st_blocks * 512 < size // 10)
    go.touch()
    output = rig.end_of(task).output
    assert output.startswith(b"start\nxxx")
    assert output.endswith(b"xxxend\n")
    assert b"left out" in output


def test_stdin_is_empty(rig: Rig) -> None:
    assert rig.value(lambda: sys.stdin.read()) == ""


# ---------------------------------------------------------------- processes left over


def test_the_next_task_finds_its_worker_as_it_was(rig: Rig) -> None:
    def state() -> list[Any]:
        return [
            os.getcwd(),
            dict(os.environ),
            list(sys.path),
            str(signal.getsignal(signal.SIGUSR1)),
            str(signal.getsignal(signal.SIGTERM)),
            signal.getitimer(signal.ITIMER_REAL)[0],
        ]

    def mess() -> None:
        os.chdir("/")
        os.environ["MESS"] = "1"
        os.environ.pop("PATH", None)
        sys.path.insert(0, "/mess")
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(100)

    before = rig.value(state)
    assert rig.one(mess).status == OK
    assert rig.value(state) == before


def test_no_secrets_in_a_workers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_TOKEN", "geheim")
    pool = Pool(1, tmp_path)
    rig = Rig(pool, tmp_path)
    try:
        rig.ready()
        assert not any("geheim" in v for v in rig.value(lambda: list(os.environ.values())))
    finally:
        pool.close(0)


def test_processes_that_a_function_forks_end_by_sigterm(rig: Rig) -> None:
    """They raise nothing that they could print or catch. A handler of the function's own stays."""

    def ended_by(own: bool) -> int:
        if own:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert rig.value(ended_by, False) == -signal.SIGTERM
    assert rig.value(ended_by, True) == 7


def test_a_forked_child_that_returns_does_not_answer(rig: Rig) -> None:
    tasks = rig.run(pack_function(lambda i: os.fork() and None), (1,), (2,))
    assert all(rig.end_of(t).status == OK for t in tasks)
    assert rig.value(lambda: 3) == 3
    assert len(rig.ended) == 3
    assert {e.id for e in rig.ended} >= {t.id for t in tasks}


# ---------------------------------------------------------------- deaths

DEATHS = {
    "exit": ("import os; os._exit(7)", "code 7"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "abort": ("import os; os.abort()", "SIGABRT"),
    "term": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "ended by SIGTERM"),
    "kill": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "cut": ("import os, time; os.closerange(3, 70_000); time.sleep(600)", "closed the worker's descriptors"),
    "cut and return": ("import os; os.closerange(3, 70_000)", "closed the worker's descriptors"),
}


@pytest.mark.parametrize("way", DEATHS)
@pytest.mark.usefixtures("patient")
def test_a_crash_fails_the_running_task_only(rig: Rig, way: str, tmp_path: Path) -> None:
    code, words = DEATHS[way]
    source = (
        f"def f(i, where):\n open(where, 'a').write(f'{{i}} ')\n print('hello', i)\n if i == 5:\n  {code}\n return i"
    )
    trace = tmp_path / "trace"
    tasks = rig.run(pack_function(script(source)), *[(i, str(trace)) for i in range(10)])
    rig.until(lambda: len(rig.ended) == 6 and len(rig.requeued) == 4)
    assert [e.id for e in rig.ended] == [t.id for t in tasks[:6]]
    assert [e.status for e in rig.ended] == [OK] * 5 + [LOST]
    assert [t.id for t in rig.requeued] == [t.id for t in tasks[6:]]
    assert words in why(rig.ended[5]).message
    assert rig.ended[5].output.startswith(b"hello 5")
    assert trace.read_text().split() == ["0", "1", "2", "3", "4", "5"]
    assert rig.value(lambda: 1) == 1


def test_a_crash_of_an_idle_worker_fails_no_task(rig: Rig) -> None:
    (pid,) = rig.pool.pids
    os.kill(pid, signal.SIGKILL)
    rig.until(lambda: rig.pool.pids not in ([pid], []))
    assert rig.value(lambda: 1) == 1
    assert rig.requeued == []


@pytest.mark.usefixtures("patient")
def test_a_crash_in_an_import_fails_that_task(rig: Rig, tmp_path: Path) -> None:
    from oncue.functions import pack_file

    # Only a worker has this variable: the import succeeds where it is packed.
    source = "import os\nif 'ONCUE_BLOBS' in os.environ:\n    os._exit(9)\ndef f(): pass\n"
    (tmp_path / "dies.py").write_text(source)
    packed = pack_file(tmp_path / "dies.py", "f")
    tasks = rig.run(packed, (), ())
    assert rig.end_of(tasks[0]).status == LOST
    rig.until(lambda: rig.requeued)
    assert [t.id for t in rig.requeued] == [tasks[1].id]


def test_children_of_a_killed_worker_end_with_it(rig: Rig, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def f(note: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "1000"])
        with open(note + ".tmp", "w") as out:
            out.write(str(child.pid))
        os.rename(note + ".tmp", note)
        os.kill(os.getpid(), signal.SIGKILL)

    rig.one(f, str(note))
    child = int(note.read_text())
    rig.until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_workers_exit_when_the_process_of_their_pool_is_killed(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys,select,time\nfrom pathlib import Path\nfrom oncue.endpoint.pool.pool import Pool\n"
        "p=Pool(2,Path(sys.argv[1]))\n"
        "while p.ready<2:\n for fd in select.select(p.fds(),[],[],1)[0]: p.on_readable(fd)\n"
        "print(*p.pids,flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(p)) for p in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
        _, alive = psutil.wait_procs(workers, timeout=LIMIT_S)
        assert alive == []


# ---------------------------------------------------------------- timeouts and cancels


@pytest.mark.usefixtures("patient")
def test_a_timeout_ends_the_task_only(rig: Rig) -> None:
    tasks = rig.run(
        pack_function(lambda i: time.sleep(1000) if i == 1 else i), *[(i,) for i in range(4)], timeout_ms=1_500
    )
    rig.until(lambda: len(rig.ended) == 2 and len(rig.requeued) == 2)
    assert [e.status for e in rig.ended] == [OK, TIMEOUT]
    assert "1.5 s" in why(rig.ended[1]).message
    assert [t.id for t in rig.requeued] == [t.id for t in tasks[2:]]
    assert 1.5e6 <= rig.ended[1].ended_us - rig.ended[1].started_us < 500e6
    assert rig.value(lambda: 1) == 1


def test_finally_blocks_run_and_stubborn_tasks_are_killed(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "finally"
    monkeypatch.setattr("oncue.endpoint.pool.pool.GRACE_US", int(LIMIT_S * 1e6))  # it ends by itself

    def f(note: str) -> None:
        try:
            time.sleep(1000)
        finally:
            open(note, "w").close()

    assert rig.one(f, str(note), timeout_ms=100).status == TIMEOUT
    assert note.exists()

    monkeypatch.setattr("oncue.endpoint.pool.pool.GRACE_US", 200_000)

    def stubborn() -> None:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(1000)

    assert rig.one(stubborn, timeout_ms=100).status == TIMEOUT


@pytest.mark.usefixtures("patient")
def test_cancel_of_running_and_of_queued(rig: Rig, tmp_path: Path) -> None:
    started = tmp_path / "started"

    def f(i: int, note: str) -> int:
        if i == 0:
            open(note, "w").close()
            time.sleep(1000)
        return i

    tasks = rig.run(pack_function(f), *[(i, str(started)) for i in range(4)])
    rig.wait_for(started)
    wanted = {tasks[0].id, tasks[2].id, new_uuid7()}
    assert rig.pool.cancel(wanted) == {tasks[0].id, tasks[2].id}
    rig.until(lambda: len(rig.ended) == 2 and len(rig.requeued) == 2)
    assert {e.id: e.status for e in rig.ended} == {tasks[0].id: CANCELLED, tasks[2].id: CANCELLED}
    assert {t.id for t in rig.requeued} == {tasks[1].id, tasks[3].id}
    assert rig.value(lambda: 1) == 1


@pytest.mark.usefixtures("patient")
def test_a_queued_task_is_cancelled_while_another_keeps_running(rig: Rig, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"

    def f(i: int, started: str, go: str) -> int:
        open(started, "w").close()
        while i == 0 and not os.path.exists(go):
            time.sleep(0.01)
        return i

    tasks = rig.run(pack_function(f), (0, str(started), str(go)), (1, str(started), str(go)))
    rig.wait_for(started)
    assert rig.pool.cancel({tasks[1].id}) == {tasks[1].id}
    assert rig.end_of(tasks[1]).status == CANCELLED
    go.touch()
    assert rig.end_of(tasks[0]).status == OK
    assert rig.requeued == []
    assert rig.value(lambda: 1) == 1


# ---------------------------------------------------------------- long tasks


def test_a_long_task_delays_no_other(two: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def f(i: int, note: str) -> int:
        while i == 2 and not os.path.exists(note):
            time.sleep(0.01)
        return i

    tasks = two.run(pack_function(f), *[(i, str(go)) for i in range(6)])
    two.until(lambda: len(two.ended) == 2 and len(two.requeued) == 3)
    assert [e.id for e in two.ended] == [t.id for t in tasks[:2]]
    assert [t.id for t in two.requeued] == [t.id for t in tasks[3:]]
    go.touch()
    assert two.end_of(tasks[2]).status == OK
    assert len(two.ended) == 3


def test_started_and_output_of_a_running_task(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def f(note: str) -> None:
        print("line one", flush=True)
        while not os.path.exists(note):
            time.sleep(0.01)
        print("line two")

    (task,) = rig.run(pack_function(f), (str(go),))
    rig.until(lambda: rig.events.started and rig.events.output)
    assert rig.events.started[0][:2] == (task.id, 1)
    assert rig.events.output == [(task.id, 1, 0, b"line one\n")]
    go.touch()
    ended = rig.end_of(task)
    assert ended.output == b"line one\nline two\n"
    assert rig.events.started[0][2] == ended.started_us


def test_chunk_size_follows_the_duration_of_tasks(rig: Rig) -> None:
    short, long = pack_function(lambda: None), pack_function(lambda: time.sleep(0.02))
    assert rig.pool.chunk_size(short.id) == 1
    deadline = time.monotonic() + LIMIT_S
    while rig.pool.chunk_size(short.id) < 16:  # it grows with measured durations: sooner on a quiet machine
        assert time.monotonic() < deadline
        rig.end_of(rig.run(short, *[()] * rig.pool.chunk_size(short.id))[-1])
    rig.until(lambda: rig.pool.room() == 2)
    rig.end_of(rig.run(long, ())[0])
    assert rig.pool.chunk_size(long.id) == 1
    rig.run(long, ())
    assert rig.pool.room() == 0


def test_a_chunk_is_returned_when_no_worker_has_room(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def f(note: str) -> None:
        while not os.path.exists(note):
            time.sleep(0.01)

    packed = pack_function(f)
    rig.run(packed, (str(go),))
    assert rig.pool.room() == 0
    task = TaskRecord(new_uuid7(), pack_args((str(go),), {}))
    rig.pool.run(packed.id, packed.body, 0, 1, [task])
    rig.drain()
    assert [t.id for t in rig.requeued] == [task.id]
    go.touch()


# ---------------------------------------------------------------- start and end


def test_workers_that_cannot_start_are_reported_and_retried_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncue.endpoint.pool.worker_starts.FAILED_STARTS", 2)
    pool = Pool(1, tmp_path, env={"PYTHONHOME": "/nowhere", "PATH": "/bin"})
    rig = Rig(pool, tmp_path)
    try:
        rig.until(lambda: pool.trouble)
        assert "as soon as they start" in pool.trouble
        assert "encodings" in pool.trouble
        assert pool.room() == 0
        assert pool.next_wake_us is not None
    finally:
        pool.close(0)


@pytest.mark.usefixtures("patient")
def test_close_waits_for_running_tasks_and_returns_the_rest(tmp_path: Path) -> None:
    pool = Pool(1, tmp_path)
    rig = Rig(pool, tmp_path)
    rig.ready()
    note, go = tmp_path / "note", tmp_path / "go"

    def f(i: int, note: str, go: str) -> int:
        open(note, "w").close()
        while not os.path.exists(go):
            time.sleep(0.01)
        return i

    tasks = rig.run(pack_function(f), *[(i, str(note), str(go)) for i in range(2)])
    rig.wait_for(note)
    (worker,) = pool._workers.values()

    def let_it_end() -> None:
        while worker.stop is None:
            time.sleep(0.001)
        go.touch()

    with ThreadPoolExecutor(1) as aside:
        aside.submit(let_it_end)
        pool.close(10)
    rig.drain()
    assert [(e.id, e.status) for e in rig.ended] == [(tasks[0].id, OK)]
    assert [t.id for t in rig.requeued] == [tasks[1].id]
    assert pool.pids == []


def test_close_without_grace_ends_running_tasks_as_lost(tmp_path: Path) -> None:
    pool = Pool(1, tmp_path)
    rig = Rig(pool, tmp_path)
    rig.ready()
    note = tmp_path / "note"

    def f(note: str) -> None:
        open(note, "w").close()
        time.sleep(1000)

    (task,) = rig.run(pack_function(f), (str(note),))
    rig.wait_for(note)
    pool.close(0)
    rig.drain()
    assert [(e.id, e.status) for e in rig.ended] == [(task.id, LOST)]
    assert "stopped" in why(rig.ended[0]).message


def test_idle_workers_are_small(rig: Rig) -> None:
    assert psutil.Process(rig.pool.pids[0]).memory_info().rss < 40 << 20
    assert not {"asyncio", "zmq", "aiohttp"} & set(rig.value(lambda: list(sys.modules)))


def test_many_functions_in_one_worker(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.endpoint.pool.worker_process.FUNCTIONS", 3)
    packed = [pack_function(script(f"def f(): return {i}")) for i in range(8)]
    for _ in range(2):
        for i, p in enumerate(packed):
            assert unpack(rig.end_of(rig.run(p, ())[0]).value) == i


def test_pickled_payloads(rig: Rig) -> None:
    task = TaskRecord(new_uuid7(), pack([[{1, 2}], {}]))
    packed = pack_function(lambda s: sorted(s))
    rig.pool.run(packed.id, packed.body, 0, 1, [task])
    assert unpack(rig.end_of(task).value) == [1, 2]


def test_one_list_passed_twice_is_one_list(rig: Rig) -> None:
    f = script("def f(a, b, box):\n    a.append(1)\n    return b, a is b, box['again'] is a, [a, b, box]\n")
    packed, row = pack_function(f), [0]
    task = TaskRecord(new_uuid7(), pack_args((row, row), {"box": {"again": row}}))
    rig.submit(packed, [task])
    b, same, inside, result = unpack(rig.end_of(task).value)
    assert (b, same, inside) == ([0, 1], True, True)
    assert result[0] is result[1] is result[2]["again"]
    flat = rig.value(lambda n: [[0] * n] * 2, 3)
    assert flat == [[0, 0, 0]] * 2
    assert flat[0] is flat[1]


def test_bytecode_of_another_python_fails_its_task_and_no_worker(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Scan:\n    def name(self): return 'a'\n", space)
    with monkeypatch.context() as patched:
        patched.setattr("oncue.pickles.code.PYTHON", "3.9")
        args = pack_args((space["Scan"](),), {})
    packed, pids = pack_function(lambda s: s.name()), rig.pool.pids
    task = TaskRecord(new_uuid7(), args)
    rig.submit(packed, [task])
    failure = why(rig.end_of(task))
    assert failure.type == "oncue.CannotLoad"
    assert "bytecode of Python 3.9, which the worker's Python" in failure.message
    assert "a .py file that the function imports" in failure.remedy
    assert rig.value(lambda s: s.name(), space["Scan"]()) == "a"
    assert rig.pool.pids == pids


def test_an_argument_that_cannot_be_unpickled_shows_the_users_lines(rig: Rig) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(
        "class Torn:\n    def __setstate__(self, state): raise OSError('torn')\n    def __getstate__(self): return 1",
        space,
    )
    failure = why(rig.one(lambda t: t, space["Torn"]()))
    assert failure.type == "oncue.CannotLoad"
    assert "cannot be read by the worker's Python" in failure.message
    assert "OSError: torn" in failure.traceback
    assert "__setstate__" in failure.traceback


def test_a_class_changed_by_a_task_is_returned_as_the_callers_class(rig: Rig) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Scan:\n    seen = []\n    total = 0\ndef f():\n    Scan.total += 1\n    return Scan()\n", space)
    for _ in range(2):
        assert type(rig.value(space["f"])) is space["Scan"]
    assert space["Scan"].total == 0


def test_state_that_a_warm_worker_keeps(rig: Rig, tmp_path: Path) -> None:
    """The state that docs/endpoints.md names."""
    text = "import os\nSEEN = []\n{}\ndef f(x):\n    SEEN.append(x)\n    return SEEN, os.getpid()\ndef g():\n    return SEEN\n"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(text.format(""), space)
    seen, pid = rig.value(space["f"], 1)
    assert seen == [1]
    assert rig.value(space["f"], 2) == ([1, 2], pid)  # the same function in the same process
    assert space["SEEN"] == []
    assert rig.value(space["g"]) == []  # by value, each function has its own
    space["SEEN"].append("here")
    assert rig.value(space["f"], 3)[0] == ["here", 3]  # another value of a global is another function
    for made, expected in (("", [1, 2]), ("# edited", [2])):
        (tmp_path / "job.py").write_text(text.format(made))
        if not made:
            assert unpack(rig.end_of(rig.run(pack_file(tmp_path / "job.py", "f"), (1,))[0]).value)[0] == [1]
        assert unpack(rig.end_of(rig.run(pack_file(tmp_path / "job.py", "f"), (2,))[0]).value)[0] == expected
        assert (
            unpack(rig.end_of(rig.run(pack_file(tmp_path / "job.py", "g"), ())[0]).value) == expected
        )  # of one file: shared
    assert why(rig.one(script("def f():\n    import time\n    time.sleep(60)\n"), timeout_ms=100)).type
    seen, other = rig.value(space["f"], 4)
    assert (seen, other != pid) == (["here", 4], True)  # a fresh worker
