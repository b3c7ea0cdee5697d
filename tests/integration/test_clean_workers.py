"""A worker is as clean for its next task as for its first: state, output, processes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oncue.functions import pack_file, pack_function
from oncue.protocol.payload import unpack
from oncue.protocol.records import OK
from tests.pool_rig import Rig, rig_in, script, why

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a worker adopts orphans on Linux only")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path) as found:
        yield found


# ---------------------------------------------------------------- state of the process

#: name -> (what reads it, what a task does to it)
STATE = {
    "umask": ("(os.umask(0o22), os.umask(0o22))[1]", "os.umask(0)"),
    "recursion limit": ("sys.getrecursionlimit()", "sys.setrecursionlimit(5000)"),
    "switch interval": ("sys.getswitchinterval()", "sys.setswitchinterval(0.5)"),
    "directory": ("os.getcwd()", "os.chdir('/')"),
    "environ": ("dict(os.environ)", "os.environ['MESS'] = '1'"),
    "another environ": ("dict(os.environ)", "os.environ = {'MESS': '1'}; time.sleep(0.01)"),
    "sys.path": ("list(sys.path)", "sys.path.insert(0, '/mess')"),
    "another sys.path": ("list(sys.path)", "sys.path = ['/mess']"),
    "argv": ("list(sys.argv)", "sys.argv = ['mess', '-v']"),
    "stdin": ("repr(sys.stdin)", "sys.stdin = io.StringIO('x')"),
    "excepthook": ("repr(sys.excepthook)", "sys.excepthook = print"),
    "displayhook": ("repr(sys.displayhook)", "sys.displayhook = print"),
    "threading.excepthook": ("repr(threading.excepthook)", "threading.excepthook = print; time.sleep(0.01)"),
    "builtins": ("repr(open)", "import builtins; builtins.open = None; time.sleep(0.01)"),
    "signal": ("repr(signal.getsignal(signal.SIGUSR1))", "signal.signal(signal.SIGUSR1, print)"),
    "timer": ("signal.getitimer(signal.ITIMER_VIRTUAL)[0]", "signal.setitimer(signal.ITIMER_VIRTUAL, 100)"),
    "signal mask": ("list(signal.pthread_sigmask(signal.SIG_BLOCK, []))", "signal.pthread_sigmask(signal.SIG_BLOCK, [12])"),
    "locale": ("locale.setlocale(locale.LC_ALL)", "locale.setlocale(locale.LC_ALL, 'C.UTF-8')"),
    "warnings": ("[str(f) for f in warnings.filters]", "warnings.simplefilter('error')"),
    "showwarning": ("repr(warnings.showwarning)", "warnings.showwarning = None; time.sleep(0.01)"),
    "decimal": ("decimal.getcontext().prec", "decimal.getcontext().prec = 3"),
    "decimal, set": ("decimal.getcontext().prec", "decimal.setcontext(decimal.Context(prec=3))"),
    "root logger": (
        "[logging.root.level, len(logging.root.handlers), logging.root.manager.disable]",
        "logging.basicConfig(level=10); logging.disable(50)",
    ),
    "a logger": (
        "[logging.getLogger('a').level, len(logging.getLogger('a').handlers)]",
        "logging.getLogger('a').addHandler(logging.StreamHandler()); logging.getLogger('a').setLevel(1)",
    ),
    "socket": ("socket.getdefaulttimeout()", "socket.setdefaulttimeout(5)"),
    "gc": ("[gc.isenabled(), gc.get_threshold()]", "gc.disable(); gc.set_threshold(1)"),
    "limits": (
        "resource.getrlimit(resource.RLIMIT_CORE)",
        "resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))",
    ),
    "trace": ("repr(sys.gettrace())", "sys.settrace(lambda *a: None)"),
    "stack of threads": ("threading.stack_size()", "threading.stack_size(1 << 20)"),
    "csv": ("csv.field_size_limit()", "csv.field_size_limit(10)"),
    "tracemalloc": ("tracemalloc.is_tracing()", "tracemalloc.start()"),
    "event loop": ("asyncio.get_event_loop().is_closed()", "asyncio.get_event_loop().close()"),
    "no event loop": ("asyncio.get_event_loop().is_closed()", "asyncio.run(asyncio.sleep(0))"),
    "loop policy": (
        "type(asyncio.get_event_loop_policy()).__name__",
        "asyncio.set_event_loop_policy(type('Mine', (asyncio.DefaultEventLoopPolicy,), {})())",
    ),
    "start method": ("multiprocessing.get_start_method(True)", "multiprocessing.set_start_method('spawn'); time.sleep(0.01)"),
    "temporary folder": ("str(tempfile.tempdir)", "tempfile.tempdir = '/mess'; time.sleep(0.01)"),
    "https": (
        "ssl._create_default_https_context.__name__",
        "ssl._create_default_https_context = ssl._create_unverified_context; time.sleep(0.01)",
    ),
    "process name": (
        "multiprocessing.current_process().name",
        "multiprocessing.current_process().name = 'mess'; time.sleep(0.01)",
    ),
    "thread name": ("threading.current_thread().name", "threading.current_thread().name = 'mess'; time.sleep(0.01)"),
    "calendar": ("calendar.firstweekday()", "calendar.setfirstweekday(6)"),
    "asyncgen hooks": ("repr(sys.get_asyncgen_hooks().firstiter)", "sys.set_asyncgen_hooks(firstiter=print)"),
}  # fmt: skip
IMPORTS = (
    "import asyncio, calendar, csv, decimal, gc, io, locale, logging, os, resource, signal, socket, sys, threading, time"
    ", tracemalloc, multiprocessing, ssl, tempfile, warnings\n"
)


@pytest.mark.parametrize("imports", ["above", "inside"])
def test_the_next_task_finds_the_state_of_the_first(rig: Rig, imports: str) -> None:
    """Of the same function, and of another; in one chunk, and in the next one."""
    for name, (read, change) in STATE.items():
        inside = IMPORTS.replace("import", " import") if imports == "inside" else ""
        above = IMPORTS if imports == "above" else ""
        both = script(f"{above}def f(mess):\n{inside} before = {read}\n if mess:\n  {change}\n return before\n")
        other = script(f"{above}def f():\n{inside} return {read}\n")
        tasks = rig.run(pack_function(both), (False,), (True,), (False,), (True,))
        found = [unpack_ok(rig.end_of(t)) for t in tasks]
        assert found == [found[0]] * 4, name
        assert rig.value(both, False) == found[0], name
        assert rig.value(other) == found[0], name


def test_what_a_short_task_assigns_is_restored_for_the_next_chunk(rig: Rig) -> None:
    f = script("import tempfile\ndef f():\n found = tempfile.tempdir\n tempfile.tempdir = '/mess'\n return found\n")
    assert [rig.value(f) for _ in range(3)] == [None] * 3


def unpack_ok(ended: Any) -> Any:
    assert ended.status == OK, why(ended)
    return unpack(ended.value)


def test_a_task_that_seeds_makes_no_later_one_repeat_its_numbers(rig: Rig) -> None:
    f = script("import random\ndef f(seed):\n if seed: random.seed(1)\n return random.random()\n")
    found = [rig.value(f, seed) for seed in (True, False, True, False)]
    assert found[0] == found[2]
    assert found[1] != found[3]


def test_settings_of_numpy_are_restored(rig: Rig) -> None:
    pytest.importorskip("numpy", reason="numpy is not installed: pip install numpy")
    f = script(
        "import numpy as np\ndef f():\n"
        " found = np.geterr()['divide'], np.get_printoptions()['precision'], np.random.random()\n"
        " np.seterr(divide='raise')\n np.set_printoptions(precision=2)\n np.random.seed(1)\n return found\n"
    )
    found = [rig.value(f) for _ in range(3)]
    assert [x[:2] for x in found] == [("warn", 8)] * 3
    assert len({x[2] for x in found}) == 3


def test_what_an_import_sets_up_is_of_its_function_only(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import asyncio, decimal, logging, os, warnings\n"
        "if 'ONCUE_WORKER' in os.environ:  # not where it is packed\n"
        "    loop = asyncio.new_event_loop()\n    asyncio.set_event_loop(loop)\n"
        "    logging.basicConfig(level=10)\n    os.environ['MINE'] = '1'\n    decimal.getcontext().prec = 7\n"
        "    warnings.simplefilter('error')\n"
        "def f():\n"
        "    found = [logging.root.level, os.environ['MINE'], decimal.getcontext().prec, warnings.filters[0][0]]\n"
        "    found.append(loop.run_until_complete(asyncio.sleep(0, 'loop')))\n"
        "    logging.root.setLevel(50)\n    decimal.getcontext().prec = 3\n    del os.environ['MINE']\n"
        "    warnings.simplefilter('ignore')\n    return found\n"
    )
    packed = pack_file(tmp_path / "job.py", "f")
    other = script(
        "import decimal, logging, os, warnings\n"
        "def f(): return [logging.root.level, os.environ.get('MINE'), decimal.getcontext().prec, warnings.filters[0][0]]"
    )
    plain = [30, None, 28, rig.value(other)[3]]
    for _ in range(3):
        (task,) = rig.run(packed, ())
        assert unpack_ok(rig.end_of(task)) == [10, "1", 7, "error", "loop"]
        assert rig.value(other) == plain


def test_a_context_variable_ends_with_its_task(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import contextvars\nV = contextvars.ContextVar('v', default=0)\n"
        "def f():\n found = V.get()\n V.set(1)\n return found\n"
    )
    tasks = rig.run(pack_file(tmp_path / "job.py", "f"), (), (), ())
    assert [unpack_ok(rig.end_of(t)) for t in tasks] == [0, 0, 0]


def test_a_module_that_changes_the_directory_has_it_changed_in_each_task(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os\nos.chdir('/')\ndef f():\n found = os.getcwd()\n os.chdir('/tmp')\n return found\n"
    )
    home = rig.value(os.getcwd)
    for _ in range(2):
        tasks = rig.run(pack_file(tmp_path / "job.py", "f"), (), ())
        assert [unpack_ok(rig.end_of(t)) for t in tasks] == ["/", "/"]
        assert rig.value(os.getcwd) == home


def test_a_notebooks_function_runs_beside_its_files(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "flat.txt").write_text("flat")
    monkeypatch.chdir(tmp_path)
    f = script(
        "import oncue, pathlib\n@oncue.function(files=['data'])\n"
        "def f(): return pathlib.Path('data/flat.txt').read_text()\n"
    )
    for _ in range(2):
        assert f() == rig.value(f) == "flat"
        assert rig.value(os.path.exists, "data") is False


# ---------------------------------------------------------------- output

LATE = {
    "thread": "threading.Thread(target=talk).start()",
    "raw thread": "_thread.start_new_thread(talk, ())",
    "thread of a thread": "threading.Thread(target=lambda: threading.Thread(target=talk).start()).start()",
    "timer": "threading.Timer(0.05, talk).start()",
    "executor": "concurrent.futures.ThreadPoolExecutor().submit(talk)",
    "fork": "os.fork() or (talk(), os._exit(0))",
    "command": "subprocess.Popen(['sh', '-c', 'while :; do echo late; sleep 0.01; done'])",
    "session": "subprocess.Popen(['sh', '-c', 'while :; do echo late; sleep 0.01; done'], start_new_session=True)",
    "shell": "os.system('(while :; do echo late; sleep 0.01; done) &')",
    "process": "multiprocessing.get_context('fork').Process(target=talk).start()",
}


@pytest.mark.parametrize("way", LATE)
def test_what_is_printed_after_a_task_is_in_no_other_tasks_log(rig: Rig, way: str) -> None:
    source = (
        "import _thread, concurrent.futures, multiprocessing, os, subprocess, sys, threading, time\n"
        "def talk():\n end = time.monotonic() + 5\n while time.monotonic() < end:\n  print('late'); time.sleep(0.005)\n"
        f"def f(first):\n print('mine')\n if first:\n  {LATE[way]}\n time.sleep(0.1)\n return None\n"
    )
    f = script(source)
    assert rig.one(f, True).output.startswith(b"mine\n")
    assert [rig.one(f, False).output for _ in range(3)] == [b"mine\n"] * 3
    assert rig.one(lambda: time.sleep(0.1)).output == b""


# ---------------------------------------------------------------- processes

LEFT = {
    "command": "subprocess.Popen(['sleep', '1000']).pid",
    "session": "subprocess.Popen(['sleep', '1000'], start_new_session=True).pid",
    "group": "subprocess.Popen(['sleep', '1000'], process_group=0).pid",
    "daemon": "daemon()",
    "environment": "subprocess.Popen(['sleep', '1000'], start_new_session=True, env={}).pid",
    "process": "start(multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,)))",
    "pool": "kept_pool()",
    "deaf": "subprocess.Popen(['sh', '-c', 'trap \"\" TERM HUP INT; sleep 1000'], start_new_session=True).pid",
}
LEAVES = (
    "import multiprocessing, os, subprocess, time\nKEPT = []\n"
    "def start(p):\n p.start()\n KEPT.append(p)\n return p.pid\n"
    "def kept_pool():\n KEPT.append(multiprocessing.get_context('fork').Pool(2))\n return KEPT[0]._pool[0].pid\n"
    "def daemon():\n"
    " r, w = os.pipe()\n"
    " if not os.fork():\n"
    "  os.setsid()\n"
    "  pid = os.fork()\n"
    "  if pid:\n"
    "   os.write(w, str(pid).encode())\n"
    "   os._exit(0)\n"
    "  time.sleep(1000)\n"
    " os.wait()\n"
    " return int(os.read(r, 100))\n"
)


@LINUX
@pytest.mark.parametrize("end", ["returns", "fails", "timeout", "cancel", "deaf"])
@pytest.mark.parametrize("way", LEFT)
def test_no_process_outlives_its_task(rig: Rig, way: str, end: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    last = {
        "returns": " return\n",
        "fails": " 1 / 0\n",
        "deaf": " while True:\n  try: time.sleep(600)\n  except BaseException: pass\n",
    }.get(end, " time.sleep(600)\n")
    f = script(
        f"{LEAVES}def f(note):\n pid = {LEFT[way]}\n open(note + '.new', 'w').write(str(pid))\n"
        f" os.rename(note + '.new', note)\n{last}"
    )
    (task,) = rig.run(pack_function(f), (str(note),), timeout_ms=2_000 if end in ("timeout", "deaf") else 0)
    if end == "cancel":
        rig.wait_for(note)
        rig.pool.cancel({task.id})
    rig.end_of(task)
    pid = int(note.read_text())
    rig.until(lambda: not alive(pid))
    assert rig.value(lambda: 1) == 1


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_child_that_was_waited_for_costs_no_worker(rig: Rig) -> None:
    def f() -> int:
        import multiprocessing
        import subprocess

        subprocess.run(["true"], check=True)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            pool.map(abs, [1])
        subprocess.Popen(["sleep", "1000"])
        return os.getpid()

    assert len({rig.value(f) for _ in range(4)}) == 1


# ---------------------------------------------------------------- progress bars


def test_a_log_has_the_last_state_of_a_progress_bar(rig: Rig) -> None:
    f = script(
        "import sys\ndef f(n):\n print('start')\n for i in range(n + 1):\n  sys.stderr.write(f'\\r{i:>70}/{n}')\n"
        " sys.stderr.write('\\n')\n print('end')\n"
    )
    for n in (10, 30_000):
        assert rig.one(f, n).output == f"start\n{n:>70}/{n}\nend\n".encode()
