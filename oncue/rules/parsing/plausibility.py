"""Warnings of a deploy: fields that no event has, types that nobody emits.

The rules are valid, so they are deployed all the same. A kind of trigger whose events always have
the same fields names them in its option Struct: FIELDS (of `data`) and TYPE.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from oncue.protocol.api import RuleWarning
from oncue.protocol.event_types import OVERDUE_TYPE
from oncue.rules.matching.conditions import COMPARE, TEXT_OPERATORS, parse_time
from oncue.rules.matching.expression import paths_of
from oncue.rules.matching.fields import ATTRIBUTES, parse_path
from oncue.rules.matching.template import parsed
from oncue.rules.operators.aggregates import WORDS
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.operators.overdue import FIELDS as OVERDUE_FIELDS
from oncue.rules.outcomes.outcome_event import FIELDS, STATES
from oncue.rules.parsing.contradictions import GROUPS
from oncue.rules.parsing.overdue_pattern import rules_overdue
from oncue.rules.parsing.rule_file import Rule, RuleSet
from oncue.strict_yaml.document import nearest

OWN = "oncue."  # begins the types of events that oncue itself makes
ALIKE = 0.85  # of a type that is taken for a misspelt one, 0 to 1
OWN_ALIKE = 0.8  # of one of oncue's own, which all begin alike
MOST = 100  # warnings of one file
TYPES = 1_000  # known types that one is compared with
_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number"}


_Warning = tuple[str, str, str]  # a word at its place, message, remedy


class Schema(NamedTuple):
    """Fields of the events of all triggers of a rule."""

    events: str  # "events of the trigger frames"
    fields: Mapping[str, type]
    type: str
    values: Mapping[str, Collection[str]]  # of a field that has few
    names: Collection[str]  # fields without a slash
    arguments: Collection[str] = ()  # fields of data.args; none: not known


def implausible(
    rules: RuleSet, triggers: Mapping[str, Any], types: Collection[str], others: Iterable[RuleSet] = ()
) -> list[RuleWarning]:
    """Return the warnings of a file.

    `triggers`: name -> option Struct, of all files. `types`: of events that have been seen, or that
    triggers make. `others`: files whose rules this one may follow.
    """
    found: list[RuleWarning] = []
    lines = rules.text.splitlines()
    known = {*types, OVERDUE_TYPE, *(kind for name, options in triggers.items() if (kind := _type_of(name, options)))}
    steps = {rule.name: rule for s in (*others, rules) for rule in s.rules}
    for rule in rules.rules:
        schema = _schema(rule.on, triggers) or _schema_of_outcomes(rule, steps) or _schema_of_overdue(rule)
        for word, message, remedy in (
            *_unknown_types(rule, known),
            *_never_overdue(rule, steps),
            *(_of_schema(rule, schema) if schema else ()),
        ):
            line, column = _place(lines, rule.line, word)
            found.append(RuleWarning(rule.name, line, column, message, remedy))
        if len(found) >= MOST:
            return found[:MOST]
    return found


def _schema(on: Any, triggers: Mapping[str, Any]) -> Schema | None:
    names = [on] if isinstance(on, str) else on if isinstance(on, list) else []
    options: list[Any] = [triggers.get(name) for name in names]
    if not options or not all(hasattr(o, "FIELDS") for o in options):
        return None
    fields = {name: kind for o in options for name, kind in o.FIELDS.items()}
    kinds = {getattr(o, "TYPE", "") for o in options}
    values = {n: v for o in options for n, v in getattr(o, "VALUES", {}).items()} | {"trigger": tuple(names)}
    parts = set.intersection(*(set(getattr(o, "NAMES", ())) for o in options))
    about = f"events of the trigger {', '.join(names)}"
    return Schema(about, fields, kinds.pop() if len(kinds) == 1 else "", values, parts)


def _schema_of_outcomes(rule: Rule, steps: Mapping[str, Rule]) -> Schema | None:
    """Return the fields of the outcomes that a rule follows; None: it follows none."""
    if not rule.follows:
        return None
    runs = [run for name in rule.follows if name in steps for run in steps[name].runs]
    given = [run.given.names for run in runs]
    arguments = {name for names in given for name in names} if all(given) else ()
    about = f"outcomes of {', '.join(rule.follows)}"
    return Schema(about, FIELDS, "", {"state": STATES, "rule": rule.follows}, (), arguments)


def _schema_of_overdue(rule: Rule) -> Schema | None:
    names = rules_overdue(rule.on)
    return Schema(f"events on deadlines of {', '.join(names)}", OVERDUE_FIELDS, OVERDUE_TYPE, {}, ()) if names else None


def _never_overdue(rule: Rule, steps: Mapping[str, Rule]) -> Iterator[_Warning]:
    """Yield the rules of `overdue` that have no deadline."""
    for name in rules_overdue(rule.on):
        operators = steps[name].operators if name in steps else None
        if name in steps and not (operators and operators.last and operators.last.WAITS):
            yield name, f"the rule {name} is never overdue: it waits for no events", "`join` has a `deadline`"


def _type_of(name: str, options: Any) -> str:
    """Return the type of a trigger's events; "": it is not known."""
    make = getattr(options, "event_type", None)
    return str(make(name)) if make is not None else str(getattr(options, "TYPE", ""))


