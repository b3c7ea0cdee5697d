"""Warnings of a deploy: fields and types that no event of a trigger has, types that nobody emits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oncue.protocol.api import RuleWarning
from oncue.rules.parsing.plausibility import implausible
from oncue.rules.parsing.rule_file import parse
from oncue.triggers.catalog import OptionStructs
from oncue.triggers.file.event import EventMaker
from oncue.triggers.file.options import FileOptions, read_options
from oncue.triggers.file.stability import fingerprint

HEAD = """
triggers:
  - {name: frames, kind: file, path: /data}
  - {name: more, kind: file, path: /more}
  - {name: door, kind: webhook, verify: none, type: org.example.door}
rules:
- name: r
"""
RUN = "  run: {function: f, args: ['${data.path}']}\n"


def warnings(rule: str, *types: str, run: str = RUN) -> list[RuleWarning]:
    rules = parse(HEAD + rule + "\n" + run, "x.yaml", OptionStructs())
    return implausible(rules, {t.name: t.options for t in rules.triggers}, types)


@pytest.mark.parametrize(
    ("rule", "says", "remedy"),
    [
        ("  on: frames\n  match: {data.pth: {prefix: a}}", "have no data.pth", "did you mean 'data.path'?"),
        (
            "  on: [frames, more]\n  match: {any: [{data.siz: 1}]}",
            "the trigger frames, more have no data.siz",
            "data.size",
        ),
        ("  on: frames\n  match: {data.path.x: 1}", "have no data.path.x", ""),
        ("  on: frames\n  match: {beamline: 2bm}", "have no beamline", ""),
        ("  on: frames\n  match: {data.size: {prefix: a}}", "data.size: is a whole number", ""),
        ("  on: frames\n  match: {data.size: '5'}", "`eq` '5' never holds", ""),
        ("  on: frames\n  match: {data.path: {gt: 5}}", "data.path: is a text", ""),
        ("  on: frames\n  match: {data.path: [1, 2]}", "`in` [1, 2] never holds", ""),
        ("  on: frames\n  match: {data.mtime: {gt: '2026-01-01T00:00:00Z'}}", "data.mtime: is a number", ""),
        ("  on: frames\n  match: {type: oncue.file.redy}", "the type oncue.file.ready, never 'oncue.file.redy'", ""),
        ("  on: frames\n  match: {data.cause: closed}", "data.cause: is close_write or rename or", "close_write"),
        ("  on: frames\n  match: {data.cause: {in: [closed, renamed]}}", "never 'closed'", "close_write"),
        ("  on: frames\n  match: {data.trigger: more}", "is frames in events of the trigger frames", ""),
        ("  on: frames\n  match: {data.size: {exists: false}}", "data.size: all events of", ""),
        ("  on: frames\n  match: {data.size: {not: {exists: true}}}", "data.size: all events of", ""),
        (
            "  on: frames\n  match: {data.name: {glob: 'raw/*.h5'}}",
            "data.name: is a name without a folder",
            "data.path",
        ),
        ("  on: frames\n  match: {data.stem: {in: [a/b, c/d]}}", "data.stem: is a name without a folder", "data.path"),
        ("  on: frames\n  when: data.pth.startsWith('a') && data.size > 5", "when: events of", "data.path"),
        ("  on: frames\n  when: data['pth'] == 'a'", "have no data.pth", "data.path"),
        ("  on: frames\n  when: '[1].exists(x, data.nme == \"a\")'", "have no data.nme", "data.name"),
        ("  on: frames\n  dedupe: {key: '${data.pth | stem}', ttl: 5m}", "dedupe: events of", "data.path"),
        (
            "  on: {type: oncue.task.faild}",
            "no trigger makes events of the type 'oncue.task.faild'",
            "oncue.task.failed",
        ),
        ("  on: {type: oncue.file.redy}", "oncue.file.redy", "oncue.file.ready"),
        ("  on: {type: [scan.done, scan.abortd]}", "scan.abortd", "scan.aborted"),
        ("  on: {source: /a}\n  match: {type: {in: [org.example.dor]}}", "org.example.dor", "org.example.door"),
        ("  on: {type: oncue.nothing.like.it}", "oncue.nothing.like.it", "events list"),
    ],
)
def test_a_probable_mistake(rule: str, says: str, remedy: str) -> None:
    found = warnings(rule, "scan.done", "scan.aborted", "oncue.task.failed")
    told = [w for w in found if says in w.message]
    assert told, found
    assert remedy in told[0].remedy
    assert told[0].rule == "r"
    assert told[0].line in (8, 9)
    assert told[0].column > 1


@pytest.mark.parametrize(
    "rule",
    [
        "  on: frames\n  match: {data.path: {suffix: .h5}, data.size: {gt: 1MB}, data.mtime: {lt: 1e10}, subject: a}",
        "  on: frames\n  match: {time: {gt: '2026-01-01T00:00:00Z'}, oncuetrigger: frames, type: oncue.file.ready}",
        "  on: frames\n  when: data.path.contains('a') && data['size'] > 1 && event.subject != '' && has(data.name)",
        "  on: frames\n  match: {data.cause: [close_write, closed], data.size: {exists: true}, data.trigger: frames}",
        "  on: [frames, more]\n  match: {data.trigger: more, data.name: {regex: a/b|c}, data.relative: {glob: a/*}}",
        "  on: frames\n  match: {data.name: {glob: '**/*.h5'}, data.stem: {in: [a/b, c], glob: '{a/b,c}'}}",
        "  on: [frames, door]\n  match: {data.pth: 1}",
        "  on: door\n  match: {data.pth: 1}\n  when: data.anything > 1",
        "  on: {type: scan.done}\n  match: {data.pth: 1}",
        "  on: {type: 'scan.*'}",
        "  on: {type: org.example.door}",
        "  on: {type: org.aps.first.of.its.kind}",  # its events may come later
    ],
)
def test_what_is_well(rule: str) -> None:
    assert warnings(rule, "scan.done") == []


def test_arguments() -> None:
    run = "  run: {function: f, args: {p: '${data.pth | stem}', n: \"${data.size + 1}\", e: '${event}'}}\n"
    (found,) = warnings("  on: frames", run=run)
    assert found.message == "run: events of the trigger frames have no data.pth"
    assert (found.line, found.column) == (9, 33)
    batch = "  on: frames\n  batch: {key: '${data.folder}', count: 2}"
    run = "  run: {function: f, args: {a: '${each.data.nam}', b: '${count}', c: '${key}', d: '${first.data.path}'}}\n"
    (found,) = warnings(batch, run=run)
    assert "data.nam" in found.message


def test_the_fields_of_a_file_are_those_of_its_events(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("x")
    st = os.stat(tmp_path / "a.h5")
    spec = read_options("t", FileOptions(path=str(tmp_path)))
    event = EventMaker("t", spec).make(("", "a.h5"), st, fingerprint(st), "rename", 1, 1)
    assert event.type == FileOptions.TYPE
    assert {name: type(value) for name, value in event.data.items()} == dict(FileOptions.FIELDS)
