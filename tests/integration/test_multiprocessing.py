"""`multiprocessing` in a task, with real workers: as in a plain program.

ONCUE_SOAK repeats it: `make soak`.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.functions import describe, pack_file, pack_function
from oncue.functions.body import Packed
from oncue.protocol.payload import unpack
from oncue.protocol.records import OK
from tests.pool_rig import Rig, rig_in, script, why
from tests.unit.functions.other_process import packed_by

METHODS = ("fork", "spawn", "forkserver")
TIMES = int(os.environ.get("ONCUE_SOAK", "1"))
SOURCE = """
import concurrent.futures, multiprocessing, time
FACTOR = 3

class Point:
    def __init__(self, x):
        self.x = x

class Doubler(multiprocessing.get_context("{method}").Process):
    def __init__(self, x, queue):
        super().__init__()
        self.x, self.queue = x, queue
    def run(self):
        self.queue.put(Point(2 * self.x))

def scale(point):
    return Point(point.x * FACTOR)

def sleep(_=None):
    time.sleep(600)

def run(n):
    context = multiprocessing.get_context("{method}")
    points = [Point(i) for i in range(n)]
    with context.Pool(2) as pool:
        first = [p.x for p in pool.map(scale, points)]
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        second = [p.x for p in executor.map(scale, points)]
    queue = context.Queue()
    doubler = Doubler(21, queue)
    doubler.start()
    third = queue.get(timeout=60).x
    doubler.join()
    child = context.Process(target=sleep)
    child.start()
    child.terminate()
    child.join(60)
    return first, second, third, doubler.exitcode, child.exitcode
"""
RIGHT = ([0, 3, 6, 9], [0, 3, 6, 9], 42, 0, -15)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig_in(tmp_path_factory.mktemp("pool")) as found:
        yield found


def of_a_module(folder: Path, source: str) -> Packed:
    (folder / "helpers_of_mine.py").write_text(source)
    (folder / "job.py").write_text("from helpers_of_mine import run\ndef go(n):\n    return run(n)\n")
    return pack_file(folder / "job.py", "go")


def of_a_script(folder: Path, source: str) -> Packed:
    return as_packed(packed_by(folder, source, "run"))


def of_a_closure(folder: Path, source: str) -> Packed:
    return as_packed(packed_by(folder, source, "lambda n: run(n)"))


def of_a_notebook(folder: Path, source: str) -> Packed:
    space: dict[str, Any] = {"__name__": "__main__"}
    for n, cell in enumerate(source.split("\n\n")):
        name = f"<ipython-input-{n}-f3a60c5cf2b3>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), space)
    return pack_function(space["run"])


def as_packed(body: bytes) -> Packed:
    return Packed(hashlib.sha256(body).hexdigest(), body, describe(body).name, "", "", "")


PLACES = {"module": of_a_module, "script": of_a_script, "closure": of_a_closure, "notebook": of_a_notebook}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_every_start_method_works_wherever_the_function_is_from(
    rig: Rig, place: str, method: str, tmp_path: Path
) -> None:
    packed = PLACES[place](tmp_path, SOURCE.replace("{method}", method))
    for _ in range(TIMES):
        (task,) = rig.run(packed, (4,))
        ended = rig.end_of(task)
        assert ended.status == OK, why(ended)
        assert unpack(ended.value) == RIGHT


def test_children_by_fork_end_whenever_they_are_terminated(rig: Rig) -> None:
    """Python forgets a signal that comes right after the fork, if it has a handler."""

    def f(times: int) -> tuple[list[int | None], list[list[int]]]:
        import multiprocessing
        import time

        context = multiprocessing.get_context("fork")
        codes, sums = [], []
        for i in range(times):
            child = context.Process(target=time.sleep, args=(600,))
            child.start()
            time.sleep(i % 10 / 5_000)
            child.terminate()
            child.join(20)
            codes.append(child.exitcode)
            with context.Pool(2) as pool:
                sums.append(pool.map(abs, [-1, -2]))
        return codes, sums

    for _ in range(TIMES):
        codes, sums = rig.value(f, 40)
        assert codes == [-signal.SIGTERM] * 40
        assert sums == [[1, 2]] * 40


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which signals are caught: Linux only")
def test_a_child_by_fork_has_the_signals_of_a_plain_programs_child(rig: Rig) -> None:
    code = (
        "import os\ndef f():\n"
        " r, w = os.pipe()\n"
        " if not os.fork():\n"
        "  lines = open('/proc/self/status').read().splitlines()\n"
        "  os.write(w, ' '.join(l[-8:] for l in lines if l[:4] in ('SigB', 'SigI', 'SigC')).encode())\n"
        "  os._exit(0)\n"
        " os.wait()\n"
        " return os.read(r, 10_000).decode()\n"
    )
    plain = subprocess.run([sys.executable, "-c", code + "print(f())"], capture_output=True, text=True, check=True)
    assert rig.value(script(code)) == plain.stdout.strip()


def test_a_child_by_fork_prints_while_another_thread_printed(rig: Rig) -> None:
    def f(times: int) -> list[int | None]:
        import multiprocessing
        import threading

        over = threading.Event()

        def talk() -> None:
            while not over.is_set():
                print("x" * 10)

        def fork(codes: list[int | None]) -> None:
            for _ in range(times):
                child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
                child.start()
                child.join(20)
                codes.append(child.exitcode)

        codes: list[int | None] = []
        threads = [threading.Thread(target=talk), threading.Thread(target=fork, args=(codes,))]
        for thread in threads:
            thread.start()
        threads[1].join()
        over.set()
        threads[0].join()
        return codes

    assert rig.value(f, 50) == [0] * 50


def test_a_script_finds_its_file_and_its_names_in_main(rig: Rig, tmp_path: Path) -> None:
    source = (
        "import sys\nTEXT = 'here'\n"
        "def f():\n    return TEXT, open(__file__).read(), sys.modules['__main__'].TEXT, sys.modules['__main__'].f is f\n"
    )
    (task,) = rig.run(as_packed(packed_by(tmp_path, source, "f")), ())
    _, text, name, same = unpack(rig.end_of(task).value)
    assert "TEXT = 'here'" in text
    assert (name, same) == ("here", True)


def test_a_modules_file_lies_where_it_says(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "scale.py").write_text("def text():\n    return open(__file__).read(), __file__\n")
    (tmp_path / "job.py").write_text("from parts.scale import text\ndef f():\n    return *text(), __file__\n")
    (task,) = rig.run(pack_file(tmp_path / "job.py", "f"), ())
    text, inner, outer = unpack(rig.end_of(task).value)
    assert text.startswith("def text")
    assert Path(inner) == Path(outer).parent / "parts" / "scale.py"


TOOLS = """
import concurrent.futures, functools
import multiprocessing as mp
from multiprocessing import shared_memory
class Shape:
    def __init__(self, n): self.n = n
    def area(self): return self.n ** 2
