"""Values that need pickle, packed and unpacked.

A reader's own classes stay its own, and bytecode of another Python is reported.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from oncue.client import results
from oncue.errors import CannotLoad, OtherPython, UnreadableResult
from oncue.functions import pack_function
from oncue.protocol.payload import PICKLE, pack, pack_args, unpack, unpack_args
from oncue.protocol.records import OK, Ended
from tests.unit.functions.other_process import another, packed_by, there  # noqa: F401  (a fixture)

SOURCE = """
import dataclasses, enum
COUNT = [0]
class Plain:
    seen = []
    def __init__(self, x): self.x = x
    def count(self):
        COUNT[0] += 1
        return COUNT[0]
    class Part:
        pass
@dataclasses.dataclass
class Data:
    x: int
class Color(enum.Enum):
    RED = 1
    BLUE = 2
def plain(x):
    Plain.seen.append(x)
    return Plain(x)
def part(): return Plain.Part()
def data(x): return [Data(x), Data]
def color(x): return Color(x)
def same(x): return x
"""


@pytest.fixture
def cell() -> dict[str, Any]:
    """A namespace like a notebook's: classes of `__main__` that no module has."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, space)
    return space


def called(folder: Path, fn: Any, *args: Any) -> Any:
    return unpack(there(sys.executable, folder, pack_function(fn).body, pack_args(args, {})))


def test_results_are_instances_of_the_readers_own_classes(cell: dict[str, Any], tmp_path: Path) -> None:
    assert type(called(tmp_path, cell["plain"], 1)) is cell["Plain"]
    assert type(called(tmp_path, cell["part"])) is cell["Plain"].Part
    assert called(tmp_path, cell["data"], 3) == [cell["Data"](3), cell["Data"]]
    assert called(tmp_path, cell["color"], 2) is cell["Color"].BLUE
    assert called(tmp_path, cell["same"], cell["Color"].RED) is cell["Color"].RED
    assert type(called(tmp_path, cell["same"], cell["Plain"](1))) is cell["Plain"]


def test_a_result_changes_nothing_of_the_readers_class(cell: dict[str, Any], tmp_path: Path) -> None:
    plain = cell["Plain"]
    before = dict(vars(plain))
    found = called(tmp_path, cell["plain"], 5)
    assert dict(vars(plain)) == before
    assert plain.seen == []  # the worker's own list has the 5
    assert found.count() == 1
    assert cell["COUNT"] == [1]


def test_an_argument_is_an_instance_of_the_functions_class(cell: dict[str, Any], tmp_path: Path) -> None:
    exec("def is_plain(x): return isinstance(x, Plain), type(x) is Plain", cell)
    lonely = cell["Plain"](1)
    pack_args((lonely,), {})  # sent before, to a function without its class
    assert called(tmp_path, cell["is_plain"], lonely) == (True, True)


