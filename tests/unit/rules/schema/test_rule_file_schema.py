"""The JSON Schema of rule files accepts what the parser accepts, and knows the parser's keys."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from oncue.errors import RuleFileError
from oncue.rules.limiters.catalog import SECTIONS as LIMITERS
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.parsing.rule_file import parse
from oncue.rules.schema import fragments
from oncue.rules.schema.rule_file import rule_file_schema
from oncue.strict_yaml.document import Problems, read
from oncue.triggers.catalog import OptionStructs

ROOT = Path(__file__).parents[4]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
SCHEMA = rule_file_schema(OptionStructs())
VALIDATOR = Draft202012Validator(SCHEMA)
UNKNOWN = "zzq_unknown"
VARIABLE = "${var:"  # without a value, the parser says no more
#: More than the pages show: every section of the parser.
EVERYTHING = """
triggers:
  - {name: files, kind: file, path: /data, ready: {any: [close_write], stable: 2s}, rescan: 10s}
  - {name: hook, kind: webhook, verify: {github: "${secret:x}"}}
rules:
  - name: all
    description: for people
    on: {type: "org.*", source: {prefix: /x}}
    match: {data.n: {gt: 1, not: {eq: 5}}, any: [{data.a: 1}, {data.b: [1, 2]}], not: {data.c: {exists: true}}}
    when: data.n > 2
    retry: {max: 3, backoff: constant, base: 1s, cap: 1m, on: [lost, "exit:75"]}
    timeout: 1h
    expires: none
    affinity: "${data.sample}"
    limits: {node_hours: 50/week}
    enabled: false
    dedupe: {key: "${data.n}", ttl: 10m}
    run:
      - {function: a.py:f, endpoint: x, args: {n: "${data.n}"}, files: [a.txt], fresh: true, memory: 2GB, detached: true}
      - {shell: "echo ${data.n}", env: {A: 1}, interpreter: bash, timeout: 5m,
         resources: {cores: 2, memory: 1GB}, sandbox: keep, outputs: ["*.txt"], for_each: [1, "${data.n}"]}
    tests:
      - {event: {type: org.x, data: {n: 3}}, expect: {fires: true}}
  - {name: next, on: {done: all, state: [ok, failed]}, run: {mpi: "lute ${data.rule}", cwd: /tmp}}
  - name: told
    on: {type: org.x}
    run:
      - {notify: {webhook: "https://x.example/h", text: "${data.n}", data: {n: "${data.n}"}, headers: {X-A: b}}}
      - {notify: {slack: "https://x.example/h", text: a}}
      - {notify: {mail: {to: [a@x.example], from: b@x.example, server: "smtps://x.example", user: u}, text: a, subject: s}}
  - {name: listed, on: [files, hook], batch: {count: 5, bytes: 1GB, wait: 10s}, run: {function: a.py:f, args: [1, 2]}}
"""
FOLDERS = ("oncue/rules/parsing", "oncue/rules/operators", "oncue/rules/limiters")


@cache
def corpus() -> dict[str, Any]:
    """Return the rule files of examples and pages, as plain data by place."""
    texts = {"everything": EVERYTHING}
    texts |= {str(p.relative_to(ROOT)): p.read_text() for p in sorted((ROOT / "examples").rglob("*.yaml"))}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for n, found in enumerate(BLOCK.finditer(page.read_text())):
            texts[f"{page.name}-{n}"] = found[1]
    chosen = {place: text for place, text in texts.items() if re.search(r"^(rules|triggers):", text, re.MULTILINE)}
    found = {}
    for place, text in chosen.items():
        with Problems(place) as problems:
            root = read(text, problems)
            problems.check()
            assert root is not None
            found[place] = root.plain()
    return found


def accepted(document: Any) -> str:
    """Parse the document; return "", or the parser's problems."""
    try:
        parse(json.dumps(document), "x.yaml", OptionStructs(), triggers=None)
    except RuleFileError as e:
        return e.message
    return ""


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from mappings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from mappings(inner, (*path, index))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def test_it_is_a_schema_for_editors() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$defs"]["rule"]["properties"]["retry"] == {"$ref": "#/$defs/retry"}


def test_examples_and_pages_are_valid() -> None:
    for place, document in corpus().items():
        assert VARIABLE in json.dumps(document) or accepted(document) == "", place
        assert [f"{place}: {e.json_path}: {e.message[:200]}" for e in VALIDATOR.iter_errors(document)] == []


