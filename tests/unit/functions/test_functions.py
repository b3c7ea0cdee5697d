"""Functions travel: each kind of callable is packed here and loaded in a fresh process that has none of its files."""

from __future__ import annotations

import contextlib
import functools
import linecache
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue.errors import CannotLoad, CannotPack, Undecodable
from oncue.functions import FunctionBody, Packed, describe, load_function, pack_file, pack_function
from oncue.functions.source import imported, part_for
from oncue.protocol.codec import encode
from oncue.protocol.payload import pack_args, unpack
from tests.unit.functions.other_process import packed_by, there

CALL = """
import asyncio, inspect, sys
from oncue.functions import load_function
f = load_function(open(sys.argv[1], "rb").read())
r = f(*eval(sys.argv[2]))
print(repr(asyncio.run(r) if inspect.iscoroutine(r) else r))
"""


def elsewhere(body: bytes, folder: Path, *args: Any) -> str:
    """repr of the result, or the error, in another process."""
    place = folder / "elsewhere"
    place.mkdir(exist_ok=True)
    (place / "body").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-P", "-c", CALL, "body", repr(args)], cwd=place, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr


HELPERS = """
FACTOR = 3
class Frame:
    def __init__(self, x): self.x = x
    def sum(self): return self.x * FACTOR
def triple(x):
    return x * FACTOR
"""
SOURCE = '''
import functools, math
import helpers
from helpers import Frame, triple
NAMES = {"alpha", "beta", "gamma", "delta"}
SCALE = 2
def timed(f):
    @functools.wraps(f)
    def wrapper(*a, **k):
        return f(*a, **k) + 100
    return wrapper
@timed
def decorated(x): return x
def plain(x): return x * SCALE
def uses_siblings(x): return helpers.triple(x) + triple(x) + Frame(x).sum()
def lazy_sibling(x):
    import helpers as h
    return h.triple(x)
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
def factorial(n): return n * factorial(n - 1) if n else 1
def outer(k):
    def inner(x): return x + k + SCALE
    return inner
class Caller:
    """A callable."""
    kinds = frozenset(["x", "y", "z"])
    def __init__(self, k): self.k = k
    def __call__(self, x): return x * self.k
    def method(self, x): return x + self.k
    @classmethod
    def make(cls, k): return cls(k).k
    @staticmethod
    def still(x): return -x
async def later(x): return x + 1
def in_names(x): return x in {"a", "b", "c"} and "alpha" in NAMES
def keywords(x, *, y=5): return x - y
'''