def test_an_argument_has_the_current_definition_of_its_class(cell: dict[str, Any]) -> None:
    """An earlier task in the same worker keeps the earlier definition."""
    exec("class Scaled:\n    factor = 2\n    def scaled(self, x): return x * self.factor\n", cell)
    cls = cell["Scaled"]
    old = pack_args((cls(),), {})
    cls.factor = 3
    new = pack_args((cls(),), {})
    code = (
        "import sys\nfrom oncue.protocol.payload import unpack_args\n"
        "read = [unpack_args(bytes.fromhex(h))[0][0] for h in sys.argv[1:]]\n"
        "print([o.scaled(10) for o in read])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, old.hex(), new.hex(), old.hex()], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[20, 30, 20]"


READER = """
import sys
from oncue.protocol.payload import unpack
if __name__ == "__main__":
    value = unpack(open("value", "rb").read())
    print(type(value) is Plain, value.x, Plain.seen)
"""


@pytest.mark.parametrize("edit", ["", "\nclass Plain(Plain):\n    seen = ['edited']\n"])
def test_another_run_of_the_script_reads_its_own_classes(edit: str, tmp_path: Path) -> None:
    there(sys.executable, tmp_path, packed_by(tmp_path, SOURCE, "plain"), pack_args((4,), {}))
    (tmp_path / "script.py").write_text(SOURCE + edit + READER)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"True 4 {['edited'] if edit else []}"


def test_a_worker_keeps_its_own_main_apart_from_the_users(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Worker:\n    mine = 1\ndef f(w): return w.mine\n", space)
    packed = pack_args((space["Worker"](),), {})
    code = (
        "import sys\nfrom oncue.protocol.payload import unpack_args\nclass Worker: pass\n"
        "print(unpack_args(bytes.fromhex(sys.argv[1]))[0][0].mine)"
    )
    done = subprocess.run([sys.executable, "-c", code, packed.hex()], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_partly_unpickled_class_is_not_reused(cell: dict[str, Any], monkeypatch: Any) -> None:
    from cloudpickle import cloudpickle as cp

    packed = pack(cell["Plain"](1))
    cp._DYNAMIC_CLASS_TRACKER_BY_ID.clear()
    real = cp._class_setstate
    kept: list[Any] = []

    def broken(cls: Any, state: Any) -> Any:
        kept.append(cls)  # somebody holds it still
        raise MemoryError

    monkeypatch.setattr(cp, "_class_setstate", broken)
    with pytest.raises(MemoryError):
        unpack(packed)
    monkeypatch.setattr(cp, "_class_setstate", real)
    assert unpack(packed).x == 1
    assert unpack(packed).count() == 1
    done: list[Any] = []
    other = threading.Thread(target=lambda: done.append(unpack(packed)))  # the failed reader released its lock
    other.start()
    other.join(10)
    assert len(done) == 1


# ---------------------------------------------------------------- other Pythons


@pytest.fixture
def of_2_7(monkeypatch: pytest.MonkeyPatch, cell: dict[str, Any]) -> bytes:
    """An argument as a packer under another Python records it."""
    with monkeypatch.context() as patched:
        patched.setattr("oncue.pickles.code.PYTHON", "2.7")
        return pack_args((cell["Plain"](1),), {})


def test_bytecode_of_another_python_is_reported_before_it_is_loaded(of_2_7: bytes) -> None:
    with pytest.raises(OtherPython, match=r"bytecode of Python 2\.7") as caught:
        unpack_args(of_2_7)
    assert caught.value.details == {"python": "2.7"}
    assert "2.7" in caught.value.remedy


def test_a_worker_gives_the_remedy_for_bytecode_of_another_python(of_2_7: bytes) -> None:
    from oncue.endpoint.worker.values import arguments

    with pytest.raises(CannotLoad, match=r"bytecode of Python 2\.7") as caught:
        arguments(of_2_7)
    assert "a .py file that the function imports" in caught.value.remedy


def test_pickles_without_bytecode_are_valid_for_any_python(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("oncue.pickles.code.PYTHON", "2.7")
        packed = pack({1, Path("/a"), functools.partial(len, "x")} - {1})
    assert packed[:1] == PICKLE
    assert Path("/a") in unpack(packed)


def test_bytecode_from_a_real_other_python(another: str, tmp_path: Path) -> None:  # noqa: F811
    """Run it in a process of its own: it may crash the interpreter."""
    root = str(Path(__file__).parents[3])
    code = (
        f"import sys\nsys.path.insert(0, {root!r})\nfrom oncue.protocol.payload import pack_args\n"
        "class P:\n    def f(self): return [x for x in range(3)]\n"
        "if __name__ == '__main__': sys.stdout.buffer.write(pack_args((P(),), {}))"
    )
    packed = subprocess.run([another, "-c", code], capture_output=True, check=True).stdout
    with pytest.raises(OtherPython):
        unpack_args(packed)


# ---------------------------------------------------------------- results that cannot be read


class Fussy(Exception):
    """A class that can be pickled but not unpickled."""

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(a)


class Leaves:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def _result(packed: bytes) -> Any:
    ended = Ended(b"i" * 16, 1, OK, 0, 0, packed)
    return results.value(ended, b"\x01" * 16, "lab", lambda ref: b"", lambda: True)


GONE = PICKLE + b"cnowhere_at_all\nThing\n."  # a global of a module


@pytest.mark.parametrize(
    ("packed", "cause", "words", "remedy"),
    [
        (GONE, ModuleNotFoundError, "No module named 'nowhere_at_all'", "install it here"),
        (GONE.replace(b"nowhere_at_all", b"json"), AttributeError, "AttributeError", "the program that defines"),
        (pack(Fussy(1, b=2)), TypeError, "required keyword-only argument", "plain data"),
        (pack(Leaves()), SystemExit, "SystemExit: 3", "plain data"),
        (PICKLE + b"\x80\x05junk", Exception, "", "plain data"),
        (b"x", Exception, "starts with b'x'", ""),
    ],
)
def test_a_result_that_cannot_be_unpickled_raises_unreadable_result(
    packed: bytes, cause: Any, words: str, remedy: str
) -> None:
    with pytest.raises(UnreadableResult) as caught:
        _result(packed)
    assert caught.value.raw == packed
    assert caught.value.task_id == "01" * 16
    assert isinstance(caught.value.__cause__, cause)
    assert words in caught.value.message
    assert remedy in caught.value.remedy


def test_a_result_from_another_python_is_reported(of_2_7: bytes) -> None:
    with pytest.raises(UnreadableResult, match=r"bytecode of Python 2\.7") as caught:
        _result(of_2_7)
    assert "plain data" in caught.value.remedy


# ---------------------------------------------------------------- functools objects

MADE = """
import functools
class Lazy:
    def __init__(self, x): self.x = x
    @functools.cached_property
    def twice(self): return [self.x * 2]
    @functools.singledispatchmethod
    def kind(self, v): return "any"
    @kind.register
    def _(self, v: int): return "int"
    @functools.singledispatchmethod
    @classmethod
    def make(cls, v): return cls.__name__
    @make.register
    @classmethod
    def _(cls, v: int): return v
    @functools.lru_cache
    def plus(self, y): return self.x + y
    more = functools.partialmethod(plus, 1)
@functools.singledispatch
def show(v):
    "Show it."
    return "any"
@show.register
def _(v: int): return "int"
@show.register(list)
def _(v): return [show(x) for x in v]
def lazy():
    l = Lazy(3)
    return l.twice, l.twice is l.twice, Lazy(4).twice, l.kind(1), l.kind(""), l.plus(2), l.more(), l.make(""), l.make(3)
def given(l): return l.twice
def shown(): return show([1, "x", [2]]), show.__name__, show.__doc__, show.dispatch(bool)(True)
"""


def test_functools_objects_are_pickled_by_value(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(MADE, space)
    assert called(tmp_path, space["lazy"]) == ([6], True, [8], "int", "any", 5, 4, "Lazy", 3)
    assert called(tmp_path, space["shown"]) == (["int", "any", ["int"]], "show", "Show it.", "int")
    assert called(tmp_path, space["show"], [1, "x"]) == ["int", "any"]
    assert called(tmp_path, space["given"], space["Lazy"](5)) == [10]
    assert packed_by(tmp_path, MADE, "shown", seed="1") == packed_by(tmp_path, MADE, "shown", seed="2")
