"""Arguments of rules checked against the parameters of their functions, and the errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oncue.cli.rule_files import check_offline, check_packed, pack_functions, read
from oncue.errors import CannotImport, CannotPack, RuleFileError
from oncue.functions import pack_file, pack_function, parameters_in_file
from oncue.functions.signature import parameters_in_text, parameters_of
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION, FunctionRecord, Parameter
from oncue.rules.parsing.argument_check import check_arguments
from oncue.rules.parsing.rule_file import parse

# ---------------------------------------------------------------- what a caller must give


def shown(parameters: Any) -> str | None:
    """path* is required; /x by place only, .x by name only, *x and **x the rest."""
    if parameters is None:
        return None
    marks = {"positional_only": "/", "keyword_only": ".", "var_positional": "*", "var_keyword": "**"}
    return " ".join(marks.get(p.kind, "") + p.name + ("!" if p.required else "") for p in parameters)


def hands_on(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def inner(*args: Any, **kwargs: Any) -> Any:
        for _ in range(2):
            try:
                return f(*args, **kwargs)
            except OSError:
                pass
        return f(*args, **kwargs)

    return inner


def hands_on_later(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    async def inner(*a: Any, **k: Any) -> Any:
        return await f(*a, **k)

    return inner


def adds_one(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return f("connection", *args, **kwargs)

    return inner


def takes_one_out(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def inner(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("quietly", None)
        return f(*args, **kwargs)

    return inner


def calls_another(f: Callable[..., Any]) -> Callable[..., Any]:
    other = print

    @functools.wraps(f)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return other(*args, **kwargs) or f

    return inner


def own_words(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def inner(path: str, *, quietly: bool = False) -> Any:
        return f(path, 1)

    return inner


def plain(path: str, size: int = 0, *rest: int, unit: str, scale: float = 1.0, **more: Any) -> None: ...
def by_place(a: int, b: int = 1, /, c: int = 2) -> None: ...
def two(path: str, size: int) -> None: ...


class Camera:
    def __init__(self, name: str, gain: int = 1) -> None: ...
    def __call__(self, frame: int) -> None: ...
    def snap(self, seconds: float) -> None: ...
    @classmethod
    def make(cls, name: str) -> None: ...


KNOWN: list[tuple[Any, str | None]] = [
    (plain, "path! size *rest .unit! .scale **more"),
    (by_place, "/a! /b c"),
    (lambda: 0, ""),
    (functools.partial(two, "x"), "size!"),
    (functools.partial(two, size=3), "path! .size"),
    (Camera, "name! gain"),
    (Camera("a"), "frame!"),
    (Camera("a").snap, "seconds!"),
    (Camera.make, "name!"),
    (functools.cache(two), "path! size!"),
    (hands_on(two), "path! size!"),
    (hands_on(functools.cache(hands_on_later(two))), "path! size!"),
    (adds_one(two), "*args **kwargs"),
    (takes_one_out(two), "*args **kwargs"),
    (calls_another(two), "*args **kwargs"),
    (hands_on(adds_one(two)), "*args **kwargs"),
    (own_words(two), "path! .quietly"),
    (print, "*args .sep .end .file .flush"),
    (max, None),
    (int, None),
]


@pytest.mark.parametrize(("fn", "wanted"), KNOWN, ids=range(len(KNOWN)))
def test_what_a_caller_must_give(fn: Any, wanted: str | None) -> None:
    assert shown(parameters_of(fn)) == wanted


def test_it_travels_with_the_packed_function_and_leaves_its_hash_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_function(two)
    assert shown(packed.parameters) == "path! size!"
    monkeypatch.setattr("oncue.functions.pack.parameters_of", lambda fn: None)
    unknown = pack_function(two)
    assert (unknown.id, unknown.parameters) == (packed.id, None)


def test_the_record_keeps_it_and_an_old_record_has_none() -> None:
    parameters = (Parameter("path", "positional_or_keyword", True), Parameter("more", "var_keyword"))
    record = FunctionRecord(VERSION, "a" * 64, "f", "ann", "3.11", 4, b"", parameters=parameters)
    assert decode(FunctionRecord, encode(record)) == record
    import msgspec

    old = msgspec.msgpack.encode(msgspec.msgpack.decode(encode(record))[:-1])
    assert decode(FunctionRecord, old).parameters is None


TEXTS: list[tuple[str, str | None]] = [
    ("def f(a, b=1, /, c=2, *d, e, g=3, **h): pass\n", "/a! /b c *d .e! .g **h"),
    ("async def f(a, *, b): pass\n", "a! .b!"),
    ("def f(): pass\n", ""),
    ("@wrapped\ndef f(a): pass\n", None),
    ("def f(a): pass\nf = wrapped(f)\n", None),
    ("if True:\n    def f(a): pass\n", None),
    ("from x import f\n", None),
    ("from x import *\ndef f(a): pass\n", None),
    ("class f:\n    def __init__(self, a): pass\n", None),
]


@pytest.mark.parametrize(("text", "wanted"), TEXTS)
def test_what_the_text_alone_says(text: str, wanted: str | None) -> None:
    assert shown(parameters_in_text(text, "f")) == wanted


def test_a_file_that_cannot_be_imported_here_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tomo.py"
    path.write_text("import nowhere_to_be_found\ndef rebuild(path, size=0): pass\n")
    found, why = parameters_in_file(path, "rebuild")
    assert shown(found) == "path! size"
    assert "nowhere_to_be_found" in why
    with pytest.raises(CannotPack, match="has no 'rebuid'") as e:
        parameters_in_file(path, "rebuid")
    assert "did you mean 'rebuild'?" in e.value.remedy
    with pytest.raises(CannotImport):
        pack_file(path, "rebuild")
    path.write_text("@functools.cache\ndef rebuild(path, size=0): pass\n")
    assert parameters_in_file(path, "rebuild")[0] is None
    path.write_text("import functools\n@functools.cache\ndef rebuild(path, size=0): pass\n")
    assert (shown(parameters_in_file(path, "rebuild")[0]), parameters_in_file(path, "rebuild")[1]) == ("path! size", "")
    path.write_text("def rebuild(:\n")
    with pytest.raises(CannotImport, match="line 1"):
        parameters_in_file(path, "rebuild")
    with pytest.raises(CannotPack, match="there is no file"):
        parameters_in_file(tmp_path / "none.py", "f")


# ---------------------------------------------------------------- what is said


def rule(args: str) -> str:
    """`args` stands in line 6, from column 13."""
    given = f"\n      args: {args}" if args else ""
    return f"rules:\n  - name: r\n    on: {{type: x}}\n    run:\n      function: tomo.py:f{given}\n"


FITS: list[tuple[str, str]] = [
    ("path, size=0", "{path: a}"),
    ("path, size=0", "{path: a, size: 3}"),
    ("path, size=0", "[a, 3]"),
    ("path, size=0", '["${data.path}"]'),
    ("", ""),
    ("", "{}"),
    ("", "[]"),
    ("path=1", ""),
    ("*all", "[1, 2, 3]"),
    ("**all", "{a: 1, b: 2}"),
    ("path, **more", "{path: 1, pathh: 2}"),
    ("a, /, b", "[1, 2]"),
    ("a=1, /, **more", "{a: 1}"),
    ("a, *, b=1", "[1]"),
    ("*, unit", "{unit: mm}"),
]


@pytest.mark.parametrize(("signature", "args"), FITS)
def test_what_fits(signature: str, args: str) -> None:
    text = f"def f({signature}): pass\n"
    check_arguments(parse(rule(args), "r.yaml"), {"tomo.py:f": parameters_in_text(text, "f")})


WRONG: list[tuple[str, str, tuple[int, int], str, str]] = [
    # signature, args, place, message, remedy
    ("path, size=0", "{pth: a}", (6, 14), "f() has no parameter 'pth'", "did you mean 'path'?"),
    ("path, size=0", "{path: a, sise: 1}", (6, 23), "f() has no parameter 'sise'", "did you mean 'size'?"),
    ("path, size=0", "{path: a, colour: 1}", (6, 23), "f() has no parameter 'colour'", "known: size"),
    ("path", "{path: a, colour: 1}", (6, 23), "f() has no parameter 'colour'", "known: path"),
    ("", "{colour: 1}", (6, 14), "f() has no parameter 'colour'", "there are none"),
    ("path, size=0", "{size: 1}", (6, 13), "f() needs 'path'", "add it to `args`: path: ..."),
    ("path, size=0", "", (5, 17), "f() needs 'path'", "add it to `args`: path: ..."),
    ("path, size=0", "[]", (6, 13), "f() needs 'path'", "add it to `args`: path: ..."),
    ("path, size", "[a]", (6, 13), "f() needs 'size'", "write `args` as a list of path, size"),
    ("path, size=0", "[a, 1, 2]", (6, 20), "f() takes 2 arguments by place, and 3 are given",
     "its parameters by place: path, size"),
    ("*, unit=1", "[a]", (6, 14), "f() takes 0 arguments by place, and 1 are given", "it takes none by place: name them"),
    ("a, *, unit", "[a]", (6, 13), "f() needs 'unit'", "write `args` as a mapping: {unit: ...}"),
    ("a, /", "{a: 1}", (6, 14), "f() takes 'a' by place only", "write `args` as a list"),
    ("a, /, **more", "{a: 1}", (6, 13), "f() needs 'a'", "write `args` as a list of a"),
    ("path, *rest, unit", "{path: a, rest: 1}", (6, 23), "f() has no parameter 'rest'", "known: unit"),
]  # fmt: skip


@pytest.mark.parametrize(("signature", "args", "place", "message", "remedy"), WRONG)
def test_the_exact_error(signature: str, args: str, place: tuple[int, int], message: str, remedy: str) -> None:
    known = {"tomo.py:f": parameters_in_text(f"def f({signature}): pass\n", "f")}
    with pytest.raises(RuleFileError) as e:
        check_arguments(parse(rule(args), "r.yaml"), known)
    first = min(e.value.details["problems"], key=lambda p: message not in p["message"])
    assert (first["line"], first["column"]) == place
    assert first["message"] == f"args: {message}"
    assert first["remedy"] == remedy
    assert str(e.value).startswith("r.yaml:")
    misspelt = remedy.startswith("did you mean")
    assert e.value.details["count"] == 1 or not misspelt  # one mistake gives one message


def test_all_that_does_not_fit_and_nothing_of_what_is_not_known() -> None:
    text = (
        "rules:\n"
        "  - {name: a, on: {type: x}, run: [{function: f, args: {pth: 1}}, {function: g, args: {pth: 1}}]}\n"
        "  - {name: b, on: {type: x}, run: {function: f}}\n"
        "  - {name: c, on: {type: x}, run: {function: h, args: {anything: 1}}}\n"
    )
    f = parameters_in_text("def f(path): pass\n", "f")
    with pytest.raises(RuleFileError) as e:
        check_arguments(parse(text, "r.yaml"), {"f": f, "g": f, "h": None})
    assert [(p["line"], p["message"]) for p in e.value.details["problems"]] == [
        (2, "args: f() has no parameter 'pth'"),
        (2, "args: g() has no parameter 'pth'"),
        (3, "args: f() needs 'path'"),
    ]
    check_arguments(parse(text, "r.yaml"), {})


def test_offline_as_in_a_deploy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`oncue rules test` and `oncue deploy` report the same errors; each reads the function's parameters its own way."""
    (tmp_path / "tomo.py").write_text("print('imported')\ndef f(path, size=0): pass\n")
    path = tmp_path / "r.yaml"
    path.write_text(rule("{pth: a}"))
    sets = read([str(path)])
    with pytest.raises(RuleFileError) as deploying:
        check_packed(sets, pack_functions(sets))
    with pytest.raises(RuleFileError) as testing:
        check_offline(sets)
    assert str(deploying.value) == str(testing.value)
    assert re.match(rf"{re.escape(str(path))}:6:14: ", str(testing.value))
    assert capsys.readouterr().out == ""  # what a module prints is not the command's answer
    (tmp_path / "tomo.py").write_text("import nowhere_to_be_found\ndef f(path, size=0): pass\n")
    with pytest.raises(RuleFileError) as reading:
        check_offline(sets)
    assert str(reading.value) == str(testing.value)
    assert "its source was parsed instead" in capsys.readouterr().err
