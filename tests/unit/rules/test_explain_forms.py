"""An explanation tells when only the form of a text is in the way."""

from __future__ import annotations

import time

import pytest

from oncue.protocol.records import Event
from oncue.rules.explain import explain
from oncue.rules.parsing.rule_file import parse
from oncue.triggers.catalog import OptionStructs

ONE, TWO = "\u00e9", "e\u0301"
RULE = "rules:\n  - name: r\n    on: {type: t}\n    %s\n    run: {function: f}\n"


def why(condition: str, **data: object) -> str:
    (rule,) = parse(RULE % condition, "r.yaml", OptionStructs()).rules
    return explain(rule, Event(id="1", source="/a", type="t", data=data)).why


@pytest.mark.parametrize(
    "condition",
    [
        "match: {data.name: %s.h5}",
        "match: {data.name: {glob: '%s*'}}",
        "match: {data.name: {prefix: %s}}",
        "match: {data.name: {in: [a, %s.h5]}}",
        "match: {data.name: {regex: '^%s'}}",
        "when: data.name == '%s.h5'",
    ],
)
@pytest.mark.parametrize(("written", "found"), [(ONE, TWO), (TWO, ONE)])
def test_another_unicode_form_is_told_with_its_code_points(condition: str, written: str, found: str) -> None:
    said = why(condition % written, name=f"{found}.h5")
    assert "another Unicode form" in said
    if condition.startswith("match"):
        assert repr(f"{found}.h5".encode("ascii", "backslashreplace").decode())[1:-1].replace("\\\\", "\\") in said


@pytest.mark.parametrize("condition", ["match: {data.name: {glob: '*.h5'}}", "when: data.name.endsWith('.h5')"])
def test_another_case_is_told(condition: str) -> None:
    assert "(?i)" in why(condition, name="SCAN.H5")


def test_nothing_is_told_where_more_differs() -> None:
    for name in ("scan.tif", "\u00e9", 5, None):
        assert "would hold" not in why("match: {data.name: scan.h5}", name=name)
    assert "would hold" not in why("when: data.missing == 'a'", name="A")


def test_a_hostile_event_is_explained_soon() -> None:
    marks = "a" + "\u0301\u0316" * 500_000
    began = time.process_time()
    why("match: {data.name: scan.h5}", name=marks, many=["\u0301\u0316" * 250] * 2_000)
    why("match: {data.name: scan.h5}", name="SCAN.H5", many=[[n] for n in range(500_000)])
    assert time.process_time() - began < 5
