"""Pack functions in a user's script, and call them in a fresh process, as a worker is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import CannotPack
from oncue.functions import pack_function


def packed_by(folder: Path, source: str, expression: str, seed: str = "0", name: str = "script.py") -> bytes:
    """Return the body that a script with this source makes of an expression."""
    script = folder / name
    script.write_text(
        source + "\nif __name__ == '__main__':\n    import sys\n    from oncue.functions import pack_function\n"
        f"    sys.stdout.buffer.write(pack_function({expression}).body)\n"
    )
    environ = dict(os.environ, PYTHONHASHSEED=seed)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


CALL_PACKED = """
import sys
sys.path.insert(0, sys.argv[1])
from oncue.protocol import payload
from oncue.functions import load_function
f = load_function(open("body", "rb").read())
args, kwargs = payload.unpack_args(open("args", "rb").read())
open("value", "wb").write(payload.pack(f(*args, **kwargs)))
"""


def there(python: str, folder: Path, body: bytes, args: bytes) -> bytes:
    """Return the packed result of a worker with that Python."""
    (folder / "body").write_bytes(body)
    (folder / "args").write_bytes(args)
    root = str(Path(__file__).parents[3])
    done = subprocess.run([python, "-c", CALL_PACKED, root], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "value").read_bytes()


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


CALL = """
import asyncio, inspect, sys
from oncue.functions import load_function
f = load_function(open(sys.argv[1], "rb").read())
r = f(*eval(sys.argv[2]))
print(repr(asyncio.run(r) if inspect.iscoroutine(r) else r))
"""


def call_elsewhere(body: bytes, folder: Path, *args: Any) -> str:
    """Return the repr of the result, or the error, from another process."""
    place = folder / "elsewhere"
    place.mkdir(exist_ok=True)
    (place / "body").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-P", "-c", CALL, "body", repr(args)], cwd=place, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr


def cannot_pack(fn: Any) -> CannotPack:
    """Return the error of packing; it has a remedy."""
    with pytest.raises(CannotPack) as e:
        pack_function(fn)
    assert e.value.remedy
    return e.value


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write files into a folder, by relative path."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def other_pythons() -> list[str]:
    """Return Pythons that can make an environment.

    They are those of ONCUE_TEST_PYTHONS (paths separated by colons), else of pyenv and the PATH."""
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
    """Make an environment of another Python with a worker's packages; skip the test without one."""
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
