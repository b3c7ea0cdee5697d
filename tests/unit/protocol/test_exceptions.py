"""Exceptions as data: all of Python's own, users' own, and bytes of an outsider."""

from __future__ import annotations

import builtins
import errno
import json
import pickle
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue.errors import TaskFailed
from oncue.protocol import payload
from oncue.protocol.exceptions import EXCEPTION_BYTES, ExceptionData, from_data, to_data


def through(error: BaseException, *, trusted: bool = True) -> BaseException | None:
    loaded: list[bytes] = []

    def load(content: bytes) -> Any:
        loaded.append(content)
        return payload.unpack(content)

    found = from_data(to_data(error), load, lambda: trusted)
    assert trusted or not loaded
    return found


def raised(cause: Any) -> BaseException:
    try:
        cause()
    except BaseException as e:
        return e
    raise AssertionError("it raised nothing")


def attributes(error: BaseException) -> dict[str, Any]:
    """Return what Python shows of an exception, but its traceback and chain."""
    left_out = ("with_traceback", "add_note", "split", "subgroup", "derive", "exceptions")
    names = [n for n in dir(error) if not n.startswith("__") and n not in left_out]
    return {n: getattr(error, n, "not set") for n in names} | {"notes": getattr(error, "__notes__", None)}


def same(found: BaseException | None, error: BaseException) -> bool:
    assert found is not None
    if isinstance(error, BaseExceptionGroup):
        assert isinstance(found, BaseExceptionGroup)
        assert len(found.exceptions) == len(error.exceptions)
        members = zip(found.exceptions, error.exceptions, strict=True)
        return type(found) is type(error) and found.message == error.message and all(same(a, b) for a, b in members)
    assert type(found) is type(error)
    assert (str(found), repr(found), found.args) == (str(error), repr(error), error.args)
    assert attributes(found) == attributes(error)
    return True


def every_builtin() -> Iterator[type[BaseException]]:
    for value in vars(builtins).values():
        if isinstance(value, type) and issubclass(value, BaseException) and value.__name__ != "_IncompleteInputError":
            yield value


SPECIAL: dict[type[BaseException], tuple[Any, ...]] = {
    UnicodeDecodeError: ("utf-8", b"\xff abc", 0, 1, "invalid start byte"),
    UnicodeEncodeError: ("ascii", "ä\ud800", 0, 2, "ordinal not in range"),
    UnicodeTranslateError: ("ä", 0, 1, "no such"),
    **dict.fromkeys((SyntaxError, IndentationError, TabError), ("bad", ("f.py", 1, 2, "x y", 1, 3))),
    ExceptionGroup: ("several", [ValueError(1), KeyError("k")]),
    BaseExceptionGroup: ("several", [SystemExit(3), ExceptionGroup("inner", [OSError(2, "x")])]),
}


@pytest.mark.parametrize("kind", dict.fromkeys(every_builtin()))
def test_each_builtin_arrives_as_itself(kind: type[BaseException]) -> None:
    error = kind(*SPECIAL.get(kind, ("text", 3)))
    error.add_note("while it scanned")

    assert same(through(error), error)
    if issubclass(kind, Exception):
        assert same(through(error, trusted=False), error)


REAL: dict[str, Any] = {
    "no file": lambda: open("/no/such/file"),  # noqa: SIM115
    "two names": lambda: Path("/no/such/file").rename("/no/other"),
    "a name that is no UTF-8": lambda: open(b"/no/such/\xff\xfe"),  # noqa: SIM115
    "key": lambda: {}["k"],
    "key of tuples": lambda: {}[1, ("a", frozenset({2}), 2**100, 1j, b"x", "\ud800", None)],
    "index": lambda: [][3],
    "import": lambda: __import__("no_such_module"),
    "import from": lambda: exec("from json import no_such_name"),
    "name": lambda: exec("no_such_name"),
    "attribute": lambda: "text".no_such,  # type: ignore[attr-defined]
    "syntax": lambda: compile("a = (1,\nb c", "file.py", "exec"),
    "indentation": lambda: compile("if 1:\nx", "file.py", "exec"),
    "decode": lambda: b"\xff".decode(),
    "encode": lambda: "ä".encode("ascii"),
    "exit": lambda: sys.exit(3),
    "exit with text": lambda: sys.exit("why"),
    "stop": lambda: next(iter(())),
    "division": lambda: 1 // 0,
    "type": lambda: len(3),  # type: ignore[arg-type]
    "json": lambda: json.loads("{"),
    "process": lambda: subprocess.run(["false"], check=True, capture_output=True),
    "pickle": lambda: pickle.loads(b"?"),
}


