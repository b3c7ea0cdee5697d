"""Functions that attack their worker: each costs at most its own task; the next tasks run right."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oncue.functions import pack_function
from oncue.protocol.payload import unpack
from oncue.protocol.records import ERROR, LOST, OK, TIMEOUT, Ended
from tests.pool_rig import Rig, rig_in, script, why

LINUX = sys.platform == "linux"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path) as found:
        yield found


#: What a function does -> the statuses that its task may end with.
ATTACKS: dict[str, tuple[str, set[int]]] = {
    # its descriptors
    "write 4 bytes to each": ("for n in range(3, 70000): put(n, b'\\0\\0\\0\\7')", {OK, LOST}),
    "write a magic to each": ("for n in range(3, 70000): put(n, b'\\xc1onc')", {OK, LOST}),
    "write a frame of nonsense": ("for n in range(3, 70000): put(n, b'\\xc1onc' + bytes(100))", {OK, LOST}),
    "write much to each": ("for n in range(3, 70000): put(n, b'x' * 70000)", {OK, LOST}),
    "write and go on": ("for n in range(3, 70000): put(n, b'1234')\n time.sleep(600)", {LOST}),
    "write zeros at the start": ("for n in range(3, 70000): pwrite(n, bytes(64))", {OK, LOST}),
    "write ones at the start": ("for n in range(3, 70000): pwrite(n, b'\\xff' * 64)", {OK, LOST}),
    "truncate each": ("for n in range(3, 70000): tryit(os.ftruncate, n, 0)", {OK, LOST}),
    "read from each": (
        "for n in range(3, 70000): tryit(os.set_blocking, n, False); tryit(os.read, n, 7)",
        {OK, LOST},
    ),
    "close all": ("os.closerange(3, 70000)", {OK, LOST}),
    "close all, with 0 to 2": ("os.closerange(0, 70000)", {OK, LOST}),
    "put /dev/null over all": (
        "a = os.open('/dev/null', os.O_RDWR)\n for n in fds(): tryit(os.dup2, a, n)",
        {OK, LOST},
    ),
    "put a file over all": (
        "a = os.open('f', os.O_RDWR | os.O_CREAT)\n for n in fds(): tryit(os.dup2, a, n)",
        {OK, LOST},
    ),
    "put them over each other": ("a = fds()\n for n in a: tryit(os.dup2, a[0], n)", {OK, LOST}),
    # processes
    "leave children": ("import subprocess\n for i in range(3): subprocess.Popen(['sleep', '600'])", {OK}),
    "leave a forked child": ("if not os.fork(): time.sleep(600)", {OK}),
    "leave a child in a session of its own": (
        "pid = os.fork()\n if not pid: os.setsid(); time.sleep(5); os._exit(0)",
        {OK},
    ),
    "leave a child that holds the pipes, and die": (
        "import ctypes\n if not ctypes.CDLL(None).fork(): time.sleep(5); os.kill(os.getpid(), 9)\n os._exit(3)",
        {LOST},
    ),
    "return from a fork in C": ("import ctypes\n ctypes.CDLL(None).fork()", {OK}),
    "stop oneself": ("os.kill(os.getpid(), signal.SIGSTOP)", {TIMEOUT}),
    "kill one's group": ("os.kill(0, signal.SIGKILL)", {LOST}),
    "leave one's group": ("tryit(os.setpgid, 0, os.getppid()); tryit(os.setsid)", {OK}),
    "exit": ("os._exit(0)", {LOST}),
    "exit in a thread": ("threading.Thread(target=sys.exit).start()", {OK}),
    "ignore signals and hang": (
        "for n in range(1, 32): tryit(signal.signal, n, signal.SIG_IGN)\n"
        " signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n while True: tryit(time.sleep, 1)",
        {TIMEOUT},
    ),
    "catch everything": ("while True:\n  try: time.sleep(9)\n  except BaseException: pass", {TIMEOUT}),
    "die later": ("import faulthandler; faulthandler.dump_traceback_later(1, exit=True)", {OK}),
    "alarm later": ("signal.alarm(1)", {OK}),
    # settings of the process
    "change umask": ("os.umask(0o777)", {OK}),
    "remove one's folder": ("import shutil; shutil.rmtree(os.getcwd())", {OK}),
    "remove one's folder by a child": ("import subprocess; subprocess.run(['rm', '-rf', os.getcwd()])", {OK}),
    "leave one's folder in C": ("import ctypes; ctypes.CDLL(None).chdir(b'/')", {OK}),
    "lower open files": ("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (9, 9))", {OK, ERROR}),
    "lower open files in C": (
        "import ctypes; ctypes.CDLL(None).setrlimit(7, (ctypes.c_long * 2)(9, 9))",
        {OK, ERROR},
    ),
    "lower memory": ("import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 20, 1 << 20))", {OK, ERROR, LOST}),
    "lower file size": ("import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, 0)); print('x')", {OK, ERROR, LOST}),
    "lower recursion": ("sys.setrecursionlimit(60)", {OK, ERROR}),
    "trace": ("sys.settrace(lambda *a: 1 / 0)", {OK, ERROR}),
    "profile": ("sys.setprofile(lambda *a: 1 / 0)", {OK, ERROR}),
    "be nice": ("os.nice(5)", {OK}),
    "change the locale": ("import locale; tryit(locale.setlocale, locale.LC_ALL, 'C')", {OK}),
    "change the time zone": ("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()", {OK}),
    "clear the environment": ("os.environ.clear()", {OK}),
    "hear and refuse all": ("sys.addaudithook(lambda name, args: 1 / 0 if name in ('open', 'exec') else 0)", {OK}),
    "stop the collector": ("import gc; gc.disable(); gc.set_threshold(1)", {OK}),
    # the interpreter
    "break builtins": ("import builtins; builtins.len = builtins.isinstance = None", {OK, LOST, ERROR}),
    "break os": ("os.write = os.read = os.getcwd = lambda *a: 0", {OK, LOST, ERROR}),
    "break time": ("time.time_ns = time.time = time.monotonic = lambda: 0", {OK, LOST, ERROR}),
    "break msgspec": ("import msgspec; msgspec.msgpack.Encoder = msgspec.convert = msgspec.Struct = None", {OK}),
    "break pickle": ("import pickle; pickle.loads = pickle.dumps = pickle.Unpickler = None", {OK}),
    "clear sys.modules": ("sys.modules.clear()", {OK, LOST, ERROR}),
    "delete from sys.modules": (
        "for n in list(sys.modules):\n  if n[:2] in ('on', 'ms', 'pi'): del sys.modules[n]",
        {OK},
    ),
    "no streams": ("sys.stdout = sys.stderr = sys.__stdout__ = None", {OK}),
    "close streams": ("sys.stdout.close(); os.close(1); os.close(2)", {OK}),
    "recurse": ("def r(): return r()\n r()", {ERROR}),
    "print 1 GB without a line": ("[os.write(1, b'x' * (1 << 20)) for i in range(1024)]", {OK}),
    # what is returned and raised
    "raise what cannot be shown": (
        "class E(Exception):\n  def __str__(self): os._exit\n  __repr__ = __str__\n raise E",
        {ERROR},
    ),
    "raise what exits when shown": ("class E(Exception):\n  def __str__(self): sys.exit(3)\n raise E", {ERROR}),
    "raise what hangs when shown": ("class E(Exception):\n  def __str__(self): time.sleep(99)\n raise E", {TIMEOUT}),
    "raise a class without a name": (
        "class M(type):\n  __module__ = property(lambda s: 1 / 0)\n class E(Exception, metaclass=M): pass\n raise E",
        {ERROR},
    ),
    "raise 100 MB": ("raise ValueError('x' * 10**8)", {ERROR}),
    "raise a circle": (
        "from oncue.errors import OncueError\n e = OncueError('x', remedy='y')\n e.__cause__ = e\n e.__context__ = e\n raise e",
        {ERROR},
    ),
    "raise a long name": ("raise type('E' * 10**7, (Exception,), {})", {ERROR}),
    "return what exits when pickled": ("class R:\n  def __reduce__(self): sys.exit(3)\n return R()", {ERROR}),
    "return what hangs when pickled": ("class R:\n  def __reduce__(self): time.sleep(99)\n return R()", {TIMEOUT}),
    "return itself": ("a = []\n a.append(a)\n return a", {OK, ERROR}),
    "return without end": ("import itertools; return itertools.count()", {ERROR, OK}),
    "return surrogates": ("return '\\ud800' * 200000", {OK}),
}
#: These hold their worker until they are ended.
HANG = {name for name, (_, statuses) in ATTACKS.items() if TIMEOUT in statuses}
ONLY_LINUX = {"lower open files in C", "truncate each", "write zeros at the start", "write ones at the start"}

PREAMBLE = """
import os, signal, sys, threading, time
def tryit(f, *a):
    try: return f(*a)
    except (OSError, ValueError): pass