BASE = 10
def init(value):
    global BASE
    BASE = value
def add(x): return BASE + x
def power(x, p): return x ** p
def area(s): return s.area()
def fill(name):
    m = shared_memory.SharedMemory(name=name); m.buf[0] = 42; m.close()
def append(l, x): l.append(x)
def locked(lock, v):
    with lock: v.value += 1
def nested(x):
    with mp.get_context("{method}").Pool(1) as p: return p.map(add, [x])[0]
def fail(x): raise KeyError(x)
def run(n):
    ctx = mp.get_context("{method}")
    out = []
    with ctx.Pool(2, initializer=init, initargs=(5,)) as p:
        out.append(p.map(add, [1, 2]))
        out.append(p.starmap(power, [(2, 3)]))
        out.append(p.apply_async(functools.partial(power, p=2), (3,)).get(60))
        out.append(list(p.imap_unordered(area, [Shape(2)])))
        out.append(p.map(Shape(3).__class__.area, [Shape(4)]))
        try: p.apply(fail, (1,))
        except KeyError as e: out.append(repr(e))
    with ctx.Manager() as m:
        l = m.list(); q = ctx.Process(target=append, args=(l, 7)); q.start(); q.join(60); out.append(list(l))
    lock, v = ctx.Lock(), ctx.Value("i", 0)
    ps = [ctx.Process(target=locked, args=(lock, v)) for _ in range(3)]
    [p.start() for p in ps]; [p.join(60) for p in ps]; out.append(v.value)
    shm = shared_memory.SharedMemory(create=True, size=10)
    q = ctx.Process(target=fill, args=(shm.name,)); q.start(); q.join(60); out.append(shm.buf[0]); shm.close(); shm.unlink()
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=ctx, initializer=init, initargs=(100,)) as ex:
        out.append(ex.submit(add, 1).result(60)); out.append(ex.submit(nested, 1).result(60))
    return out
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_tools_of_multiprocessing_work(rig: Rig, method: str, tmp_path: Path) -> None:
    (task,) = rig.run(of_a_script(tmp_path, TOOLS.replace("{method}", method)), (0,))
    ended = rig.end_of(task)
    assert ended.status == OK, why(ended)
    inherited = 101 if method == "fork" else 11  # what an initializer has set in the parent
    assert unpack(ended.value) == [[6, 7], [8], 9, [4], [16], "KeyError(1)", [7], 3, 42, 101, inherited]