KINDS = {
    "plain": ("plain", (4,), "8"),
    "decorated": ("decorated", (1,), "101"),
    "siblings": ("uses_siblings", (2,), "18"),
    "lazy sibling": ("lazy_sibling", (2,), "6"),
    "mutual recursion": ("even", (10,), "True"),
    "recursion": ("factorial", (5,), "120"),
    "closure": ("outer(7)", (1,), "10"),
    "lambda": ("lambda x: x + SCALE", (1,), "3"),
    "partial": ("functools.partial(keywords, y=1)", (3,), "2"),
    "partial of sibling": ("functools.partial(triple, 5)", (), "15"),
    "instance": ("Caller(3)", (3,), "9"),
    "bound method": ("Caller(3).method", (3,), "6"),
    "classmethod": ("Caller.make", (4,), "4"),
    "staticmethod": ("Caller.still", (4,), "-4"),
    "async": ("later", (1,), "2"),
    "sets": ("in_names", ("a",), "True"),
    "builtin": ("math.sqrt", (4,), "2.0"),
    "sibling itself": ("helpers.triple", (4,), "12"),
    "installed": ("__import__('textwrap').dedent", ("  x",), "'x'"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["script", "module"])
def test_every_kind_of_callable(kind: str, place: str, tmp_path: Path) -> None:
    """From a script (by value) and from a module (by its file); the same bytes whatever the hash seed and the folder."""
    expression, args, wanted = KINDS[kind]
    bodies = []
    for i in ("1", "22"):
        folder = tmp_path / i
        folder.mkdir()
        (folder / "helpers.py").write_text(HELPERS)
        if place == "script":
            bodies.append(packed_by(folder, SOURCE, expression, seed=i))
        else:
            (folder / "work.py").write_text(SOURCE)
            bodies.append(packed_by(folder, "from work import *\nimport functools, math, helpers", expression, seed=i))
    assert bodies[0] == bodies[1]
    assert elsewhere(bodies[0], tmp_path, *args) == wanted
    assert str(tmp_path).encode() not in bodies[0]


@pytest.mark.parametrize("name", ["plain", "decorated", "uses_siblings", "even", "later", "in_names"])
@pytest.mark.parametrize("place", ["script", "module"])
def test_another_python_builds_it_from_source(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    if place == "script":
        body = packed_by(tmp_path, SOURCE, name)
    else:
        (tmp_path / "work.py").write_text(SOURCE)
        body = packed_by(tmp_path, "from work import *", name)
    old = msgspec.structs.replace(describe(body), python="3.9")
    if not old.portable:
        old = msgspec.structs.replace(old, pickle=b"not to be read")
    expected = {
        "plain": "8",
        "decorated": "104",
        "uses_siblings": "36",
        "even": "True",
        "later": "5",
        "in_names": "False",
    }
    assert elsewhere(encode(old), tmp_path, 4) == expected[name]


def test_building_from_source_does_not_run_the_script(tmp_path: Path) -> None:
    source = (
        "import os\nprint('SUBMITTED')\nopen('made', 'w').close() if 0 else None\n"
        "X = 2\nY = undefined_if_run = 3\ndef f(): return X\n"
    )
    script = tmp_path / "s.py"
    body = msgspec.structs.replace(
        FunctionBody(1, "f", "f", "__main__", "3.9", part_for(source, {"f"}), b"", {}, (), "0", entry="f", file="s.py")
    )
    assert not script.exists()
    assert "SUBMITTED" not in body.source
    assert "undefined" not in body.source
    assert elsewhere(encode(body), tmp_path) == "2"


def test_lines_of_the_part_stay_where_they_were() -> None:
    text = (
        "import os\nimport sys\n\n\nA = 1\nB = A\n\n\n@staticmethod\ndef f():\n    return B, sys\n\n\ndef g(): pass\n"
    )
    part = part_for(text, {"f"})
    assert part.splitlines() == [
        "",
        "import sys",
        "",
        "",
        "A = 1",
        "B = A",
        "",
        "",
        "@staticmethod",
        "def f():",
        "    return B, sys",
    ]
    assert part_for("x = = 1", {"x"}) == ""
    assert part_for("try:\n    import a\nexcept ImportError:\n    a = None\ndef f(): return a\n", {"f"}).startswith(
        "try:"
    )


def test_imports_are_seen_wherever_they_are() -> None:
    text = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h\n    import i as j\n"
    assert set(imported(text, "p.q")) == {"a.b", "c", "c.d", "p.q", "p.q.e", "p.g", "p.g.h", "i"}


def test_the_notes_that_people_read(tmp_path: Path) -> None:
    def reconstruct(path: str, angle: float = 0.5) -> None:
        """Make a volume."""

    packed = pack_function(reconstruct)
    assert packed.name == "reconstruct"
    assert packed.signature == "(path: 'str', angle: 'float' = 0.5) -> 'None'"
    assert packed.doc == "Make a volume."
    assert re.search(r"test_functions\.py:\d+$", packed.file)
    facts = describe(packed.body)
    assert (facts.name, facts.python) == ("reconstruct", f"{sys.version_info.major}.{sys.version_info.minor}")
    assert "Make a volume" in facts.source
    assert pack_function(reconstruct).id == packed.id
    assert pack_function(functools.partial(reconstruct, "x")).name == "reconstruct"
    assert len(packed.id) == 64
    with pytest.raises(Undecodable):
        describe(b"\x00")


# ---------------------------------------------------------------- what cannot travel


def _cannot(fn: Any) -> CannotPack:
    with pytest.raises(CannotPack) as e:
        pack_function(fn)
    assert e.value.remedy
    return e.value


def test_the_culprit_is_named(tmp_path: Path) -> None:
    import socket

    lock, numbers = threading.Lock(), (i for i in range(3))
    with open(tmp_path / "x", "w") as handle, socket.socket() as line:
        assert "'lock'" in _cannot(lambda: lock).message
        assert "lock" in _cannot(lambda: lock).message
        assert "'handle'" in _cannot(lambda: handle.read()).message
        assert "open it inside" in _cannot(lambda: handle.read()).remedy
        assert "'line'" in _cannot(lambda: line.send(b"")).message
        assert "'numbers'" in _cannot(lambda: list(numbers)).message
        assert "list(" in _cannot(lambda: list(numbers)).remedy

        def helper() -> Any:
            return lock

        assert "'lock'" in _cannot(lambda: helper()).message
        assert "argument 0 of the partial" in _cannot(functools.partial(print, lock)).message
        assert "default value 0" in _cannot(lambda x=lock: x).message
        box = {"inner": [1, lock]}
        assert "element 1" in _cannot(lambda: box).message


def test_an_attribute_is_named() -> None:
    class Camera:
        def __init__(self) -> None:
            self.guard = threading.Lock()

        def snap(self) -> None: ...

    assert "'guard' of Camera" in _cannot(Camera().snap).message


def test_generators_and_things_that_are_no_functions() -> None:
    def g() -> Any:
        yield 1

    async def ag() -> Any:
        yield 1

    assert "generator" in _cannot(g).message
    assert "generator" in _cannot(functools.partial(g)).message
    assert "generator" in _cannot(ag).message

    @contextlib.contextmanager
    def managed() -> Any:
        yield 1

    assert "context manager" in _cannot(managed).message
    assert "context manager" in _cannot(contextlib.asynccontextmanager(ag)).message
    assert "with" in _cannot(managed).remedy

    class Timed(contextlib.ContextDecorator):
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    assert pack_function(Timed()(lambda: 1)).id  # run inside of one: a function as any other
    assert "not something that can be called" in _cannot(math.pi).message


def test_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.functions.pack.FUNCTION_BYTES", 10_000)
    big = b"x" * 20_000
    assert "at most 10,000" in _cannot(lambda: big).message


# ---------------------------------------------------------------- files


def _tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_function_of_a_file(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    _tree(tmp_path, {"tomo.py": SOURCE, "helpers.py": HELPERS})
    packed = pack_file(tmp_path / "tomo.py", "uses_siblings")
    assert elsewhere(packed.body, tmp_path, 2) == "18"
    assert set(describe(packed.body).siblings) == {"tomo.py", "helpers.py"}
    assert not {"tomo", "helpers"} & (set(sys.modules) - before)
    assert sys.path == path
    assert packed.id == pack_file(tmp_path / "tomo.py", "uses_siblings").id


def test_two_folders_may_have_files_of_the_same_name(tmp_path: Path) -> None:
    for k in ("a", "b"):
        _tree(
            tmp_path / k,
            {"job.py": "import settings\ndef f():\n    import settings as s\n    return settings.X + s.X\n"},
        )
        _tree(tmp_path / k, {"settings.py": f"X = {k!r}\n"})
    a, b = (pack_file(tmp_path / k / "job.py", "f") for k in "ab")
    assert a.id != b.id
    assert elsewhere(a.body, tmp_path) == "'aa'"
    assert elsewhere(b.body, tmp_path) == "'bb'"


def test_an_edit_is_seen_at_once(tmp_path: Path) -> None:
    _tree(tmp_path, {"job.py": "def f(): return 1\n"})
    first = pack_file(tmp_path / "job.py", "f")
    _tree(tmp_path, {"job.py": "def f(): return 2\n"})
    second = pack_file(tmp_path / "job.py", "f")
    assert first.id != second.id
    assert elsewhere(second.body, tmp_path) == "2"


def test_packages_with_relative_imports(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        {
            "pkg/__init__.py": "BASE = 1\n",
            "pkg/sub/__init__.py": "",
            "pkg/sub/run.py": "from .. import BASE\nfrom . import part\nfrom ..other import more\n"
            "def f(x): return x + BASE + part.P + more()\n",
            "pkg/sub/part.py": "P = 10\n",
            "pkg/other.py": "def more(): return 100\n",
            "pkg/unused.py": "1/0\n",
        },
    )
    packed = pack_file(tmp_path / "pkg/sub/run.py", "f")
    assert "pkg/unused.py" not in describe(packed.body).siblings
    assert elsewhere(packed.body, tmp_path, 1) == "112"


def test_module_level_locks_are_no_hindrance_in_a_file(tmp_path: Path) -> None:
    _tree(tmp_path, {"job.py": "import threading\nLOCK = threading.Lock()\ndef f():\n    with LOCK: return 5\n"})
    assert elsewhere(pack_file(tmp_path / "job.py", "f").body, tmp_path) == "5"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def reconstruct(): pass\n", "reconstrct", "did you mean 'reconstruct'"),
        ("def f(:\n", "f", "line 1"),
        ("x = 1\n1/0\n", "f", "line 2: ZeroDivisionError"),
        ("import nowhere_at_all\n", "f", "nowhere_at_all"),
        ("x = 1\n", "x", "not something that can be called"),
    ],
)
def test_a_file_that_is_not_right(text: str, name: str, words: str, tmp_path: Path) -> None:
    _tree(tmp_path, {"job.py": text})
    with pytest.raises(CannotPack) as e:
        pack_file(tmp_path / "job.py", name)
    assert words in str(e.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CannotPack, match="there is no file"):
        pack_file(tmp_path / "no.py", "f")


# ---------------------------------------------------------------- what cannot be loaded


def test_a_missing_module_is_named_with_its_pip_line(tmp_path: Path) -> None:
    packed = pack_function(lambda: 1)
    source = "import sklearn_of_nowhere.part\ndef f(): pass\n"
    body = msgspec.structs.replace(
        describe(packed.body),
        pickle=b"\x80\x05cjob\nf\n.",
        portable=True,
        siblings={"job.py": source},
        requires=("sklearn_of_nowhere",),
    )
    with pytest.raises(CannotLoad) as e:
        load_function(encode(body))
    assert "needs sklearn_of_nowhere" in e.value.message
    assert "-m pip install sklearn_of_nowhere" in e.value.remedy


def test_where_the_function_does_not_need_the_missing_module_it_runs(tmp_path: Path) -> None:
    """The whole file cannot be imported there, but the part that the function needs can."""
    _tree(tmp_path, {"plots_of_nowhere.py": "", "job.py": "import plots_of_nowhere\ndef f(): return 7\n"})
    body = describe(pack_file(tmp_path / "job.py", "f").body)
    files = {k: v for k, v in body.siblings.items() if k != "plots_of_nowhere.py"}
    assert elsewhere(encode(msgspec.structs.replace(body, siblings=files)), tmp_path) == "7"


def test_versions_that_differ_are_told(tmp_path: Path) -> None:
    body = describe(pack_function(lambda: 1).body)
    with pytest.raises(CannotLoad, match=r"packed with Python 2\.7"):
        load_function(encode(msgspec.structs.replace(body, python="2.7")))


def test_a_broken_pickle_is_told() -> None:
    body = describe(pack_function(lambda: 1).body)
    with pytest.raises(CannotLoad, match="cannot be loaded"):
        load_function(encode(msgspec.structs.replace(body, pickle=b"\x80\x05junk")))


def test_siblings_do_not_stay_over_installed_ones(tmp_path: Path) -> None:
    from oncue.functions.siblings import activate, sibling_set

    real = sys.modules["msgspec"]
    try:
        activate(sibling_set({"msgspec.py": "X = 1\n"}))
        assert __import__("msgspec").X == 1
    finally:
        activate(sibling_set({}))
    assert sys.modules["msgspec"] is real
    assert __import__("msgspec") is real


def test_a_prompt_without_source(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("K = 3\ndef f(x): return g(x) + K\ndef g(x): return x * 2\n", space)
    packed: Packed = pack_function(space["f"])
    assert elsewhere(packed.body, tmp_path, 2) == "7"


def test_two_versions_of_a_class_live_side_by_side(tmp_path: Path) -> None:
    """In one worker: the second must not change what the first has, wherever the difference is."""
    script = (
        "class Conf:\n    angles = {}\n    def k(self): return K\nK = {}\ndef f(): return Conf.angles, Conf().k()\n"
    )
    bodies = [packed_by(tmp_path, script.format(*v), "f") for v in (("[1]", "5"), ("[2]", "5"), ("[1]", "6"))]
    again = packed_by(tmp_path, script.format("[1]", "5"), "f", seed="7")
    assert again == bodies[0]
    for n, body in enumerate(bodies):
        (tmp_path / f"body{n}").write_bytes(body)
    code = (
        "from oncue.functions import load_function\n"
        "a, b, c = (load_function(open(f'body{n}', 'rb').read()) for n in range(3))\n"
        "print(a(), b(), c(), a())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "([1], 5) ([2], 5) ([1], 6) ([1], 5)"


def test_cached_functions_travel(tmp_path: Path) -> None:
    source = (
        "import functools\n@functools.lru_cache(maxsize=50)\ndef fib(n):\n    return n if n < 2 else fib(n-1) + fib(n-2)\n"
        "@functools.cache\ndef twice(x): return [x, x]\n"
        "def both(n): return fib(n), twice(n) is twice(n), fib.cache_info().maxsize, fib.__name__\n"
    )
    assert elsewhere(packed_by(tmp_path, source, "both"), tmp_path, 60) == "(1548008755920, True, 50, 'fib')"
    assert elsewhere(packed_by(tmp_path, source, "fib"), tmp_path, 10) == "55"
    assert elsewhere(packed_by(tmp_path, source, "functools.partial(fib, 10)"), tmp_path) == "55"


FAILING = """
from oncue.endpoint.worker.failure import own_lines
from oncue.functions import load_function
f = load_function(open("body", "rb").read())
try:
    f(1)
except ValueError as e:
    print(own_lines(e))
"""


@pytest.mark.parametrize("expression", ["outer", "inner(3)", "lambda x: outer(x)"])
def test_a_traceback_has_the_file_and_the_line(tmp_path: Path, expression: str) -> None:
    source = (
        "# a comment\n\ndef outer(x):\n    y = x\n    raise ValueError(y)  # from outer\n"
        "def inner(n):\n    def closure(x):\n        raise ValueError(n)  # from inner\n    return closure\n"
    )
    (tmp_path / "body").write_bytes(packed_by(tmp_path, source, expression))
    done = subprocess.run(
        [sys.executable, "-P", "-c", FAILING], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = done.stdout
    where = ("5", "outer") if expression == "outer" else ("8", "inner") if "inner" in expression else ("5", "")
    assert f'File "script.py", line {where[0]}, in' in said
    assert f"# from {where[1] or 'outer'}" in said


CELLS = (
    "import functools\nLIMIT = 3\n\ndef check(x):\n    if x < LIMIT:\n        raise ValueError(x)  # from check\n",
    "class Scan:\n    def start(self, x):\n        return check(x)  # from start\n",
    "\n# the last cell\ndef run(x):\n    return [Scan().start(y)  # from run\n            for y in [x]]\n",
)


@pytest.mark.parametrize(
    "names", ["/tmp/ipykernel_{pid}/{n}3074457345618258602.py", "<ipython-input-{pid}-{n}f3a60c5cf2b3>"]
)
def test_a_traceback_has_the_lines_of_each_cell(names: str, tmp_path: Path) -> None:
    """As IPython runs cells: compiled under a name that no file has, their lines in linecache."""
    bodies = []
    for pid in (17, 4711):
        space: dict[str, Any] = {"__name__": "__main__"}
        for n, text in enumerate(CELLS):
            name = names.format(pid=pid, n=n)
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), space)
        bodies.append(pack_function(space["run"]).body)
    assert bodies[0] == bodies[1]
    (tmp_path / "body").write_bytes(bodies[0])
    done = subprocess.run(
        [sys.executable, "-P", "-c", FAILING], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for line, name in ((6, "check"), (3, "start"), (4, "run")):
        assert re.search(rf'File "<notebook cell [0-9a-f]+>", line {line}, in .*\n.*# from {name}\n', done.stdout), name


def test_each_function_of_a_worker_has_its_own_lines(tmp_path: Path) -> None:
    """Two versions of a script, both loaded: each shows what it was made of."""
    for n, gap in enumerate(("", "\n" * 4)):
        source = f"{gap}def g(x):\n    raise ValueError(x)  # version {n}\ndef f(x):\n    g(x)\n"
        (tmp_path / f"body{n}").write_bytes(packed_by(tmp_path, source, "lambda x: f(x)"))
    code = (
        "from oncue.endpoint.worker.failure import own_lines\nfrom oncue.functions import describe, load\n"
        "both = [load(describe(open(f'body{n}', 'rb').read())) for n in range(2)]\n"
        "for loaded in (*both, *both):\n"
        "    loaded.activate()\n"
        "    try: loaded.call(1)\n"
        "    except ValueError as e: print([l[-1] for l in own_lines(e).splitlines() if '# version' in l])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:4] == ["['0']", "['1']"] * 2


# ---------------------------------------------------------------- other Pythons


def other_pythons() -> list[str]:
    """ONCUE_TEST_PYTHONS (paths with colons between), else those of pyenv and on the PATH that can make an environment."""
    given = os.environ.get("ONCUE_TEST_PYTHONS")
    if given:
        return given.split(":")
    names = [f"3.{n}" for n in (11, 12, 13) if n != sys.version_info.minor]
    of_pyenv = [str(p) for name in names for p in sorted(Path.home().glob(f".pyenv/versions/{name}.*/bin/python"))]
    on_path = [found for name in names if (found := shutil.which(f"python{name}"))]
    return [python for python in (*of_pyenv, *on_path) if _usable(python)]


def _usable(python: str) -> bool:
    return not subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another Python, with what a worker needs. None of the services that a machine must have: without, it is skipped."""
    found = other_pythons()
    if not found:
        pytest.skip(
            "there is no other Python from 3.11 to 3.13 here: put one on the PATH, or name it: ONCUE_TEST_PYTHONS"
        )
    folder = tmp_path_factory.mktemp("another")
    subprocess.run([found[0], "-m", "venv", str(folder)], check=True, capture_output=True)
    python, wanted = str(folder / "bin" / "python"), ["cloudpickle", "msgspec"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{found[0]} cannot get {' and '.join(wanted)} by pip: {done.stderr.strip()[-200:]}")
    return python


def test_really_another_python(another: str, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    for name, value in (("plain", 8), ("decorated", 104), ("uses_siblings", 36)):
        body = packed_by(tmp_path, SOURCE, name)
        assert unpack(there(another, tmp_path, body, pack_args((4,), {}))) == value, name


def test_a_class_of_the_script_comes_back_from_another_python(another: str, tmp_path: Path) -> None:
    source = "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef make(x): return [P(x), P]\n"
    value = there(another, tmp_path, packed_by(tmp_path, source, "make"), pack_args((4,), {}))
    with pytest.raises(Undecodable, match="'__main__', which this program does not have") as caught:
        unpack(value)
    assert "return plain data" in caught.value.remedy
    (tmp_path / "reader.py").write_text(
        source + "from oncue.protocol.payload import unpack\nprint(unpack(open('value', 'rb').read()) == [P(4), P])\n"
    )
    done = subprocess.run([sys.executable, "reader.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