@pytest.mark.parametrize("name", REAL)
def test_what_python_raises_arrives_as_it_was(name: str) -> None:
    error = raised(REAL[name])

    assert same(through(error), error)


def test_the_attributes_of_an_os_error_need_no_trust() -> None:
    found = through(raised(lambda: open("/no/such/file")), trusted=False)  # noqa: SIM115

    assert type(found) is FileNotFoundError
    assert (found.errno, found.filename) == (errno.ENOENT, "/no/such/file")


def test_the_object_of_an_attribute_error_travels() -> None:
    found = through(raised(lambda: json.no_such))  # type: ignore[attr-defined]

    assert isinstance(found, AttributeError)
    assert (found.name, found.obj) == ("no_such", json)


def test_stop_iteration_keeps_its_value() -> None:
    found = through(StopIteration((1, 2)))

    assert isinstance(found, StopIteration)
    assert found.value == (1, 2)


def test_attributes_that_were_set_later_travel() -> None:
    error = ValueError("bad")
    error.code, error.where = 5, {"line": (1, 2)}  # type: ignore[attr-defined]

    assert vars(through(error)) == {"code": 5, "where": {"line": (1, 2)}}  # type: ignore[arg-type]


# ---------------------------------------------------------------- users' own classes


class ScanError(Exception):
    """Its arguments are not those of `args`: pickle alone cannot read it."""

    def __init__(self, scan: int, *, beamline: str) -> None:
        super().__init__(f"scan {scan} at {beamline}")
        self.scan, self.beamline = scan, beamline


class Slotted(ValueError):
    __slots__ = ("extra",)


class OwnOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOSPC, "full", path)
        self.path = path


class OwnGroup(ExceptionGroup[Exception]):
    def __new__(cls, message: str, errors: list[Exception], code: int) -> OwnGroup:
        made = super().__new__(cls, message, errors)
        made.code = code
        return made

    code: int


class Reduced(Exception):
    def __init__(self, secret: int) -> None:
        self.secret = secret

    def __reduce__(self) -> Any:
        return Reduced, (self.secret,)


