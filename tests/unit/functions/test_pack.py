"""Packing callables of every kind."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import Undecodable
from oncue.functions import Packed, describe, pack_function
from tests.unit.functions.other_process import (
    HELPERS,
    SOURCE,
    call_elsewhere,
    cannot_pack,
    packed_by,
)

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
    assert call_elsewhere(bodies[0], tmp_path, *args) == wanted
    assert str(tmp_path).encode() not in bodies[0]


def test_metadata_of_a_packed_function(tmp_path: Path) -> None:
    def reconstruct(path: str, angle: float = 0.5) -> None:
        """Make a volume."""

    packed = pack_function(reconstruct)
    assert packed.name == "reconstruct"
    assert packed.signature == "(path: 'str', angle: 'float' = 0.5) -> 'None'"
    assert packed.doc == "Make a volume."
    assert re.search(r"test_pack\.py:\d+$", packed.file)
    facts = describe(packed.body)
    assert (facts.name, facts.python) == ("reconstruct", f"{sys.version_info.major}.{sys.version_info.minor}")
    assert "Make a volume" in facts.source
    assert pack_function(reconstruct).id == packed.id
    assert pack_function(functools.partial(reconstruct, "x")).name == "reconstruct"
    assert len(packed.id) == 64
    with pytest.raises(Undecodable):
        describe(b"\x00")


def test_generators_and_non_callables_are_rejected() -> None:
    def g() -> Any:
        yield 1

    async def ag() -> Any:
        yield 1

    assert "generator" in cannot_pack(g).message
    assert "generator" in cannot_pack(functools.partial(g)).message
    assert "generator" in cannot_pack(ag).message

    @contextlib.contextmanager
    def managed() -> Any:
        yield 1

    assert "context manager" in cannot_pack(managed).message
    assert "context manager" in cannot_pack(contextlib.asynccontextmanager(ag)).message
    assert "with" in cannot_pack(managed).remedy

    class Timed(contextlib.ContextDecorator):
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    assert pack_function(Timed()(lambda: 1)).id  # run inside of one: a function as any other
    assert "not something that can be called" in cannot_pack(math.pi).message


def test_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.functions.pack.FUNCTION_BYTES", 10_000)
    big = b"x" * 20_000
    assert "at most 10,000" in cannot_pack(lambda: big).message


def test_function_of_a_prompt_without_source(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("K = 3\ndef f(x): return g(x) + K\ndef g(x): return x * 2\n", space)
    packed: Packed = pack_function(space["f"])
    assert call_elsewhere(packed.body, tmp_path, 2) == "7"


def test_cached_functions_are_packed(tmp_path: Path) -> None:
    source = (
        "import functools\n@functools.lru_cache(maxsize=50)\ndef fib(n):\n    return n if n < 2 else fib(n-1) + fib(n-2)\n"
        "@functools.cache\ndef twice(x): return [x, x]\n"
        "def both(n): return fib(n), twice(n) is twice(n), fib.cache_info().maxsize, fib.__name__\n"
    )
    assert call_elsewhere(packed_by(tmp_path, source, "both"), tmp_path, 60) == "(1548008755920, True, 50, 'fib')"
    assert call_elsewhere(packed_by(tmp_path, source, "fib"), tmp_path, 10) == "55"
    assert call_elsewhere(packed_by(tmp_path, source, "functools.partial(fib, 10)"), tmp_path) == "55"