def put(n, data):
    tryit(os.set_blocking, n, False)
    tryit(os.write, n, data)
def pwrite(n, data):
    tryit(os.pwrite, n, data, 0)
def fds():
    return [n for n in range(3, 5000) if tryit(os.fstat, n)]
"""


def attack(code: str) -> Any:
    return script(PREAMBLE + f"def f():\n {code}")


def state() -> dict[str, Any]:
    """Return what the next task finds."""
    import gc
    import locale
    import resource
    import time

    print("hello")
    mask = os.umask(0)
    os.umask(mask)
    return {
        "cwd": os.getcwd(),
        "files": [open("made", "w").close(), os.stat("made").st_mode][1],
        "umask": mask,
        "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)],
        "recursion": sys.getrecursionlimit(),
        "tracing": (sys.gettrace(), sys.getprofile()),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "locale": locale.setlocale(locale.LC_ALL),
        "zone": time.localtime(0).tm_hour,
        "environment": dict(os.environ),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGUSR1, signal.SIGINT)],
        "works": (len([1]), isinstance(1, int), sum(map(int, "12"))),
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_at_most_its_task(rig: Rig, name: str) -> None:
    if name in ONLY_LINUX and not LINUX:
        pytest.skip("the attack is by Linux's descriptors of shared memory: run it on Linux")
    code, statuses = ATTACKS[name]
    before = rig.one(state)
    assert before.status == OK, why(before)
    began = time.monotonic()

    ended = rig.one(attack(code), timeout_ms=500 if name in HANG else 60_000)

    assert ended.status in statuses, ended if ended.status == OK else why(ended)
    if ended.status != OK:
        assert why(ended).message or why(ended).type
        assert len(ended.value) < 100_000
    afterwards = [rig.one(state) for _ in range(2)]
    for after in afterwards:
        assert after.status == OK, why(after)
        assert unpack(after.value) == unpack(before.value)
        assert after.output == b"hello\n"
    assert rig.one(attack("return 'again'")).status == OK
    assert len(rig.ended) == 5, "each task ends once"
    assert time.monotonic() - began < 30, "nothing waits for what will not come"


def ends(rig: Rig, function: Any, count: int) -> list[Ended]:
    packed = pack_function(function)
    return [rig.end_of(t) for t in rig.run(packed, *[(n,) for n in range(count)])]


def test_garbage_in_the_channel_is_seen_at_once_and_named(rig: Rig) -> None:
    pid = rig.pool.pids
    ended = rig.one(attack("for n in range(3, 70000): put(n, b'1234')\n time.sleep(600)"))
    assert ended.status == LOST
    assert "descriptors" in why(ended).message
    assert "opened itself" in why(ended).remedy
    rig.ready()
    assert rig.pool.pids != pid


def test_results_that_were_read_are_not_run_again(rig: Rig, tmp_path: Path) -> None:
    """Tasks of the same chunk, before and after the one that writes garbage, run once each."""
    note = tmp_path / "note"
    source = PREAMBLE + (
        f"def f(i):\n with open({str(note)!r}, 'a') as out: out.write(f'{{i}} ')\n"
        " if i == 2:\n  for n in range(3, 70000): put(n, b'1234')\n return i"
    )
    found = ends(rig, script(source), 5)
    assert sorted(note.read_text().split()) == ["0", "1", "2", "3", "4"]
    assert {e.status for e in found} <= {OK, LOST}
    assert len(rig.ended) == 5


def test_forged_results_of_other_tasks_are_not_taken(rig: Rig) -> None:
    """A frame that is right in itself, with an id that is not in the chunk."""

    def forge() -> None:
        from oncue.endpoint.pool.protocol import ChunkResults, pack
        from oncue.protocol.records import Ended

        frame: Any = sys._getframe()
        while type(frame.f_locals.get("self")).__name__ != "Worker":
            frame = frame.f_back
        worker = frame.f_locals["self"]
        for n in range(3):
            os.write(worker.fd_out, pack(ChunkResults(n, [Ended(b"x" * 16, 1, 0, 1, 2, b"\xc0", b"")], True)))
        time.sleep(600)

    ended = rig.one(forge)
    assert ended.status == LOST
    assert [e.id for e in rig.ended] == [ended.id]
    assert rig.value(lambda: 1) == 1


def test_a_worker_that_scribbles_in_shared_memory_does_not_stop_the_pool(rig: Rig) -> None:
    def scribble() -> None:
        import random

        frame: Any = sys._getframe()
        while type(frame.f_locals.get("self")).__name__ != "Worker":
            frame = frame.f_back
        worker = frame.f_locals["self"]
        end = time.monotonic() + 2
        while time.monotonic() < end:
            worker.progress.numbers[random.randrange(8)] = random.choice([-1, -(1 << 63), (1 << 63) - 1, 1, 7, 1 << 40])

    ended = rig.one(scribble, timeout_ms=5_000)
    assert ended.status in (OK, LOST, TIMEOUT, ERROR)
    assert rig.value(lambda: 1) == 1


def test_a_task_that_stops_its_worker_does_not_stop_the_next_tasks(rig: Rig) -> None:
    """It writes the pool's number in shared memory, at once or in a thread that stays."""

    def stop(stays: bool) -> None:
        frame: Any = sys._getframe()
        while type(frame.f_locals.get("self")).__name__ != "Worker":
            frame = frame.f_back
        numbers = frame.f_locals["self"].progress.numbers

        def write() -> None:
            numbers[3] = -1
            while stays:
                numbers[3] = 0

        threading.Thread(target=write, daemon=True).start()
        time.sleep(0.1)

    for stays in (False, True):
        assert rig.one(stop, stays).status == OK
        assert [rig.value(lambda: 5) for _ in range(3)] == [5, 5, 5]


