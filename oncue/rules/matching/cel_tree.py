"""Syntax tree of a compiled CEL expression, for the estimate of its cost.

The library gives the tree as a serialized protobuf message, google.api.expr.v1alpha1.CheckedExpr
(cel-spec, proto/cel/expr/syntax.proto). Only the fields that the estimate needs are read. Macros
(all, exists, exists_one, map, filter) are loops in the tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_KEY = re.compile(r"\w+", re.ASCII)


class Constant(NamedTuple):
    """A literal; `text` of a string or bytes, else empty."""

    text: bytes


class Name(NamedTuple):
    name: str


class Select(NamedTuple):
    """operand.field, or has(operand.field)"""

    operand: Tree
    field: str


class CallOf(NamedTuple):
    """A function or operator; a method's target is its first argument."""

    function: str
    args: tuple[Tree, ...]


class ListOf(NamedTuple):
    """A list or map literal, with all of its items, keys and values."""

    items: tuple[Tree, ...]


class Loop(NamedTuple):
    """A macro: `accumulator` becomes `step` for each item of `over`."""

    variables: tuple[str, ...]
    over: Tree
    accumulator: str
    start: Tree
    condition: Tree
    step: Tree
    result: Tree


def paths_of(tree: Tree) -> list[str]:
    """Return the paths into the event that an expression reads: data.meta.size."""
    return list(dict.fromkeys(_paths(tree)))


def _paths(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Select | CallOf) and (path := _path(tree)):
        yield path
    else:
        for part in _parts(tree):
            yield from _paths(part)


def _parts(tree: Tree) -> tuple[Tree, ...]:
    match tree:
        case Select(operand, _):
            return (operand,)
        case CallOf(_, args):
            return args
        case ListOf(items):
            return items
        case Loop():
            return (tree.over, tree.start, tree.condition, tree.step, tree.result)
        case Constant() | Name():
            return ()


def _path(tree: Tree) -> str:
    """Return data.a.b of data.a.b or data["a"].b; "": it is something else."""
    if isinstance(tree, Name):
        return tree.name if tree.name in ("data", "event") else ""
    if isinstance(tree, Select):
        before, key = _path(tree.operand), tree.field
    elif isinstance(tree, CallOf) and tree.function == "_[_]" and isinstance(tree.args[1], Constant):
        before, key = _path(tree.args[0]), tree.args[1].text.decode("utf-8", "replace")
    else:
        return ""
    return f"{before}.{key}" if before and _KEY.fullmatch(key) else ""


Tree = Constant | Name | Select | CallOf | ListOf | Loop
_Value = int | bytes


def parse_tree(serialized: bytes) -> Tree:
    """Return the tree of `Expression.serialize()`.

    Raises ValueError: it has another form.
    """
    try:
        checked = _bytes(_fields(serialized), 2)  # Any.value
        return _tree(_bytes(_fields(checked), 4))  # CheckedExpr.expr
    except (IndexError, KeyError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"the expression is not as expected: {e!r}") from None


def _tree(message: bytes) -> Tree:
    fields = _fields(message)
    if 3 in fields:
        constant = _fields(_bytes(fields, 3))
        return Constant(next((v for found in constant.values() for v in found if isinstance(v, bytes)), b""))
    if 4 in fields:
        return Name(_text(_fields(_bytes(fields, 4)), 1))
    if 5 in fields:
        select = _fields(_bytes(fields, 5))
        return Select(_tree(_bytes(select, 1)), _text(select, 2))
    if 6 in fields:
        call = _fields(_bytes(fields, 6))
        return CallOf(_text(call, 2), tuple(_trees(call, 1)) + tuple(_trees(call, 3)))
    if 7 in fields:
        return ListOf(tuple(_trees(_fields(_bytes(fields, 7)), 1)))
    if 8 in fields:
        entries = [_fields(_raw(entry)) for entry in _fields(_bytes(fields, 8)).get(2, [])]
        return ListOf(tuple(part for entry in entries for number in (3, 4) for part in _trees(entry, number)))
    return _loop(_fields(_bytes(fields, 9)))


def _loop(loop: dict[int, list[_Value]]) -> Loop:
    over, start, condition, step, result = (_tree(_bytes(loop, number)) for number in (2, 4, 5, 6, 7))
    variables = tuple(_text(loop, number) for number in (1, 8) if number in loop)
    return Loop(variables, over, _text(loop, 3), start, condition, step, result)


def _trees(fields: dict[int, list[_Value]], number: int) -> Iterator[Tree]:
    return (_tree(_raw(message)) for message in fields.get(number, []))


def _bytes(fields: dict[int, list[_Value]], number: int) -> bytes:
    return _raw(fields[number][0])


def _text(fields: dict[int, list[_Value]], number: int) -> str:
    return _bytes(fields, number).decode()


def _raw(value: _Value) -> bytes:
    if not isinstance(value, bytes):
        raise KeyError("a message was expected")
    return value


def _fields(message: bytes) -> dict[int, list[_Value]]:
    """Return the fields of a protobuf message by number."""
    found: dict[int, list[_Value]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, value = tag & 7, 0
        if kind == 0:
            value, at = _varint(message, at)
            found.setdefault(tag >> 3, []).append(value)
        else:
            length = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                length, at = _varint(message, at)
            elif not length:
                raise KeyError(f"wire type {kind}")
            # Numbers of fixed width are doubles: their value is not needed.
            found.setdefault(tag >> 3, []).append(message[at : at + length] if kind == 2 else 0)
            at += length
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