def one_by_one() -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
    """Yield documents of one trigger or rule with the path of a mapping in it, one of each form."""
    seen = set()
    for document in corpus().values():
        if VARIABLE in json.dumps(document):
            continue
        for section, items in document.items():
            for item in items:
                alone = {section: [item]}
                for path in mappings(alone):
                    form = (tuple(step for step in path if isinstance(step, str)), frozenset(at(alone, path)))
                    if form not in seen:
                        seen.add(form)
                        yield alone, path


def test_it_refuses_the_keys_that_the_parser_refuses() -> None:
    """In each mapping, a key that is unknown is refused by both or by none."""
    for given, path in one_by_one():
        document = copy.deepcopy(given)
        at(document, path)[UNKNOWN] = 1
        refused = UNKNOWN in accepted(document)
        assert refused == (not VALIDATOR.is_valid(document)), path


def sections() -> dict[str, Any]:
    """Return, by the parser's word for each mapping, its schema."""
    names = {"a rule": "rule", "`run`": "run", "`retry`": "retry", "`limits`": "limits", "a test": "test"}
    names |= {"`notify`": "notify", "`notify.mail`": "mail"}
    found = {what: SCHEMA["$defs"][name] for what, name in names.items()}
    return found | {"a rule file": SCHEMA, "`expect`": SCHEMA["$defs"]["expect"]}


def test_the_schema_has_every_section_that_the_parser_checks() -> None:
    """A new `check_keys(node, KEYS, "`section`", ...)` needs a part of the schema, and a line in `sections`."""
    calls = [
        node
        for folder in FOLDERS
        for file in sorted((ROOT / folder).glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_keys"
    ]
    labels = {ast.unparse(call.args[2]) for call in calls}
    assert labels
    assert {repr(what) for what in sections()} >= labels


def test_every_key_of_the_parser_has_a_type_and_a_description() -> None:
    """A new key of a rule file needs an entry in oncue/rules/schema/fragments.py."""
    for what, schema in sections().items():
        missing = [key for key, found in schema["properties"].items() if not found]
        assert not missing, f"{what}: add {missing} to oncue/rules/schema/fragments.py"
    for name, member in [*CATALOGUE.members.items(), *LIMITERS.items()]:
        properties = SCHEMA["$defs"][name]["properties"]
        assert properties.keys() == {"key", *member.OPTIONS}
        missing = [key for key, found in properties.items() if not found]
        assert not missing, f"{name}: add {missing} to OPERATORS in oncue/rules/schema/fragments.py"
        assert VALIDATOR.evolve(schema={"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}).is_valid(
            yaml.safe_load(member.EXAMPLE)
        )


@pytest.mark.parametrize("name", ["RULE", "RUN", "RETRY", "LIMITS", "TEST", "TIMED", "EXPECT", "DONE"])
def test_no_entry_is_of_a_key_that_the_parser_does_not_know(name: str) -> None:
    known = SCHEMA["$defs"][name.lower()]["properties"].keys()
    assert not set(getattr(fragments, name)) - known


@pytest.mark.parametrize(
    "text",
    [
        "rules: [{name: a, on: {type: x}, run: {function: f}, retry: {max: many}}]",
        "rules: [{name: a, on: {type: x}, run: {function: f}, retry: {backoff: linear}}]",
        "rules: [{name: a, on: {type: x}, run: {function: f}, priority: urgent}]",
        "rules: [{name: a, on: {done: b, state: odd}, run: {function: f}}]",
        "rules: [{name: a, on: {type: x}, run: {function: f}, match: {data.n: {greater: 1}}}]",
        "rules: [{name: a b, on: {type: x}, run: {function: f}}]",
        "rules: [{name: a, run: {function: f}}]",
        "triggers: [{name: a, kind: file}]",
        "triggers: [{name: a, kind: odd, path: /x}]",
        "triggers: [{name: a, kind: file, path: /x, refire: sometimes}]",
    ],
)
def test_wrong_values_are_refused_by_both(text: str) -> None:
    document = yaml.safe_load(text.replace("on:", "'on':"))
    assert accepted(document)
    assert not VALIDATOR.is_valid(document)


def test_a_variable_may_stand_for_a_number_a_word_or_a_list() -> None:
    rule = {"name": "a", "on": "${var:trigger}", "run": {"function": "f", "outputs": "${var:files}"}}
    rule |= {"retry": {"max": "${var:retries}", "backoff": "${var:how}"}, "enabled": "${var:live}"}
    assert [e.message for e in VALIDATOR.iter_errors({"rules": [rule]})] == []
    rule["retry"] = {"max": "${data.retries}"}
    assert not VALIDATOR.is_valid({"rules": [rule]})
