"""Rule files in Python: the rules above functions, as the text of a rule file.

Each line of the text belongs to a line of the Python file: errors name that one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from oncue.errors import RuleFileError
from oncue.functions.declared_rules import DeclaredRule, DeclaredTrigger
from oncue.strict_yaml.variables import as_yaml

DECORATED = re.compile(rb"^@(?:oncue\.)?rule\(", re.MULTILINE)
_PLAIN = re.compile(r"(?!(?:null|true|false)$)[a-z][a-z_]*")  # a key that needs no quotes
#: Python file -> for each line of its text, the line of the file. Of this command.
_lines: dict[str, list[int]] = {}


class _Text:
    """Lines of a rule file, each with a line of the Python file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.made = [f"# Made of {Path(file).name}, which is to be changed."]
        self.lines = [1]

    def add(self, text: str, line: int) -> None:
        self.made.append(text)
        self.lines.append(line)

    def item(self, keys: dict[str, Any], line: int) -> None:
        """Add an item of a list, one key a line. Raises RuleFileError."""
        for number, (key, value) in enumerate(keys.items()):
            try:
                text = as_yaml(value, os.fspath)
            except (TypeError, ValueError) as e:
                raise RuleFileError(
                    f"{key}: {e}", remedy="give texts, numbers, lists and dicts", file=self._file, line=line, column=1
                ) from None
            name = key if _PLAIN.fullmatch(key) else as_yaml(key)
            self.add(f"{'  ' if number else '- '}{name}: {text}", line)


def rule_text(path: str) -> bytes:
    """Return the text of a rule file of the rules in a Python file.

    Raises RuleFileError if there are none, CannotImport.
    """
    from oncue.functions.files import declared_in_file

    rules = declared_in_file(Path(path))
    if not rules:
        raise RuleFileError(
            "no function has a rule", remedy="write @oncue.rule(on=...) above one", file=path, line=1, column=1
        )
    text, triggers = _Text(path), _triggers(rules)
    if triggers:
        text.add("triggers:", 1)
    for name, trigger in triggers.values():
        text.item({"name": name, "kind": trigger.kind, **trigger.options}, trigger.line)
    text.add("rules:", 1)
    for rule in rules:
        text.item(_rule(rule, Path(path).name, triggers), rule.line)
    _lines[path] = text.lines
    return ("\n".join(text.made) + "\n").encode()


Triggers = dict[int, tuple[str, DeclaredTrigger]]  # by id: two rules may share one


def _triggers(rules: list[DeclaredRule]) -> Triggers:
    found: Triggers = {}
    for rule in rules:
        for on in _declared([rule.on, rule.keys]):
            found.setdefault(id(on), (on.name or f"{rule.name}-{on.kind}", on))
    return found


def _declared(value: Any) -> Iterator[DeclaredTrigger]:
    """Yield the triggers of `on` and of patterns, as in `join`."""
    if isinstance(value, DeclaredTrigger):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _declared(each)


def _named(value: Any, triggers: Triggers) -> Any:
    """Return a value with the names of its triggers."""
    if isinstance(value, DeclaredTrigger):
        return triggers[id(value)][0]
    if isinstance(value, dict):
        return {key: _named(each, triggers) for key, each in value.items()}
    return [_named(each, triggers) for each in value] if isinstance(value, list | tuple) else value


def _rule(rule: DeclaredRule, file: str, triggers: Triggers) -> dict[str, Any]:
    from oncue.rules.operators.catalog import CATALOGUE
    from oncue.rules.parsing.rule_file import RULE_KEYS
    from oncue.rules.parsing.rule_run import RUN_KEYS

    of_rule = {*RULE_KEYS, *CATALOGUE.members}
    given = _named(rule.keys, triggers)
    run = {key: value for key, value in given.items() if key in RUN_KEYS and key not in of_rule}
    keys = {key: value for key, value in given.items() if key not in run}
    on = {} if rule.on is None else {"on": _named(rule.on, triggers)}
    return {"name": rule.name, **on, **keys, "run": {"function": f"{file}:{rule.function}", **run}}


def line_of(path: str, line: int) -> int:
    """Return the line of the file that the user wrote, for a line of its rule text."""
    lines = _lines.get(path, _lines.get(os.path.relpath(path) if os.path.isabs(path) else path, []))
    return lines[line - 1] if 0 < line <= len(lines) else line


@contextlib.contextmanager
def written_lines(names: dict[str, str] | None = None) -> Iterator[None]:
    """Let a RuleFileError name the lines that the user wrote.

    `names`: label -> file, for errors of the server.
    """
    try:
        yield
    except RuleFileError as e:
        file = (names or {}).get(e.file, e.file)
        if file not in _lines:
            raise
        raise _as_written(e, file) from None


def _as_written(e: RuleFileError, file: str) -> RuleFileError:
    problems = [{**p, "line": line_of(file, p["line"]), "column": 1} for p in e.details.get("problems", ())]
    first = e.message.split("\n", 1)[0]
    more = [
        f"{file}:{p['line']}:1: {p['message']}" + (f" ({p['remedy']})" if p.get("remedy") else "") for p in problems[1:]
    ]
    details = {k: v for k, v in e.details.items() if k not in ("file", "line", "column", "problems")}
    if problems:
        details["problems"] = problems
    return RuleFileError(
        "\n".join([first, *more]), remedy=e.remedy, file=file, line=line_of(file, e.line), column=1, **details
    )


def is_python(path: str) -> bool:
    return Path(path).suffix == ".py"


def with_lines(results: list[Any]) -> list[Any]:
    """Return results of tests with the lines that the user wrote."""
    return [msgspec.structs.replace(t, line=line_of(t.file, t.line)) for t in results]