def _place(lines: list[str], line: int, word: str) -> tuple[int, int]:
    """Return the position of a word at or after the beginning of a rule."""
    for number in range(max(line - 1, 0), min(len(lines), line + 2_000)):
        if (column := lines[number].find(word)) >= 0:
            return number + 1, column + 1
    return _place(lines, line, word.removeprefix("${")) if word.startswith("${") else (line, 1)


# ---------------------------------------------------------------- types of events


def _unknown_types(rule: Rule, known: Collection[str]) -> Iterator[_Warning]:
    source: dict[str, Any] = rule.source
    patterns = rule.operators.patterns.values() if rule.operators is not None else ()
    sections = [source.get("on"), source.get("match"), *(pattern.on for pattern in patterns)]
    wanted = [section.get("type") for section in sections if isinstance(section, dict)]
    for text in [text for value in wanted for text in _texts(value)]:
        if text in known or re.search(r"[*?\[{]", text):
            continue
        near = difflib.get_close_matches(
            text[:100], list(known)[:TYPES], 1, OWN_ALIKE if text.startswith(OWN) else ALIKE
        )
        if near or text.startswith(OWN):
            remedy = f"did you mean {near[0]!r}?" if near else "`oncue events list` shows the types of events"
            yield text, f"no trigger makes events of the type {text!r}, and none has been seen", remedy


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = value.get("eq", value.get("in"))
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]


# ---------------------------------------------------------------- fields of events


def _of_schema(rule: Rule, schema: Schema) -> Iterator[_Warning]:
    source: dict[str, Any] = rule.source
    for path, tests in _conditions(source.get("match", {})):
        if why := _unknown_field(path, schema):
            yield path, f"{why}: this condition is the same for all of them", _near(path, schema)
        else:
            yield from ((path, f"{path}: {why}", "") for why in _wrong_types(path, tests, schema))
            yield from ((path, f"{path}: {why}", remedy) for why, remedy in _other_values(path, tests, schema))
    for path in rule.when.paths() if rule.when is not None else ():
        if why := _unknown_field(path, schema):
            yield path.rpartition(".")[2], f"when: {why}", _near(path, schema)
    for section in ("run", "affinity", *CATALOGUE.members):
        for written in _references(source.get(section)):
            path = _of_one_event(written, rule.has_items)
            if path and (why := _unknown_field(path, schema)):
                yield f"${{{written}", f"{section}: {why}", _near(path, schema)


def _conditions(match: Any) -> Iterator[tuple[str, Any]]:
    """Yield all (path, tests) of `match`, also those in groups."""
    for key, value in match.items() if isinstance(match, dict) else ():
        if key in GROUPS:
            for member in value if isinstance(value, list) else [value]:
                yield from _conditions(member)
        else:
            yield key, value


