"""Rules above functions in Python are the same as those of a rule file, with the lines of the Python file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import oncue
from oncue.cli.deploying.python_rules import written_lines
from oncue.cli.deploying.request import prepare
from oncue.cli.deploying.values import Values
from oncue.cli.rule_files import read
from oncue.errors import CannotImport, OncueError, RuleFileError
from oncue.functions.load import load_function

PYTHON = """import oncue

frames = oncue.file("/data", glob="*.h5", ready={"stable": "2s"}, name="frames")


@oncue.rule(
    on=frames,
    match={"data.size": {"gt": "1MB"}},
    retry={"max": 3},
    endpoint="polaris",
    args={"path": "${each.data.path}"},
    batch={"count": 5, "wait": "10s"},
    name="reconstruct",
)
@oncue.rule(on=oncue.webhook(verify="none"), name="by-hand", args=["${data.path}"], timeout="1h")
def tomo(path, times=1):
    return path * times


@oncue.rule(on=oncue.done("reconstruct", state=["succeeded"]))
def tell():
    pass


@oncue.rule(on=[frames, "other"])
def both():
    pass
"""
SAME = """
triggers:
  - {name: by-hand-webhook, kind: webhook, verify: none}
  - {name: frames, kind: file, path: /data, glob: "*.h5", ready: {stable: 2s}}
rules:
  - {name: by-hand, on: by-hand-webhook, timeout: 1h, run: {function: tomo.py:tomo, args: ["${data.path}"]}}
  - name: reconstruct
    on: frames
    match: {data.size: {gt: 1MB}}
    retry: {max: 3}
    batch: {count: 5, wait: 10s}
    run: {function: tomo.py:tomo, endpoint: polaris, args: {path: "${each.data.path}"}}
  - {name: tell, on: {done: [reconstruct], state: [succeeded]}, run: {function: tomo.py:tell}}
  - {name: both, on: [frames, other], run: {function: tomo.py:both}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "tomo.py") -> str:
    Path(name).write_text(text)
    return name


def test_they_are_those_of_a_rule_file(folder: Path) -> None:
    (made,) = read([write(PYTHON)])
    (same,) = read([write(SAME, "same.yaml")])

    assert [(t.name, t.kind, t.options) for t in made.triggers] == [(t.name, t.kind, t.options) for t in same.triggers]
    assert [r.source for r in made.rules] == [r.source for r in same.rules]
    assert read(["tomo.py"])[0].text == made.text


PATTERNS = """import oncue

raws, darks = oncue.file("/raw", name="raws"), oncue.file("/dark", name="darks")
KEY = "${data.scan}"


@oncue.rule(on=[raws, darks], join={"key": KEY, "all": {"raw": raws, "dark": darks}, "deadline": "1h"})
def named():
    pass


@oncue.rule(join={"key": KEY, "all": {"raw": {"on": raws}, "other": {"on": {"type": "x"}}}, "deadline": "1h"})
def alone():
    pass
"""
SAME_PATTERNS = """
triggers:
  - {name: raws, kind: file, path: /raw}
  - {name: darks, kind: file, path: /dark}
rules:
  - name: named
    on: [raws, darks]
    join: {key: "${data.scan}", all: {raw: raws, dark: darks}, deadline: 1h}
    run: {function: tomo.py:named}
  - name: alone
    join: {key: "${data.scan}", all: {raw: {on: raws}, other: {on: {type: x}}}, deadline: 1h}
    run: {function: tomo.py:alone}
"""


def test_triggers_may_stand_in_patterns_which_need_no_on(folder: Path) -> None:
    (made,) = read([write(PATTERNS)])
    (same,) = read([write(SAME_PATTERNS, "same.yaml")])

    assert [t.name for t in made.triggers] == [t.name for t in same.triggers]
    assert [r.source for r in made.rules] == [r.source for r in same.rules]


def test_their_functions_are_packed_as_ever(folder: Path) -> None:
    prepared = prepare([write(PYTHON)], "", Values(), prune=False, note="", replace=False)

    assert {f.label for f in prepared.request.files} == {"tomo"}
    assert load_function(prepared.packed["tomo.py:tomo"].body)("ab", 2) == "abab"


def rule(keys: str) -> str:
    return f"import oncue\n\n\n@oncue.rule({keys})\ndef f(path):\n    pass\n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('on={"type": "x"}, retyr={"max": 3}', "a rule has no key 'retyr'"),
        ('on={"type": "x"}, retry={"max": "many"}', "`max` is a whole number"),
        ('on={"type": "x"}, endpoint=5', "`endpoint` is|endpoint"),
        ('on=oncue.file("/x", glub="*")', "glub"),
        ('on={"type": "x"}, name="a b"', "is not a name"),
        ('on={"type": "x"}, args={"path": object()}', "run: .*object"),
        ('on={"type": "x"}, args={"path": float("nan")}', "run: .*"),
        ('on={"type": "x"}, args={"path": "${var:x}"}', "the variable x has no value"),
        ('on={"type": "x"}, args={"wrong": 1}', "wrong"),
        (
            'on={"type": "x"}, args={"path": 1}, tests=[{"event": {"type": "y"}, "expect": {"fires": True}}]',
            "does not fire",
        ),
    ],
)
def test_mistakes_have_the_line_of_the_python_file(folder: Path, keys: str, message: str) -> None:
    with pytest.raises(RuleFileError, match=message) as e:
        prepare([write(rule(keys))], "", Values(), prune=False, note="", replace=False)
    assert (e.value.file, e.value.line) == ("tomo.py", 4)


def test_several_mistakes_have_their_lines(folder: Path) -> None:
    text = rule('on={"type": "x"}, retyr=1') + "\n\n@oncue.rule(on={'type': 'x'}, odd=1)\ndef g():\n    pass\n"
    with pytest.raises(RuleFileError) as e:
        read([write(text)])
    assert "tomo.py:9:1: a rule has no key 'odd'" in e.value.message
    assert [p["line"] for p in e.value.details["problems"]] == [4, 9]


def test_errors_of_the_server_have_them_too(folder: Path) -> None:
    (made,) = read([write(PYTHON)])
    line = made.text.splitlines().index('- name: "reconstruct"') + 1
    with pytest.raises(RuleFileError) as e, written_lines({"tomo": "tomo.py"}):
        raise RuleFileError("there is no endpoint", file="tomo", line=line + 2, column=3)
    assert (e.value.file, e.value.line) == ("tomo.py", 6)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("def f(): pass\n", RuleFileError, "no function has a rule"),
        ("1 / 0\n", CannotImport, "ZeroDivisionError"),
        ("def\n", CannotImport, "line 1"),
    ],
)
def test_a_file_without_rules_is_refused(folder: Path, text: str, error: type[OncueError], message: str) -> None:
    with pytest.raises(error, match=message):
        read([write(text)])


def test_rules_of_other_files_are_not_taken(folder: Path) -> None:
    write(rule('on={"type": "x"}, name="theirs"'), "library.py")
    (made,) = read([write("import library\n" + rule('on={"type": "x"}, name="mine"'))])
    assert [r.name for r in made.rules] == ["mine"]


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    def f(x: Any) -> Any:
        return x

    assert oncue.rule(on="anything", odd=object())(f) is f
