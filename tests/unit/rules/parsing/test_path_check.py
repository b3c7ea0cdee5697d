"""Globs on relative paths that begin with a slash can never match; a deploy reports them."""

from __future__ import annotations

import pytest

from oncue.errors import RuleFileError
from oncue.globs import compiled, never_relative
from oncue.rules.parsing.rule_file import parse
from oncue.triggers.catalog import OptionStructs

OPTIONS = OptionStructs()


def read(trigger: str = "", match: str = "{}", on: str = "scans") -> None:
    parse(
        "triggers:\n"
        f"  - {{name: scans, kind: file, path: /data/2bm{trigger}}}\n"
        "  - {name: others, kind: file, path: /else}\n"
        "  - {name: daq, kind: webhook, verify: {bearer: '${secret:daq}'}}\n"
        "rules:\n"
        f"  - {{name: r, on: {on}, run: {{function: f}},\n"
        f"     match: {match}}}\n",
        "r.yaml",
        OPTIONS,
    )


@pytest.mark.parametrize("glob", ["/*.h5", "/raw/*.h5", "//x", "./*.h5", "/"])
def test_a_glob_that_never_is_relative(glob: str) -> None:
    rest = never_relative(glob)
    assert rest is not None
    for path in ("x.h5", "raw/x.h5", "x", ".x/y.h5"):
        assert not compiled(glob).fullmatch(path)
    assert never_relative(rest) is None


@pytest.mark.parametrize("glob", ["*.h5", "**/*.h5", ".*/x", "{/a,b}", "[/]x", "..x", ".h5", ""])
def test_a_glob_that_may_be_relative(glob: str) -> None:
    assert never_relative(glob) is None


@pytest.mark.parametrize(
    ("trigger", "column", "said", "remedy"),
    [
        (', glob: "/raw/*.h5"', 54, "glob: '/raw/*.h5' never matches", "leave out what is before 'raw/*.h5'"),
        (', glob: "/data/2bm/*.h5"', 54, "glob: '/data/2bm/*.h5' never matches", "leave out what is before '*.h5'"),
        (', glob: ""', 54, "glob: '' never matches", 'write glob: "**/*.h5"'),
        (', glob: "raw/"', 54, "glob: 'raw/' never matches", 'write glob: "**/*.h5"'),
        (', glob: "./*.h5"', 54, "glob: './*.h5' never matches", "'*.h5'"),
        (', ignore: ["*.tmp", "/raw/*"]', 56, "ignore: '/raw/*' never matches", "'raw/*'"),
    ],
)
def test_a_trigger_that_never_fires_is_refused(trigger: str, column: int, said: str, remedy: str) -> None:
    with pytest.raises(RuleFileError) as e:
        read(trigger)
    assert (e.value.file, e.value.line, e.value.column) == ("r.yaml", 2, column)
    assert said in e.value.message
    assert remedy in str(e.value)


@pytest.mark.parametrize(
    ("match", "on", "column"),
    [
        ('{data.relative: {glob: "/*.h5"}}', "scans", 36),
        ('{data.size: 1, subject: {prefix: "/raw"}}', "[scans, others]", 46),
        ('{data.name: "/x.h5"}', "scans", 25),
        ('{any: [{data.name: {any: [{glob: "*.h5"}, {glob: "/x"}]}}, {data.size: 1}]}', "scans", 62),
    ],
)
def test_a_condition_that_never_holds_is_refused(match: str, on: str, column: int) -> None:
    with pytest.raises(RuleFileError) as e:
        read(match=match, on=on)
    assert (e.value.line, e.value.column) == (7, column)
    assert "never holds: it is relative to the trigger's folder" in e.value.message


@pytest.mark.parametrize(
    ("match", "on"),
    [
        ('{data.path: {glob: "/data/**"}}', "scans"),
        ('{data.relative: {glob: "/*.h5"}}', "[scans, daq]"),
        ('{data.relative: {glob: "/*.h5"}}', "{type: oncue.file.ready}"),
        ('{not: {data.relative: {glob: "/*.h5"}}}', "scans"),
        ('{data.relative: {not: {glob: "/*.h5"}}}', "scans"),
        ('{data.folder: "/data/2bm"}', "scans"),
    ],
)
def test_a_condition_that_may_hold(match: str, on: str) -> None:
    read(match=match, on=on)
