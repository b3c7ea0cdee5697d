"""Rule files of 1 MB that are made to be dear: parsing ends soon, with a bounded number of problems."""

from __future__ import annotations

import time

import pytest

from oncue.errors import RuleFileError
from oncue.rules.parsing.rule_file import RuleSet, parse, parse_together
from oncue.strict_yaml import document as yaml_document
from oncue.strict_yaml.document import MANY, MAX_BYTES, SHOWN, SLOW_BYTES, Node, Problems
from oncue.triggers.catalog import OptionStructs

CPU_S = 15.0  # most take 1 s; the one of the issue took 44
RULE = "rules: [{name: a, on: {type: x}, run: {function: f}, "


def filled(before: str, item: str, after: str = "") -> str:
    """Return a file of nearly the largest size with the item repeated."""
    return before + item * ((MAX_BYTES - len(before) - len(after)) // len(item)) + after


def numbered(before: str, item: str, after: str = "") -> str:
    """Return a file of nearly the largest size; `#` is the number of the item."""
    room = MAX_BYTES - len(before) - len(after)
    out, n = [], 0
    while (piece := item.replace("#", str(n))) and room >= len(piece):
        out.append(piece)
        room, n = room - len(piece), n + 1
    return before + "".join(out) + after


ARGS = "rules: [{name: a, on: {type: x}, run: {function: f, args: {x: "
HOSTILE = {
    "spaces after a filter": filled(ARGS + "'${data.x | int", " ", "!}'}}}]"),
    "quotes of arguments that are not closed": filled(ARGS + "'", '${(\\"}', "'}}}]"),
    "a list of empty mappings": filled("", "- {}\n"),
    "empty rules": filled("rules:\n", "- {}\n"),
    "empty triggers": filled("triggers:\n", "- {}\n"),
    "empty lists": filled("rules: [", "[],", "]"),
    "unknown keys": numbered("rules: [{", "k#: 1,", "}]"),
    "long unknown keys": numbered("rules: [{", "name" * 300 + "#: 1,", "}]"),
    "unknown keys of the file": numbered("", "rule#: 1\n"),
    "one key many times": filled("rules: [{", "a: 1,", "}]"),
    "two huge keys": "rules:\n- {" + "x" * 500_000 + ": 1, " + "y" * 500_000 + ": 2}\n",
    "a huge text": "rules: '" + "x" * 1_000_000 + "'",
    "huge integers": filled("rules: [", "9" * 4_000 + ",", "]"),
    "deep lists": filled("", "["),
    "deep mappings": filled("", "{a: "),
    "deep by dashes": filled("", "- "),
    "deep by question marks": filled("", "? "),
    "colons": filled("", ":"),
    "anchors": filled("[", "&a 1,", "]"),
    "an alias that grows": "a: &a [1,2]\n" + "".join(f"a{n}: [*a, *a]\n" for n in range(1_000)),
    "a mistake at the end": filled("rules: [", "a,", "}"),
    "an unclosed quote": filled("rules: '", "a: b\n"),
    "wrong runs": filled("rules: [{name: a, on: {type: x}, run: [", "{},", "]}]"),
    "names of triggers that are not there": filled("rules: [{name: a, run: {function: f}, on: [", "x,", "]}]"),
    "wrong tests": filled(RULE + "tests: [", "{},", "]}]"),
    "events of a test": filled(RULE + "tests: [{events: [", "{event: {}},", "]}]}]"),
    "a test of much data": filled(RULE + "tests: [{event: {data: [", "1,", "]}, expect: {}}]}]"),
    "wrong operators": numbered(RULE + "match: {data.a: {", "eq#: 1,", "}}}]"),
    "wrong paths": numbered(RULE + "match: {", "d#.a: 1,", "}}]"),
    "long paths": filled(RULE + "match: {data", ".a", ": 1}}]"),
    "many conditions": filled(RULE + "match: {any: [", "{data.a: 1},", "]}}]"),
    "many globs": numbered(RULE + "match: {data.a: {any: [", "{glob: '[#]{a,b}'},", "]}}}]"),
    "many regexes": numbered(RULE + "match: {data.a: {any: [", "{regex: 'a{1,99}#'},", "]}}}]"),
    "large regexes of many rules": numbered(
        "rules:\n", "- {name: r#, on: {type: x}, match: {data.a: {regex: '\\pL{40}#'}}, run: {function: f}}\n"
    ),
    "many conditions in CEL": numbered("rules:\n", "- {name: r#, on: {type: x}, run: {function: f}, when: data.a > #}\n"),
    "arguments": filled(RULE.replace("f}", "f, args: [") , '"${data.a}",', "]}}]"),
    "filters": filled(RULE.replace("f}", 'f, args: ["${data.a'), "|stem", '}"]}}]'),
    "open references": filled(RULE.replace("f}", 'f, args: ["'), "${", '"]}}]'),
    "unlike triggers": numbered(
        "triggers:\n" + "".join(f"- {{name: t{n}, kind: webhook, verify: none, type: a}}\n" for n in range(8_000)) + "rules:\n",
        "- {name: r#, on: tt#, run: {function: f}}\n",
    ),
    "wrong kinds": numbered("triggers:\n", "- {name: t#, kind: fil}\n"),
    "wrong options": numbered("triggers:\n- {name: t, kind: file, ", "k#: 1, ", "}\n"),
    "Unicode line breaks": filled("rules: [", "a,\u2028", "]"),
    "few Unicode line breaks": filled("rules: [", "{},", "\u2028]")[-SLOW_BYTES:],
}  # fmt: skip


def error_of(text: str) -> RuleFileError | None:
    try:
        parse(text, "r.yaml", OptionStructs())
    except RuleFileError as e:
        return e
    return None


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_parsed_soon_and_its_problems_are_bounded(text: str) -> None:
    assert len(text) <= MAX_BYTES
    start = time.thread_time()
    error = error_of(text)
    assert time.thread_time() - start < CPU_S
    if error is not None:
        assert len(error.details["problems"]) <= SHOWN
        assert error.details["count"] <= MANY
        assert len(error.message) < 120_000


def test_the_rest_of_a_file_with_many_problems_is_not_read() -> None:
    with pytest.raises(RuleFileError) as e:
        parse(HOSTILE["empty rules"], "r.yaml")
    assert e.value.message.endswith(f"... and at least {MANY - SHOWN} more")
    assert e.value.line == 2


def places(node: Node | None) -> object:
    """Return the tree with its positions."""
    assert node is not None
    children = node.value
    if isinstance(children, list):
        children = [places(child) for child in children]
    elif isinstance(children, dict):
        children = {key: places(child) for key, child in children.items()}
    return children, node.line, node.column, dict(node.keys)


def test_both_parsers_give_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """\
# a comment
triggers: [{name: t, kind: webhook, "verify": none}]
rules:
  - name: 'it''s'
    on: {type: x, source: "\\u00e9\\U0001f600\\/"}
    match: {data.a: {in: [1, 0o17, 0x1F, 1e3, .inf, ~, yes, true, 2026-01-01]}, data."a.b": http://x:80/y}
    description: |
      two
       lines
    run:
      function: f
      args:
      - >-
        folded
        text
      - {a: [], b: {}}
"""
    fast = yaml_document.read(text, Problems("r.yaml"))
    monkeypatch.setattr(yaml_document, "_BREAKS", yaml_document.re.compile("a"))  # uses the slow parser
    slow = yaml_document.read(text, Problems("r.yaml"))
    assert places(fast) == places(slow)


def test_unicode_line_breaks_are_text_as_before() -> None:
    found: RuleSet = parse("rules: [{name: a, on: {type: 'x\u2028y'}, run: {function: f}}]", "r.yaml")
    assert found.rules[0].on == {"type": "x\u2028y"}
    with pytest.raises(RuleFileError, match=r"the line break .u2028 in a file over 65,536 bytes"):
        parse(HOSTILE["Unicode line breaks"], "r.yaml")


def test_the_globs_and_regexes_of_a_request_are_bounded_together() -> None:
    text = "rules: [{name: #, on: {type: '[ab]*c'}, match: {data.a: {regex: '\\pL{40}'}}, run: {function: f}}]"
    with pytest.raises(RuleFileError, match="have over 4,000,000 instructions together"):
        parse_together([(text.replace("#", f"r{n}"), f"{n}.yaml") for n in range(120)], OptionStructs(), ())
    assert parse(text.replace("#", "r"), "r.yaml", OptionStructs()).program_size > 40_000
