"""Expressions of `${...}`: parts of file names, numbers, arithmetic, and their errors and cost."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from oncue.errors import Invalid, RuleFileError
from oncue.protocol.records import Event
from oncue.rules.active_rules import packed_arguments
from oncue.rules.matching.fields import parse_path
from oncue.rules.parsing.rule_file import Rule, parse
from oncue.rules.rule_cost import rule_s

DATA = {
    "name": "scan_12_f0031.tif",
    "path": "/data/2bm/Run-7/scan_12_f0031.tif",
    "n": 31,
    "x": 0.5,
    "text": " A b ",
    "tags": ["a", 1, "c"],
    "a-b": 4,
    "it's": "quoted",
    "a|b": 1,
    "nested": {"(x)": 5},
    "big": 1 << 80,
    "flag": True,
}


def rule(template: str, **more: Any) -> Rule:
    text = {
        "rules": [{"name": "r", "on": {"type": "t"}, "run": {"function": "f.py:f", "args": {"v": template}}} | more]
    }
    return parse(json.dumps(text), "rules.yaml").rules[0]


def value(template: str, data: Any = DATA) -> Any:
    made = rule(template).runs[0].args.render(Event(id="7", source="/s", type="t", data=data))
    packed_arguments(made)
    return made["v"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${data.name | regex('scan_([0-9]+)')}", "12"),
        ("${data.name | regex('scan_([0-9]+)') | int}", 12),
        ("${data.name | regex('scan_([0-9]+)_f([0-9]+)', 2)}", "0031"),
        ("${data.name | regex('_f(?P<frame>[0-9]+)', 'frame')}", "0031"),
        ("${data.name | regex('[0-9]+')}", "12"),
        ('${data.name | regex("scan_([0-9]{1,3})_f")}', "12"),
        (r"${data.name | regex('\d+(?:_f)(\d{4})') | int}", 31),
        ("${data.name | regex('nope') | default('none')}", "none"),
        ("${data.nope | default(0)}", 0),
        ("${data.nope | stem | lower | default('x') | upper}", "X"),
        ("${data.name | split('_') }", ["scan", "12", "f0031.tif"]),
        ("${data.name | split('_', 1) | int}", 12),
        ("${data.name | split('_', -1) | stem | slice(1) | int}", 31),
        ("${data.name | replace('.tif', '.h5')}", "scan_12_f0031.h5"),
        ("${data.path | parent}/${data.path | stem | replace('scan', 'dark')}.h5", "/data/2bm/Run-7/dark_12_f0031.h5"),
        ("${data.path | parent | name | lower}", "run-7"),
        ("${data.text | strip | upper}", "A B"),
        ("frame_${data.n | pad(5)}.tif", "frame_00031.tif"),
        ("${data.n | pad(6, ' ')}", "    31"),
        ("${data.name | slice(0, 4)}${data.name | slice(-4)}", "scan.tif"),
        ("${data.n + 1}", 32),
        ("${data.n+1 | default('a key')}", "a key"),  # without spaces it is a key, as it always was
        ("${data.a-b}", 4),
        ("${data.n - 1 - 1}", 29),
        ("${2 + 3 * 4 - 6 / 2}", 11),
        ("${(2 + 3) * -4}", -20),
        ("${data.n // 10}", 3),
        ("${data.n % 10}", 1),
        ("${data.n / 2}", 15.5),
        ("${data.n * data.x}", 15.5),
        ("${data.name | regex('_f([0-9]+)') | int + 1}", 32),
        ("${(data.name | regex('_f([0-9]+)') | int + 1) | pad(4)}", "0032"),
        ("${-data.n}", -31),
        ("${data.x | round(1)}", 0.5),
        ("${'x' }", None),
        ("${data.tags | join('-')}", "a-1-c"),
        ("${'3.5' }", None),
        ("${data.name | regex('scan_([0-9]+)') | float}", 12.0),
        ("${data.it's}", "quoted"),
        ("${data.nested.(x)}", 5),
        ('${data."a|b"}', 1),
        ('${data."a|b" + 1}', 2),
        ("${data.name | replace('}', '{') | replace('|', '/')}", "scan_12_f0031.tif"),
        (r"${data.text | replace('\'', '')}", " A b "),
        ("${event.id}-${type | upper}", "7-T"),
        ("$${data.n + 1}", "${data.n + 1}"),
    ],
)
def test_values(template: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(RuleFileError):
            value(template)
        return
    found = value(template)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("${data.name | regexp('x')}", "there is no filter 'regexp': did you mean 'regex'?"),
        ("${data.name | regex}", "`regex` is written regex('pattern')"),
        ("${data.name | regex('(')}", "the regex '(' cannot be used"),
        ("${data.name | regex('a', 1)}", "has groups 0 to 0, not 1"),
        ("${data.name | regex('a', 'n')}", "has no group 'n'"),
        ("${data.name | stem()}", "`stem` is written stem"),
        ("${data.name | replace('a')}", "`replace` is written replace('old', 'new')"),
        ("${data.name | replace('', 'x')}", "the first not empty"),
        ("${data.name | split('')}", "the separator"),
        ("${data.name | split('_', 1.5)}", "whole number"),
        ("${data.n | pad(1000)}", "1 to 100"),
        ("${data.n + }", "not a path"),
        ("${(data.n + 1}", "a `)` is missing"),
        ("${data.n + 1)}", "')' is not expected"),
        ("${data.n 1}", "'1' is not expected"),
        ("${data.n | + 1}", "a filter is missing"),
        ("${data.name | regex('a' 'b')}", "a comma is missing"),
        ("${data.name | regex(data.n)}", "arguments are texts in quotes and numbers"),
        ("${dta.n + 1}", "an event has no 'dta' to look into: did you mean 'data'?"),
        ("${secret:x}", "secrets are for triggers"),
        ("${" + "(" * 40 + "1" + ")" * 40 + "}", "nested over 16 deep"),
        ("${1" + " + 1" * 200 + "}", "at most 64"),
    ],
)
def test_errors_of_a_file_have_their_place(template: str, says: str) -> None:
    with pytest.raises(RuleFileError) as e:
        rule(template)
    assert says in str(e.value)
    assert "args.v: " in str(e.value)
    assert e.value.details["line"] == 1


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("${data.nope + 1}", "args.v: the event has no data.nope"),
        ("${data.name | regex('dark_([0-9]+)')}", "args.v: 'dark_([0-9]+)' is not found in 'scan_12_f0031.tif'"),
        ("${data.name | split('_', 5)}", "has 3 parts"),
        ("${data.name | int}", "'scan_12_f0031.tif' is not a whole number"),
        ("${data.name + 1}", "`+` is for numbers, not str: `| int` makes one of a text"),
        ("${data.flag + 1}", "not bool"),
        ("${data.n | lower}", "`lower` is for a text"),
        ("${data.n / 0}", "a division by 0"),
        ("${data.n % (data.n - 31)}", "a division by 0"),
        ("${data.big + 1}", "more than 64 bits"),
        ("${4611686018427387904 * 8}", "more than 64 bits"),
        ("${data.name | replace('_', '" + "x" * 3_000 + "')}", "over 4,096 characters"),
    ],
)
def test_errors_of_an_event_have_their_place(template: str, says: str) -> None:
    with pytest.raises(Invalid) as e:
        value(template)
    assert says in e.value.message
    assert e.value.message.startswith("args.v: ")


BATCH = {"key": "${data.name | regex('scan_([0-9]+)')}", "count": 3}


def test_the_scans_number_as_the_key_of_a_batch() -> None:
    found = rule("${each.data.name | regex('_f([0-9]+)') | int}", batch=BATCH)
    assert found.operators is not None
    match = found.operators.match("r", "l", 1, Event(id="1", source="/s", type="t", data=DATA), 0, 0)
    assert match.stages[0].key == "12"
    assert match.needs == ("data.name | regex('_f([0-9]+)') | int",)
    rows = found.operators.rows(Event(id="1", source="/s", type="t", data=DATA))
    assert found.runs[0].args.render(rows) == {"v": [31]}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${count + 1}", 2),
        ("${count | pad(3)}", "001"),
        ("${first.data.n + last.data.n * 2}", 93),
        ("${last.data.n - first.data.n + 1}", 1),
        ("${first.data.path | stem}", "scan_12_f0031"),
        ("scan ${key} of ${count}", "scan 12 of 1"),
        ("${key | int + 1}", 13),
    ],
)
def test_expressions_in_the_arguments_of_a_batch(template: str, expected: Any) -> None:
    found = rule(template, batch=BATCH)
    assert found.operators is not None
    rows = found.operators.rows(Event(id="1", source="/s", type="t", data=DATA))
    assert found.runs[0].args.render(rows) == {"v": expected}


@pytest.mark.parametrize("template", ["${each.data.n + 1}", "${data.n + 1}", "${(each.data.n)}"])
def test_lists_and_single_events_are_no_numbers_of_a_batch(template: str) -> None:
    with pytest.raises(RuleFileError, match=r"is a list|is of one"):
        rule(template, batch=BATCH)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("${data.t | regex('((a*)*)*(b|c)*d')}", "a" * 300_000),
        ("${data.t | regex('(.*)(.*)(.*)(.*)z')}", "a" * 299_999 + "z"),
        ("${data.t | split('a') | join('')}", "a" * 300_000),
        ("${data.t | replace('a', 'b') | upper | lower | strip}", "a" * 300_000),
        ("${data.t | int | default(1)}", "9" * 20),
        ("${data.t | stem | replace('a', 'bb')}", "a" * 2_000),
    ],
)
def test_the_bound_of_the_cost_covers_what_it_takes(template: str, text: str) -> None:
    found = rule(template)
    bound_s = rule_s(found, len(text) + 20)
    least_s = float("inf")
    for _ in range(3):
        start = time.thread_time()
        with contextlib.suppress(Invalid):
            found.runs[0].args.render(Event(id="1", source="/s", type="t", data={"t": text}))
        least_s = min(least_s, time.thread_time() - start)
    assert least_s < bound_s


def test_a_path_has_a_bounded_length() -> None:
    assert parse_path("data." + "a" * 9_000) == ("data", "a" * 9_000)
    with pytest.raises(ValueError, match="has 10,005 characters; at most 10,000"):
        parse_path("data." + "a" * 10_000)
