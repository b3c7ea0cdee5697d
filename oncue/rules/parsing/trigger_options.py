"""Converts a trigger's keys to the option Struct of its kind.

Errors have line and column. Durations and sizes (oncue/quantities.py) are accepted as texts
wherever a field of the Struct is annotated so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from oncue.quantities import DURATION, duration_ms, size_bytes
from oncue.rules.yaml_document import Node, Problems, nearest

_PATH = re.compile(r" - at `\$([^`]*)`$")
_TYPE = re.compile(r"Expected `([^`]*)`, got `[^`]*`")
_NAMES = {"object": "a mapping", "array": "a list", "str": "a text", "int": "a whole number", "float": "a number"}
_NAMES |= {"bool": "true or false", "null": "nothing"}
_OWN = re.compile(r"([a-z_][\w.-]*): ")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def convert(node: Node, skip: set[str], kind: type[msgspec.Struct], problems: Problems, what: str) -> Any:
    """Return the Struct of the mapping without skipped keys.

    None: problems were added.
    """
    before = len(problems.found)
    body = Node({k: v for k, v in node.value.items() if k not in skip}, node.line, node.column)
    body.keys = node.keys
    value = _prepare(body, _info(kind), problems, what)
    if len(problems.found) > before:
        return None
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, TypeError) as e:
        text = str(e)
        found = _PATH.search(text)
        message = _PATH.sub("", text)
        place = _locate(body, found[1]) if found else body
        if wrong := _TYPE.fullmatch(message):
            where = what + (found[1] if found else "")
            problems.add(place, f"{where} is {_in_words(wrong[1])}, not {place.kind()}")
            return None
        if own := _OWN.match(message):  # raised by a Struct's __post_init__, with the key
            place = _locate(place, "." + own[1])
        problems.add(place, f"{what}: {message[:1].lower()}{message[1:]}", getattr(e, "remedy", ""))
        return None


@lru_cache(maxsize=256)
def _info(kind: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(kind)


def _prepare(node: Node, info: inspect.Type, problems: Problems, what: str) -> Any:
    """Return plain values, with quantities as numbers; report unknown keys."""
    quantity, remedy = None, ""
    while isinstance(info, inspect.Metadata):
        quantity = (info.extra or {}).get("quantity", quantity)
        remedy = (info.extra or {}).get("remedy", remedy)
        info = info.type
    if quantity is not None and node.value is not None:
        try:
            return duration_ms(node.value) if quantity == DURATION else size_bytes(node.value)
        except ValueError as e:
            problems.add(node, f"{what}: {e}")
            return 0
    words = _words(info)
    if words and isinstance(node.value, str) and node.value not in words:
        problems.add(node, f"{what} cannot be {node.value[:60]!r}", remedy or nearest(node.value, words))
        return None
    if isinstance(info, inspect.UnionType):
        return _prepare(node, _branch(node, info), problems, what)
    if isinstance(info, inspect.StructType) and isinstance(node.value, dict):
        return _struct(node, info, problems, what)
    if isinstance(info, inspect.DictType) and isinstance(node.value, dict):
        return {k: _prepare(v, info.value_type, problems, f"{what}.{k}") for k, v in node.value.items()}
    item = getattr(info, "item_type", None)
    if isinstance(node.value, list) and item is not None:
        return [_prepare(v, item, problems, what) for v in node.value]
    return node.plain()


def _struct(node: Node, info: inspect.StructType, problems: Problems, what: str) -> dict[str, Any]:
    fields = {field.encode_name: field for field in info.fields}
    tag = info.tag_field
    out: dict[str, Any] = {}
    for key, value in node.value.items():
        if key == tag:
            out[key] = value.plain()
        elif key in fields:
            out[key] = _prepare(value, fields[key].type, problems, f"{what}.{key}")
        elif info.forbid_unknown_fields:
            problems.add(node.at_key(key), f"{what} has no key {key!r}", nearest(key, fields))
    for key, field in fields.items():
        if field.required and key not in node.value:
            problems.add(node, f"{what} lacks the key {key!r}")
    return out


def _words(info: inspect.Type) -> list[str]:
    """Return the texts that a value may have, if they are enumerated."""
    members = info.types if isinstance(info, inspect.UnionType) else (info,)
    if any(isinstance(m, (inspect.StrType, inspect.AnyType, inspect.Metadata)) for m in members):
        return []
    return [v for m in members if isinstance(m, inspect.LiteralType) for v in m.values if isinstance(v, str)]


def _branch(node: Node, info: inspect.UnionType) -> inspect.Type:
    """Return the member of a union that fits the node."""
    for member in info.types:
        inner, quantity = member, False
        while isinstance(inner, inspect.Metadata):
            quantity = quantity or bool((inner.extra or {}).get("quantity"))
            inner = inner.type
        value = node.value
        if value is None:
            fits = isinstance(inner, inspect.NoneType)
        elif isinstance(value, dict):
            fits = isinstance(inner, (inspect.StructType, inspect.DictType))
        elif isinstance(value, list):
            fits = getattr(inner, "item_type", None) is not None
        else:
            fits = quantity
        if fits:
            return member
    return inspect.AnyType()


def _in_words(types: str) -> str:
    """Return msgspec's `object | null` in plain words, without `null`."""
    names = types.split(" | ")
    named = [n for n in names if n != "null"] or names
    return " or ".join(dict.fromkeys(_NAMES.get(n, n) for n in named))


def _locate(node: Node, path: str) -> Node:
    for key, index in _STEP.findall(path):
        if key and isinstance(node.value, dict) and key in node.value:
            node = node.value[key]
        elif index and isinstance(node.value, list) and int(index) < len(node.value):
            node = node.value[int(index)]
    return node
