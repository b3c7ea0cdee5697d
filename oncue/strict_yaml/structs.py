"""Converts mappings of a YAML document to option Structs.

Errors have line and column, and all of a mapping are reported at once. Quantities
(oncue/quantities.py) are accepted as texts wherever a field of the Struct is annotated so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from oncue.quantities import DURATION, RATE, SIZE, WALLTIME, duration_ms, parse_rate, size_bytes, walltime_ms
from oncue.strict_yaml.document import Node, Problems, kind_name, nearest

QUANTITIES: Mapping[str, Callable[[Any], Any]] = {
    DURATION: duration_ms,
    SIZE: size_bytes,
    RATE: lambda value: msgspec.structs.asdict(parse_rate(value)),
    WALLTIME: walltime_ms,
}
SCALARS: Mapping[type[inspect.Type], type] = {
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.BoolType: bool,
}
_WRONG = object()  # a value with a problem: it is left out, and the rest is checked
_PATH = re.compile(r" - at `\$([^`]*)`$")
_TYPE = re.compile(r"Expected `([^`]*)`, got `[^`]*`")
_LIMIT = re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)")
_LIMITS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_NAMES = {"object": "a mapping", "array": "a list", "str": "a text", "int": "a whole number", "float": "a number"}
_NAMES |= {"bool": "true or false", "null": "nothing"}
_OWN = re.compile(r"([a-z_][\w.-]*): ")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def convert(node: Node, skip: set[str], kind: type[msgspec.Struct], problems: Problems, what: str = "") -> Any:
    """Return the Struct of the mapping without skipped keys.

    None: problems were added. `what` names the mapping in messages; "" is the whole file.
    """
    before = len(problems.found)
    body = Node({k: v for k, v in node.value.items() if k not in skip}, node.line, node.column)
    body.keys = node.keys
    value = _prepare(body, _info(kind), problems, what)
    while value is not _WRONG:
        try:
            made = msgspec.convert(value, kind)
        except (msgspec.ValidationError, ValueError, TypeError) as e:
            if not _report(e, body, value, problems, what, first=len(problems.found) == before):
                return None
        else:
            return made if len(problems.found) == before else None
    return None


def _report(e: Exception, body: Node, value: Any, problems: Problems, what: str, first: bool) -> bool:
    """Add a problem for what msgspec refused, and remove it from `value`.

    Return True if the rest can be checked. `first`: no problem was found before; what a Struct
    itself refuses may be due to a value that was left out.
    """
    text = str(e)
    found = _PATH.search(text)
    message = _PATH.sub("", text)
    path = found[1] if found else ""
    place = _locate(body, path)
    if wrong := _TYPE.fullmatch(message):
        problems.add(place, f"{_named(what + path)} is {_in_words(wrong[1])}, not {place.kind()}")
        return _remove(value, path)
    if limit := _LIMIT.fullmatch(message):
        problems.add(place, f"{_named(what + path)} is {place.value}; it takes {_LIMITS[limit[1]]} {limit[2]}")
        return _remove(value, path)
    if not first and message.startswith("Object missing required field"):
        return False  # it was left out
    if own := _OWN.match(message):  # raised by a Struct's __post_init__, with the key
        place, path = _locate(place, "." + own[1]), f"{path}.{own[1]}"
    if first or not isinstance(e.__cause__, ValueError | TypeError):
        problems.add(
            place,
            f"{_named(what + (found[1] if found else ''))}: {message[:1].lower()}{message[1:]}",
            getattr(e.__cause__ or e, "remedy", ""),
        )
    return _remove(value, path)


def _named(what: str) -> str:
    """Return the name of a value in the file: `blocks.max`, or the file's own."""
    return what.removeprefix(".") or "the file"


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
            return QUANTITIES[quantity](node.value)
        except ValueError as e:
            problems.add(node, f"{what}: {e}")
            return _WRONG
    words = _words(info)
    if words and isinstance(node.value, str) and node.value not in words:
        problems.add(node, f"{what} cannot be {node.value[:60]!r}", remedy or nearest(node.value, words))
        return _WRONG
    if isinstance(info, inspect.UnionType):
        if (tagged := _tagged(info)) and isinstance(node.value, dict):
            return _tagged_struct(node, tagged, problems, what)
        return _prepare(node, _branch(node, info), problems, what)
    if isinstance(info, inspect.StructType) and isinstance(node.value, dict):
        return _struct(node, info, problems, what)
    if isinstance(info, inspect.DictType) and isinstance(node.value, dict):
        members = {k: _member(v, info.value_type, problems, _named(f"{what}.{k}")) for k, v in node.value.items()}
        return {k: v for k, v in members.items() if v is not _WRONG}
    item = getattr(info, "item_type", None)
    if isinstance(node.value, list) and item is not None:
        return [v for v in (_prepare(v, item, problems, what) for v in node.value) if v is not _WRONG]
    return node.plain()