class CannotBeReduced(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


def slotted() -> Slotted:
    error = Slotted("x")
    error.extra = [1]
    return error


OWN: dict[str, BaseException] = {
    "arguments": ScanError(3, beamline="2bm"),
    "slots": slotted(),
    "os error": OwnOSError("/data"),
    "group": OwnGroup("several", [ScanError(1, beamline="x"), ValueError(2)], 7),
    "reduce": Reduced(4),
    "broken reduce": CannotBeReduced("why"),
    "in a builtin group": ExceptionGroup("several", [ScanError(1, beamline="x")]),
}


@pytest.mark.parametrize("name", OWN)
def test_a_users_own_class_arrives_as_itself_from_a_trusted_endpoint(name: str) -> None:
    error = OWN[name]
    error.add_note("a note")

    found = through(error)

    assert same(found, error)
    assert getattr(found, "__notes__", None)
    assert getattr(found, "code", None) == getattr(error, "code", None)


def test_a_class_of_a_script_arrives_as_itself() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Local(Exception): pass", space)

    assert type(through(space["Local"]("x"))) is space["Local"]


@pytest.mark.parametrize("name", [n for n in OWN if n != "in a builtin group"])
def test_a_class_from_an_endpoint_without_trust_is_not_loaded(name: str) -> None:
    assert through(OWN[name], trusted=False) is None


def test_a_group_without_trust_has_stand_ins_for_other_classes() -> None:
    found = through(ExceptionGroup("several", [ScanError(1, beamline="x"), KeyError("k")]), trusted=False)

    assert isinstance(found, ExceptionGroup)
    own, key = found.exceptions
    assert isinstance(own, TaskFailed)
    assert own.type_name.endswith("ScanError")
    assert "scan 1 at x" in own.message
    assert key.args == ("k",)


def test_without_trust_nobody_elses_exit_ends_the_program() -> None:
    assert through(SystemExit(0), trusted=False) is None
    assert through(KeyboardInterrupt(), trusted=False) is None


def test_a_class_that_is_not_here_gives_none() -> None:
    module = types.ModuleType("only_there")
    exec("class Strange(Exception): pass", vars(module))
    sys.modules["only_there"] = module
    data = to_data(module.Strange("x"))
    del sys.modules["only_there"]

    assert from_data(data, payload.unpack, lambda: True) is None


# ---------------------------------------------------------------- what is too much


LARGE: dict[str, BaseException] = {
    "text": ValueError("x" * 10_000_000),
    "bytes": UnicodeDecodeError("utf-8", b"\xff" * 10_000_000, 0, 1, "invalid"),
    "list": ValueError(list(range(1_000_000))),
    "int": ValueError(10**1_000_000),
    "many": ExceptionGroup("many", [ValueError("x" * 5_000) for _ in range(5_000)]),
    "notes": ValueError("x"),
    "object": AttributeError("x", name="y", obj=memoryview(bytearray(10_000_000))),
    "pickled": ValueError(bytearray(10_000_000)),
}
for _ in range(10_000):
    LARGE["notes"].add_note("n" * 1_000)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_exception_is_cut_and_keeps_its_class(name: str) -> None:
    data = to_data(LARGE[name])

    assert len(data) < 2 * EXCEPTION_BYTES
    assert type(from_data(data, payload.unpack, lambda: True)) is type(LARGE[name])


def test_a_deep_exception_is_cut() -> None:
    error: Exception = ValueError("inner")
    for _ in range(500):
        error = ExceptionGroup("outer", [error])
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]

    assert isinstance(through(ValueError(nested)), ValueError)
    assert isinstance(through(error), ExceptionGroup)


# ---------------------------------------------------------------- bytes of an outsider


def test_bytes_that_are_no_exception_give_none() -> None:
    def never(_: bytes) -> Any:
        raise AssertionError("it was loaded")

    odd = ExceptionData("builtins", "ValueError", "", [["s", [[]]]])
    empty = ExceptionData("builtins", "ExceptionGroup", "", ["x", ["l", []]])
    no_class = ExceptionData("builtins", "print", "", [])
    evil = ExceptionData("os", "system", "", ["true"])
    for data in (b"?", b"\x90", *map(msgspec.msgpack.encode, (odd, empty, no_class, evil))):
        assert from_data(data, never, lambda: False) is None


def test_an_outsider_sets_no_special_attribute() -> None:
    data = ExceptionData("builtins", "ValueError", "", [], attributes={"__class__": 1, "__traceback__": 2, "new": 3})

    found = from_data(msgspec.msgpack.encode(data), payload.unpack, lambda: False)

    assert type(found) is ValueError
    assert not hasattr(found, "new")


def test_an_outsiders_error_imports_nothing_when_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown_by_outsider.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    hints = {"name": "shown_by_outsider", "name_from": "x"}  # Python 3.12 looks there for names like x
    data = ExceptionData("builtins", "ImportError", "", ["cannot import name"], attributes=hints)

    found = from_data(msgspec.msgpack.encode(data), payload.unpack, lambda: False)

    assert isinstance(found, ImportError)
    traceback.format_exception(found)
    assert found.name == "shown_by_outsider"
    assert "shown_by_outsider" not in sys.modules