def test_output_of_a_thread_left_behind_is_in_no_other_functions_output(rig: Rig) -> None:
    def leave() -> None:
        def talk() -> None:
            while True:
                print("leak")
                time.sleep(0.001)

        threading.Thread(target=talk, daemon=True).start()

    assert rig.one(leave).status == OK
    for _ in range(3):
        assert rig.one(script("import time\ndef f():\n time.sleep(.05)\n print('mine')")).output == b"mine\n"


def test_a_stopped_worker_is_replaced_when_it_does_not_begin(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.endpoint.pool.pool.STUCK_S", 0.5)
    (pid,) = rig.pool.pids
    os.kill(pid, signal.SIGSTOP)
    assert rig.value(lambda: 5) == 5
    assert rig.pool.pids != [pid]
    assert len(rig.ended) == 1


def test_a_task_whose_workers_always_die_unseen_is_lost_in_the_end(rig: Rig) -> None:
    """It makes its worker look idle, and dies."""

    def hide() -> None:
        frame: Any = sys._getframe()
        while type(frame.f_locals.get("self")).__name__ != "Worker":
            frame = frame.f_back
        frame.f_locals["self"].progress.numbers[0] = 0
        os._exit(3)

    assert rig.one(hide).status == LOST
    assert len(rig.ended) == 1
    assert rig.value(lambda: 1) == 1


def test_a_task_that_hides_the_tasks_before_it_leaves_none_without_an_end(rig: Rig) -> None:
    source = (
        "import os, sys\ndef f(i):\n if i == 1:\n  frame = sys._getframe()\n"
        "  while type(frame.f_locals.get('self')).__name__ != 'Worker': frame = frame.f_back\n"
        "  frame.f_locals['self'].progress.numbers[1] = 4\n  os._exit(3)\n return i"
    )
    found = ends(rig, script(source), 6)
    assert {e.status for e in found} <= {OK, LOST}
    assert len({e.id for e in rig.ended}) == 6


@pytest.mark.skipif(not LINUX, reason="a memfd is sealed, and orphans are adopted, on Linux only")
@pytest.mark.parametrize("detached", [False, True])
def test_output_of_children_left_behind_does_not_fill_the_memory(rig: Rig, detached: bool) -> None:
    """A child of an ended task ends too; that of a detached function can write no more."""
    f = script(
        f"import oncue, subprocess\n@oncue.function(detached={detached})\n"
        "def f(): return subprocess.Popen(['cat', '/dev/zero']).pid\n"
    )
    pid = rig.value(f)
    rig.until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert rig.value(lambda: 1) == 1
