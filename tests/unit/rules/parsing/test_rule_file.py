# ruff: noqa: E501
"""Errors of rule files with their positions: a table of texts and exact messages."""

from __future__ import annotations

import contextlib
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.errors import RuleFileError
from oncue.quantities import Duration, Size, duration_ms, duration_text, size_bytes
from oncue.rules.parsing.rule_file import RuleSet, check_unique, parse
from oncue.strict_yaml.document import MAX_BYTES, MAX_DEPTH


class Ready(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    any: list[str] = msgspec.field(default_factory=list)
    stable: Duration = 0


class FileOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    glob: str = "**"
    ready: Ready | None = None
    largest: Size | None = None
    refire: Literal["changed", "never"] = "changed"


class WebhookOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    verify: dict[str, str] = msgspec.field(default_factory=dict)


KINDS: dict[str, type[msgspec.Struct]] = {"file": FileOptions, "webhook": WebhookOptions}

GOOD = """\
triggers:
  - {name: detector, kind: file, path: /data/2bm, glob: "**/*.h5", ready: {any: [close_write], stable: 2s}, largest: 1 GiB}
  - {name: daq, kind: webhook, verify: {standard-webhooks: "${secret:daq}"}}
rules:
  - name: reconstruct
    on: detector
    match: {data.size: {gt: 1MB}, data.path: {glob: "**/scan_*.h5"}}
    when: data.exposure_s > 0.1
    run: {function: tomo.py:reconstruct, endpoint: polaris, args: {path: "${data.path}"}, timeout: 1h}
    retry: {max: 5, backoff: exponential, base: 2s, cap: 5m, on: [lost, error]}
    expires: 1h30m
    tests:
      - {event: samples/scan.json, expect: {fires: true, args: {path: /data/2bm/scan_1.h5}}}
"""


def rule(line: str = "", *, on: str = "{type: x}", run: str = "{function: f}") -> str:
    """A file with one rule, whose line 5 is the line given."""
    return f"rules:\n  - name: r\n    on: {on}\n    run: {run}\n    {line}\n"


def read(text: str | bytes) -> RuleSet:
    return parse(text, "r.yaml", KINDS)


def test_the_file_of_the_manual() -> None:
    parsed = read(GOOD)
    detector, daq = parsed.triggers
    assert detector.options == FileOptions(
        path="/data/2bm", glob="**/*.h5", ready=Ready(any=["close_write"], stable=2_000), largest=1 << 30
    )
    assert daq.options.verify == {"standard-webhooks": "${secret:daq}"}
    (found,) = parsed.rules
    assert (found.name, found.on, found.line, found.expires_ms) == ("reconstruct", "detector", 5, 5_400_000)
    assert found.retry is not None
    assert (found.retry.max, found.retry.base_ms, found.retry.cap_ms) == (5, 2_000, 300_000)
    assert (found.runs[0].endpoint, found.runs[0].timeout_ms) == ("polaris", 3_600_000)
    assert parsed.functions == ["tomo.py:reconstruct"]


BAD = [
    ("", 1, 1, "the file is empty"),
    ("# only a comment\n", 1, 1, "the file is empty"),
    ("- a\n", 1, 1, "a rule file is a mapping of `triggers:` and `rules:`, not a list"),
    (b"rules:\n  - name: \xff\n", 2, 11, "the byte 0xff is not UTF-8"),
    ("ruels: []\n", 1, 1, "a rule file has no key 'ruels'"),
    ("rules: []\nrules: []\n", 2, 1, "the key 'rules' is here twice (first in line 1)"),
    ("rules: {}\n", 1, 8, "`rules` is a list, not a mapping"),
    ("rules:\n\t- name: x\n", 2, 1, "a tab; YAML indents with spaces"),
    ("rules: &a []\n", 1, 8, "&a is a YAML anchor, and rule files have none"),
    ("rules: *a\n", 1, 8, "*a begins with an unquoted *, which YAML reads as an alias"),
    ("rules: !!python/object:os.system []\n", 1, 8, "the tag tag:yaml.org,2002:python/object:os.system is not allowed"),
    ("rules: []\n---\nrules: []\n", 2, 1, "a second document"),
    ("rules: " + "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), 1, 39, f"nested deeper than {MAX_DEPTH} levels"),
    ("#" * (MAX_BYTES + 1), 1, 1, f"the file has {MAX_BYTES + 1:,} bytes; at most {MAX_BYTES:,}"),
    ("rules:\n  - name: r\n    true: x\n    on: {type: x}\n    run: {function: f}\n", 3, 5, "the key is the value true, not a text"),
    (rule(run="{function: f, args: {x: ${data.path}}}"), 4, 34, "an unquoted ${...} inside braces is read as a mapping"),
    (rule("match: {data.path: *.h5}"), 5, 24, "*.h5 begins with an unquoted *, which YAML reads as an alias"),
    (rule("match: {data.path: {glob: **/*.h5}}"), 5, 31, "**/*.h5 begins with an unquoted *, which YAML reads as an alias"),
    (rule("wehn: x"), 5, 5, "a rule has no key 'wehn'"),
    (rule("enabled: 1"), 5, 14, "`enabled` is true or false, not a whole number"),
    (rule("timeout: 2x"), 5, 14, "timeout: 'x' is not a unit of time; there are ms, s, m, h, d, w"),
    (rule("expires: soon"), 5, 14, "expires: 'soon' is not a duration; write 250ms, 2s, 5m, 1h or 1h30m"),
    (rule("retry: {max: -1}"), 5, 18, "`max` is -1; it takes 0 to 1000"),
    (rule("retry: {backoff: exponentail}"), 5, 22, "there is no backoff 'exponentail'"),
    (rule("retry: {on: [lots]}"), 5, 18, "there is no end 'lots' to retry"),
    (rule("retry: {on: [lost, exit:256]}"), 5, 24, "there is no end 'exit:256' to retry"),
    (rule("retry: {never: [lots]}"), 5, 21, "there is no end 'lots' to retry"),
    (rule("retry: {on: [Error]}"), 5, 18, "there is no end 'Error' to retry"),
    (rule("retry: {on: [mypkg.]}"), 5, 18, "there is no end 'mypkg.' to retry"),
    (rule("retry: {on: [lost, KeyError], never: KeyError}"), 5, 42, "'KeyError' is in `on` and in `never`"),
    (rule("retry: {never: {exit: 2}}"), 5, 20, "retry's `never` is a list of lost, error, timeout, exit:75, ValueError and the like, not a mapping"),
    (rule("retry: {max_age: soon}"), 5, 22, "max_age: 'soon' is not a duration; write 250ms, 2s, 5m, 1h or 1h30m"),
    (rule("retry: {max_age: 0s}"), 5, 22, "max_age: a limit is more than 0"),
    (rule("priority: urgent"), 5, 15, "there is no priority 'urgent'"),
    (rule("priority: 1"), 5, 15, "`priority` is live, normal or low, not a whole number"),
    (rule("retry: {on: [{exit: 75}]}"), 5, 18, "an end to retry is a text such as lost or exit:75, not a mapping"),
    (rule("match: {data.size: {gtt: 1}}"), 5, 25, "data.size: there is no operator 'gtt'"),
    (rule("match: {data.size: {in: 5}}"), 5, 25, "data.size: `in` takes a list with something in it, not a whole number"),
    (rule("match: {data.size: {exists: yes}}"), 5, 33, "data.size: `exists` takes true or false, not a text"),
    (rule("match: {dta.size: 5}"), 5, 13, "an event has no 'dta' to look into: did you mean 'data'?"),
    (rule("match: {data..size: 5}"), 5, 13, "'data..size' is not a path into an event, such as data.size or subject"),
    (rule('match: {data.path: {glob: "[a"}}'), 5, 31, "data.path: the glob '[a' has a bracket that is not closed at column 1"),
    (rule('when: "data.x >"'), 5, 11, None),
    (rule("when: dta.x > 1"), 5, 11, "when: the condition 'dta.x > 1' is not CEL: column 4: undeclared reference to 'dta.x'"),
    (rule("when: 1 + 1"), 5, 11, "when: the condition '1 + 1' gives int, not true or false"),
    (rule("tests: [{event: a.json}]"), 5, 13, "a test lacks the key 'expect'"),
    (rule(run="{endpoint: x}"), 4, 10, "`run` lacks the key 'function'"),
    (rule(run="[]"), 4, 10, "`run` has 0 functions; it takes 1 to 100"),
    (rule(run='{function: f, args: {x: "${data.a | stm}"}}'), 4, 34, "args.x: there is no filter 'stm': did you mean 'stem'?"),
    (rule(run='{function: f, args: {x: "${secret:a}"}}'), 4, 34, "args.x: secrets are for triggers; a function gets its own where it runs"),
    (rule(run='{function: f, args: {x: "${data.a"}}'), 4, 34, "args.x: `${` is not closed in '${data.a'; write $${ for the characters themselves"),
    (rule(on="detektor"), 3, 9, "there is no trigger 'detektor'"),
    (rule(on="{data.size: 5}"), 3, 10, "`on` looks at attributes, not at data.size"),
    (rule(on="true"), 3, 9, "`on` is a trigger's name or a mapping like {type: ...}, not true or false"),
    ("rules:\n  - {on: {type: x}, run: {function: f}}\n", 2, 5, "a rule lacks the key 'name'"),
    ("rules:\n  - {name: a b, on: {type: x}, run: {function: f}}\n", 2, 12, "'a b' is not a name"),
    ("triggers:\n  - {name: a, kind: fil, path: /x}\n", 2, 21, "there is no trigger kind 'fil'"),
    ("triggers:\n  - {name: a, kind: file, path: /y, refire: nevr}\n", 2, 45, "trigger a.refire cannot be 'nevr'"),
    ("triggers:\n  - {name: a, kind: file}\n", 2, 5, "trigger a lacks the key 'path'"),
    ("triggers:\n  - {name: a, kind: file, pth: /x, path: /y}\n", 2, 27, "trigger a has no key 'pth'"),
    ("triggers:\n  - {name: a, kind: file, path: 5}\n", 2, 33, "trigger a.path is a text, not a whole number"),
    ("triggers:\n  - {name: a, kind: file, path: /y, ready: close_write}\n", 2, 44, "trigger a.ready is a mapping, not a text"),
    (rule("timeout: 0s"), 5, 14, "timeout: a limit is more than 0"),
    (rule("expires: 0"), 5, 14, "expires: a limit is more than 0"),
    (rule(run="{function: f, timeout: 0}"), 4, 33, "timeout: a limit is more than 0"),
    ("triggers:\n  - {name: a, kind: file, path: /y, largest: 1XB}\n", 2, 46, "trigger a.largest: 'XB' is not a unit of size; there are B, kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB"),
    (rule(run="{function: a.py:f, files: [a.txt, 7]}"), 4, 44, "`files` is a path, a glob, or a list of them"),
    (rule(run="{function: a.py:f, memory: much}"), 4, 37, "memory: 'much' is not a size; write 1MB, 10 MiB or 1GB, or a number of bytes"),
    (rule(run="{function: a.py:f, fresh: often}"), 4, 36, "`fresh` is true or false, not a text"),
    (rule(run="{function: f, files: a.txt}"), 4, 24, "f is a registered function: `files` is said where it is registered"),
    (rule("dedupe: 5m"), 5, 13, "`dedupe` is a mapping, not a text"),
    (rule("dedupe: {key: x}"), 5, 13, "`dedupe` lacks the key 'ttl'"),
    (rule("dedupe: {ttl: 0s}"), 5, 19, "dedupe.ttl: it takes more than 0 and at most 30d"),
    (rule("dedupe: {ttl: 31d}"), 5, 19, "dedupe.ttl: it takes more than 0 and at most 30d"),
    (rule("dedupe: {ttl: 5m, kee: x}"), 5, 23, "`dedupe` has no key 'kee'"),
    (rule('dedupe: {ttl: 5m, key: "${dta.x}"}'), 5, 28, "dedupe.key: an event has no 'dta' to look into: did you mean 'data'?"),
    (rule("batch: {key: x}"), 5, 12, "`batch` needs at least one of `count`, `bytes` and `wait`"),
    (rule("batch: {count: 0}"), 5, 20, "batch.count is 0; it takes 1 to 10,000"),
    (rule("batch: {count: 10001}"), 5, 20, "batch.count is 10001; it takes 1 to 10,000"),
    (rule("batch: {count: many}"), 5, 20, "batch.count is a whole number, not a text"),
    (rule("batch: {bytes: 1XB}"), 5, 20, "batch.bytes: 'XB' is not a unit of size; there are B, kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB"),
    (rule("batch: {wait: soon}"), 5, 19, "batch.wait: 'soon' is not a duration; write 250ms, 2s, 5m, 1h or 1h30m"),
    (rule("batch: {count: 5, key: 7}"), 5, 28, "batch.key is a text, not a whole number"),
    (rule("batch: {count: 5}", run='{function: f, args: {x: "${data.path}"}}'), 4, 34, "args.x: a rule with `batch` runs for many events, and ${data.path} is of one: use ${each.data.path} (a list, one value an event), ${first.data.path}, ${last.data.path}, ${count} and ${key}"),
    (rule("batch: {count: 5}", run='{function: f, args: {x: "${each.dta.path}"}}'), 4, 34, "args.x: an event has no 'dta' to look into: did you mean 'data'?"),
    (rule("dedupe: {ttl: 5m}", run='{function: f, args: {x: "${each.data.path}"}}'), 4, 34, "args.x: ${each.data.path} is for the arguments of rules that run for many events, as with `batch`; of one event write ${data.path}"),
    (rule(run='{function: f, args: {x: "${last.data.path}"}}'), 4, 34, "args.x: ${last.data.path} is for the arguments of rules that run for many events, as with `batch`; of one event write ${data.path}"),
    (rule("tests: [{events: [], expect: {}}]"), 5, 22, "`events` is a list of 1 to 1,000 events, not a list"),
    (rule("tests: [{events: [{at: 5s, event: a.json}, {at: 4s, event: a.json}], expect: {}}]"), 5, 53, "at: it is earlier than the event before it"),
    (rule("tests: [{event: a.json, expect: {fires: often}}]"), 5, 45, "`fires` is true, false, or how often it fires, not a text"),
    ("triggers:\n  - {name: a, kind: file, path: /y, ready: {stable: soon}}\n", 2, 53, "trigger a.ready.stable: 'soon' is not a duration; write 250ms, 2s, 5m, 1h or 1h30m"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "column", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_the_exact_error(text: str | bytes, line: int, column: int, message: str | None) -> None:
    with pytest.raises(RuleFileError) as e:
        read(text)
    assert (e.value.line, e.value.column) == (line, column), str(e.value)
    if message is not None:
        assert e.value.message == message
    assert str(e.value).startswith(f"r.yaml:{line}:{column}: ")
    assert e.value.details["count"] == 1


@pytest.mark.parametrize(
    ("line", "timeout_ms"),
    [("{function: f}", 5_000), ("{function: f, timeout: none}", 0), ("{function: f, timeout: 1s}", 1_000)],
)
def test_a_limit_that_is_none_is_a_word(line: str, timeout_ms: int) -> None:
    (found,) = read(rule("timeout: 5s", run=line)).rules
    assert found.runs[0].timeout_ms == timeout_ms


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("wehn: x", "did you mean 'when'?"),
        ("match: {data.size: {gtt: 1}}", "did you mean 'gt'?"),
        ("retry: {bse: 1s}", "did you mean 'base'?"),
        ("timeout: 0", "for no limit write timeout: none"),
        ('match: {data.path: {regex: "(?=a)"}}', "it is RE2 syntax: no backreferences, no lookaround"),
    ],
)
def test_the_nearest_right_word(line: str, remedy: str) -> None:
    with pytest.raises(RuleFileError) as e:
        read(rule(line))
    assert e.value.remedy == remedy


def test_all_that_is_wrong_at_once_and_a_hundred_of_it_shown() -> None:
    text = "rules:\n" + "".join(f"  - {{name: r{n}, on: {{type: x}}, runn: 1}}\n" for n in range(90))
    with pytest.raises(RuleFileError) as e:
        read(text)
    assert e.value.details["count"] == 180
    assert len(e.value.details["problems"]) == 100
    assert e.value.message.endswith("... and 80 more")
    assert "r.yaml:3:5: a rule lacks the key 'run'" in e.value.message


def test_names_are_unique_in_a_file_and_over_files() -> None:
    twice = "rules:\n" + "  - {name: a, on: {type: x}, run: {function: f}}\n" * 2
    with pytest.raises(RuleFileError) as e:
        read(twice)
    assert (e.value.line, e.value.message) == (3, "the rule 'a' is in line 2 already")
    one = "rules:\n  - {name: a, on: {type: x}, run: {function: f}}\n"
    with pytest.raises(RuleFileError, match=r"the rule 'a' is in a.yaml:2 already"):
        check_unique([parse(one, "a.yaml"), parse(one, "b.yaml")])


def test_a_trigger_of_another_file() -> None:
    text = rule(on="elsewhere")
    assert parse(text, "r.yaml", KINDS, triggers={"elsewhere"}).rules[0].on == "elsewhere"
    assert parse(text, "r.yaml", triggers=None).rules[0].on == "elsewhere"


@pytest.mark.parametrize(
    ("ms", "text"), [(0, "0ms"), (1, "1ms"), (2_000, "2s"), (5_400_000, "90m"), (86_400_000, "1d")]
)
def test_durations_there_and_back(ms: int, text: str) -> None:
    assert duration_text(ms) == text
    assert duration_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "count"), [("1MB", 10**6), ("10 MiB", 10 << 20), ("1gb", 10**9), (7, 7), ("1.5kB", 1500)]
)
def test_sizes(text: str | int, count: int) -> None:
    assert size_bytes(text) == count


@pytest.mark.parametrize("text", ["", "s", "2", "-1s", "1e9h", "9" * 400, "1h banana", "nan", "١s"])
def test_durations_raise_only_value_errors(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert duration_ms(text) >= 0


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 12),
    st.text(max_size=6) | st.sampled_from(["*", "&a ", "!!int ", "${", "{", "[", "\t", "? ", "|"]),
)
def test_whatever_is_in_a_file_the_error_is_ours(at: int, cut: int, inserted: str) -> None:
    """A good file with a piece cut out and another put in is read, or refused with a place inside it."""
    text = GOOD[:at] + inserted + GOOD[at + cut :]
    try:
        read(text)
    except RuleFileError as e:
        assert e.line >= 1  # noqa: PT017
        assert e.column >= 1  # noqa: PT017
        assert e.line <= text.count("\n") + 2  # noqa: PT017