def _unknown_field(path: str, schema: Schema) -> str:
    """Return why no event has this path; "": events have it, or it is not known."""
    try:
        parts = parse_path(path.removeprefix("event."))
    except ValueError:
        return ""
    if parts[0] != "data":
        known = parts[0] in ATTRIBUTES or parts[0].startswith("oncue") or parts[0] == "event"
        return "" if known else f"{schema.events} have no {parts[0]}"
    if len(parts) < 2:
        return ""
    kind = schema.fields.get(parts[1])
    if parts[1] == "args" and len(parts) > 2 and schema.arguments:
        return "" if parts[2] in schema.arguments else f"{schema.events} have no {path}"
    if kind is not None and (len(parts) == 2 or kind not in _TYPE_NAMES):
        return ""
    return f"{schema.events} have no {path}"


def _near(path: str, schema: Schema) -> str:
    return nearest(path, [f"data.{name}" for name in (*schema.fields, *(f"args.{n}" for n in schema.arguments))])


def _wrong_types(path: str, tests: Any, schema: Schema) -> Iterator[str]:
    """Yield why conditions on a known field never hold."""
    if path == "type" and schema.type:
        texts = _texts(tests)
        if texts and schema.type not in texts:
            yield f"{schema.events} have the type {schema.type}, never {texts[0]!r}"
    kind = schema.fields.get(path.removeprefix("data.")) if path.startswith("data.") else None
    if kind not in _TYPE_NAMES:
        return
    given = tests if isinstance(tests, dict) else {"in": tests} if isinstance(tests, list) else {"eq": tests}
    for operator, value in given.items():
        if operator in GROUPS:
            continue
        if not _fits(operator, value, kind):
            yield f"is {_TYPE_NAMES[kind]} in {schema.events}, so that `{operator}` {value!r} never holds"


def _other_values(path: str, tests: Any, schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield why the values of conditions never occur, and the nearest that does."""
    field = path.removeprefix("data.")
    if not path.startswith("data.") or field not in schema.fields:
        return
    if isinstance(tests, dict) and (tests.get("exists") is False or tests.get("not") == {"exists": True}):
        yield f"all {schema.events} have it, so that this never holds", ""
    texts = _texts(tests)
    known = schema.values.get(field)
    if known is not None and texts and not set(texts) & set(known):
        near = nearest(texts[0], known)
        yield f"is {' or '.join(known)} in {schema.events}, never {texts[0]!r}", near
    if field in schema.names and _has_slash(texts, tests if isinstance(tests, dict) else {}):
        yield "is a name without a folder: with a slash it never holds", "data.path and data.relative have folders"


def _has_slash(texts: list[str], tests: Mapping[str, Any]) -> bool:
    """Return True if only a text with a slash fulfils a condition."""
    glob = str(tests.get("glob", "")).replace("**/", "")
    parts = [str(tests.get("prefix", "")), str(tests.get("suffix", "")), glob if "{" not in glob else ""]
    return any("/" in part for part in parts) or (bool(texts) and all("/" in text for text in texts))


def _fits(operator: str, value: Any, kind: type) -> bool:
    if operator in ("eq", "in"):
        values = value if isinstance(value, list) else [value]
        texts = [isinstance(v, str) for v in values]
        return any(texts) if kind is str else not all(texts)
    if operator in COMPARE:
        is_time = isinstance(value, str) and parse_time(value) is not None
        return is_time == (kind is str)
    return kind is str or operator not in TEXT_OPERATORS


def _references(value: Any) -> Iterator[str]:
    """Yield the paths of all ${...} in a part of a rule."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)
    elif isinstance(value, str) and "${" in value:
        for expression in parsed(value):
            yield from paths_of(expression)


def _of_one_event(path: str, has_items: bool) -> str:
    """Return the path in one event of a batch; "": it is of the batch, or of an item."""
    word, _, rest = path.partition(".")
    if has_items and word == "item":
        return ""
    if word in CATALOGUE.members:  # ${join.NAME.data.path}
        return rest.partition(".")[2]
    return (
        rest
        if word in ("each", "first", "last", *WORDS) and rest
        else ""
        if path in ("count", "key", "expected", "missing", "window.start", "window.end")
        else path
    )