def _member(node: Node, info: inspect.Type, problems: Problems, what: str) -> Any:
    """Return a value of a mapping with free keys.

    It is checked here, since msgspec's errors do not say which key it was.
    """
    types = info.types if isinstance(info, inspect.UnionType) else (info,)
    names = [SCALARS.get(type(t)) for t in types]
    if None not in names and type(node.value) not in [name for name in names if name]:
        words = " or ".join(kind_name(name()) for name in names if name)
        problems.add(node, f"{what} is {words}, not {node.kind()}", "put it in quotes" if str in names else "")
        return _WRONG
    return _prepare(node, info, problems, what)


def _struct(node: Node, info: inspect.StructType, problems: Problems, what: str) -> Any:
    fields = {field.encode_name: field for field in info.fields}
    tag = info.tag_field
    out: dict[str, Any] = {}
    for key, value in node.value.items():
        if key == tag:
            out[key] = value.plain()
        elif key in fields:
            made = _prepare(value, fields[key].type, problems, _named(f"{what}.{key}"))
            if made is not _WRONG:
                out[key] = made
        elif info.forbid_unknown_fields:
            known = getattr(info.cls, "OTHER_WORDS", {}).get(key)
            remedy = f"did you mean {known!r}?" if known else nearest(key, fields)
            problems.add(node.at_key(key), f"{_named(what)} has no key {key!r}", remedy)
    missing = [key for key, field in fields.items() if field.required and key not in node.value]
    for key in missing:
        problems.add(node, f"{_named(what)} lacks the key {key!r}")
    return _WRONG if any(field.required and key not in out for key, field in fields.items()) else out


def _tagged(info: inspect.UnionType) -> dict[str, inspect.StructType]:
    """Return the members of a union of tagged Structs, by their tags."""
    return {str(m.tag): m for m in info.types if isinstance(m, inspect.StructType) and m.tag_field}


def _tagged_struct(node: Node, members: dict[str, inspect.StructType], problems: Problems, what: str) -> Any:
    field = str(next(iter(members.values())).tag_field)
    tag = node.value.get(field)
    if tag is None:
        problems.add(node, f"{_named(what)} lacks the key {field!r}", f"known: {', '.join(members)}")
    elif not isinstance(tag.value, str):
        problems.add(tag, f"{what}.{field} is a text, not {tag.kind()}", f"known: {', '.join(members)}")
    elif tag.value not in members:
        problems.add(tag, f"{what}.{field} cannot be {tag.value[:60]!r}", nearest(tag.value, members))
    else:
        return _struct(node, members[tag.value], problems, what)
    return _WRONG


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


def _remove(value: Any, path: str) -> bool:
    """Remove the value at a path. Return False if it is not there, or is the whole."""
    steps = [key or int(index) for key, index in _STEP.findall(path)]
    for step in steps[:-1]:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
    try:
        del value[steps[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True
