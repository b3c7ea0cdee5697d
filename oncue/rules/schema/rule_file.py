"""JSON Schema (2020-12) of rule files, made of the keys that the parser knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from oncue.rules.limiters.base import AnyLimiter
from oncue.rules.limiters.catalog import SECTIONS as LIMITERS
from oncue.rules.operators.base import AnyOperator
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.parsing.condition_parser import OPERATORS
from oncue.rules.parsing.contradictions import GROUPS
from oncue.rules.parsing.limits_section import LIMIT_KEYS
from oncue.rules.parsing.names import PATTERN_KEYS
from oncue.rules.parsing.notify_run import MAIL_KEYS, NOTIFY_KEYS, WAYS
from oncue.rules.parsing.outcome_pattern import KEYS as DONE_KEYS
from oncue.rules.parsing.retry_section import RETRY_KEYS
from oncue.rules.parsing.rule_file import EXPECT_KEYS, FILE_KEYS, RULE_KEYS, TEST_KEYS
from oncue.rules.parsing.rule_run import RUN_KEYS
from oncue.rules.parsing.test_section import TIMED_KEYS
from oncue.rules.schema import fragments
from oncue.rules.schema.fragments import NAME, Schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REPLACED = frozenset(("integer", "number", "boolean", "array"))
_ATTRIBUTE = "[a-z0-9]{1,60}"  # as of fields.py
_WITH_PATTERNS = ("join", "sequence", "absent")  # their patterns may have `on`
_PATTERN_TYPES: Mapping[str, Schema] = {key: {"$ref": f"#/$defs/{key}"} for key in PATTERN_KEYS}
VARIABLE: Schema = {"type": "string", "pattern": r"^\$\{var:[^{}]+\}$"}


def schema_text(kinds: Mapping[str, type[msgspec.Struct]]) -> bytes:
    """Return the schema as JSON for people."""
    return msgspec.json.format(msgspec.json.encode(rule_file_schema(kinds)), indent=2) + b"\n"


def rule_file_schema(kinds: Mapping[str, type[msgspec.Struct]]) -> Schema:
    """Return the schema. `kinds`: trigger kind -> option Struct."""
    triggers, components = _triggers(kinds)
    members: dict[str, type[AnyOperator | AnyLimiter]] = {**CATALOGUE.members, **LIMITERS}
    parts: dict[str, Schema] = {
        "rule": _mapping(fragments.RULE, RULE_KEYS, ("name", "run"))
        | {"anyOf": [{"required": [key]} for key in ("on", *_WITH_PATTERNS)]},
        "run": _mapping(fragments.RUN, RUN_KEYS),
        "notify": _mapping(fragments.NOTIFY, NOTIFY_KEYS, ("text",)) | {"oneOf": [{"required": [way]} for way in WAYS]},
        "mail": _mapping(fragments.MAIL, MAIL_KEYS, ("to", "from")),
        "retry": _mapping(fragments.RETRY, RETRY_KEYS),
        "limits": _mapping(fragments.LIMITS, LIMIT_KEYS),
        "test": _mapping(fragments.TEST, TEST_KEYS, ("expect",)),
        "timed": _mapping(fragments.TIMED, TIMED_KEYS, ("event",)),
        "expect": _mapping(fragments.EXPECT, EXPECT_KEYS),
        "done": _mapping(fragments.DONE, DONE_KEYS, ("done",)),
        "overdue": _mapping(fragments.OVERDUE, ("overdue",), ("overdue",)),
        "pattern": {"anyOf": [{"type": "string"}, _mapping(_PATTERN_TYPES, PATTERN_KEYS) | {"minProperties": 1}]},
        "trigger": triggers,
        "variable": VARIABLE,
        **_conditions(),
        **{name: _operator(member) for name, member in members.items()},
    }
    parts["rule"]["properties"] |= {name: {"$ref": f"#/$defs/{name}"} for name in members}
    root = {
        "triggers": {"type": "array", "items": {"$ref": "#/$defs/trigger"}},
        "rules": {"type": "array", "items": {"$ref": "#/$defs/rule"}},
    }
    made = _with_variables({**_mapping(root, FILE_KEYS), "$defs": parts | components})
    return {"$schema": DIALECT, "title": "oncue rule file", **made}


def _mapping(types: Mapping[str, Schema], keys: Collection[str], required: Collection[str] = ()) -> Schema:
    """Return the schema of a mapping with these keys and no others."""
    found: Schema = {
        "type": "object",
        "properties": {key: types.get(key, {}) for key in keys},
        "additionalProperties": False,
    }
    return found | ({"required": [*required]} if required else {})


def _operator(member: type[AnyOperator | AnyLimiter]) -> Schema:
    known, name = fragments.OPERATORS, member.name()
    keys = ("key", *member.OPTIONS)
    types = {key: known.get(f"{name}.{key}", known.get(key, {})) for key in keys}
    made = _mapping(types, keys) | {"description": f"{name}: {member.EXAMPLE}"}
    if plain := getattr(member, "PLAIN", ""):
        made["type"] = ["object", *types[plain]["type"]]
    return made


def _conditions() -> dict[str, Schema]:
    """Return the schemas of `on` and `match`."""
    scalar: Schema = {"type": ["string", "number", "boolean", "null"]}
    field, match = {"$ref": "#/$defs/field"}, {"$ref": "#/$defs/match"}
    values = {"type": "array", "items": {}}
    return {
        "field": {
            "anyOf": [
                scalar,
                values,
                _mapping(dict.fromkeys(GROUPS, _group(field)), (*OPERATORS, *GROUPS)),
            ]
        },
        "match": {
            "type": "object",
            "properties": dict.fromkeys(GROUPS, _group(match)),
            "propertyNames": {"pattern": rf"^(data([.\s].*)?|{_ATTRIBUTE})$"},
            "additionalProperties": field,
            "description": "Conditions on the event: {data.size: {gt: 1MB}}",
        },
        "on": {
            "description": "A trigger, a list of triggers, {done: RULE}, {overdue: RULE}, or attributes: {type: ...}",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"$ref": "#/$defs/done"},
                {"$ref": "#/$defs/overdue"},
                {
                    "type": "object",
                    "not": {"anyOf": [{"required": ["done"]}, {"required": ["overdue"]}]},
                    "properties": {"type": field, "source": field, "subject": field},
                    "propertyNames": {"pattern": f"^{_ATTRIBUTE}$"},
                    "additionalProperties": field,
                },
            ],
        },
    }


def _group(member: Schema) -> Schema:
    return {"anyOf": [{"type": "array", "items": member, "minItems": 1}, member]}


def _triggers(kinds: Mapping[str, type[msgspec.Struct]]) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a trigger of any kind, and those that it refers to."""
    structs = [kinds[kind] for kind in kinds]
    made, components = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    options = dict(zip(kinds, made, strict=True))
    for kind, schema in options.items():
        name = schema["$ref"].rpartition("/")[2]
        found = components[name]
        found["properties"] = {"name": NAME, "kind": {"const": kind}, **found["properties"]}
        found["required"] = ["name", "kind", *found.get("required", [])]
    cases = [
        {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": schema}
        for kind, schema in options.items()
    ]
    head: Schema = {
        "type": "object",
        "required": ["name", "kind"],
        "properties": {"name": NAME, "kind": {"enum": list(kinds)}},
        "allOf": cases,
    }
    return head, components


def _with_variables(schema: Any) -> Any:
    """Return the schema with ${var:name} in place of a number, a word or a list."""
    if isinstance(schema, list):
        return [_with_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: value if key in ("enum", "const", "required") else _with_variables(value) for key, value in schema.items()
    }
    kinds = made.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if "enum" in made or (kinds & _REPLACED and "string" not in kinds):
        about = {"description": made.pop("description")} if "description" in made else {}
        return {"anyOf": [made, {"$ref": "#/$defs/variable"}], **about}
    return made
