"""Arguments with `${path}` in them, compiled once to closures.

"${data.size}"            the value, with its type
"${event}"                the whole event as a mapping
"${id}", "${event.id}"    an attribute of the event
"scan ${data.n} of ${x}"  text; values that are not texts as JSON
"${data.path | stem}"     filters: name, stem, suffix, parent of a path
"$${"                     the characters ${
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.fields import MISSING, getter
from oncue.rules.yaml_document import Node, Problems, nearest

Render = Callable[[Any], Any]  # of an Event; in a stateful rule of EventRows (event_rows.py)
Refer = Callable[[str, str], Render]  # (reference, place) -> its Render. Raises ValueError
FILTERS: dict[str, Callable[[PurePosixPath], str]] = {
    "name": lambda path: path.name,
    "stem": lambda path: path.stem,
    "suffix": lambda path: path.suffix,
    "parent": lambda path: str(path.parent),
}


class Template:
    """Compiled arguments: `render(event)` returns the value, or raises Invalid.

    `constant`: the value is the same for all events. `references` (${...}), `filters` and `items`
    (other values) are for its cost.
    """

    __slots__ = ("constant", "filters", "items", "references", "render")

    def __init__(self, render: Render, constant: bool, references: int = 0, filters: int = 0, items: int = 1) -> None:
        self.render, self.constant = render, constant
        self.references, self.filters, self.items = references, filters, items


def compile_args(node: Node, problems: Problems, place: str = "args", refer: Refer | None = None) -> Template:
    """Compile a tree of arguments.

    `refer` resolves ${...}; the default is a path into the event. Errors go to `problems` with
    their positions.
    """
    value = node.value
    if isinstance(value, dict):
        return _mapping({k: compile_args(v, problems, f"{place}.{k}", refer) for k, v in value.items()})
    if isinstance(value, list):
        return _list([compile_args(v, problems, f"{place}[{i}]", refer) for i, v in enumerate(value)])
    if not isinstance(value, str) or "${" not in value:
        return Template(lambda event: value, True)
    try:
        return _text(value, place, refer or reference)
    except ValueError as e:
        problems.add(node, f"{place}: {e}")
        return Template(lambda event: value, True)


def _mapping(parts: dict[str, Template]) -> Template:
    items = [(key, part.render) for key, part in parts.items()]
    return _group(lambda event: {k: r(event) for k, r in items}, list(parts.values()))


def _list(parts: list[Template]) -> Template:
    renders = [part.render for part in parts]
    return _group(lambda event: [r(event) for r in renders], parts)


def _group(render: Render, parts: list[Template]) -> Template:
    return Template(
        render,
        all(p.constant for p in parts),
        sum(p.references for p in parts),
        sum(p.filters for p in parts),
        1 + sum(p.items for p in parts),
    )


def _text(text: str, place: str, refer: Refer) -> Template:
    pieces = split(text)
    renders = [piece if isinstance(piece, str) else refer(piece[0], place) for piece in pieces]
    counts = (
        len([p for p in pieces if isinstance(p, tuple)]),
        sum(p[0].count("|") for p in pieces if isinstance(p, tuple)),
    )
    if len(renders) == 1:
        only = renders[0]
        return Template(lambda event: only, True) if isinstance(only, str) else Template(only, False, *counts)

    def joined(event: Any) -> str:
        return "".join([piece if isinstance(piece, str) else as_text(piece(event)) for piece in renders])

    return Template(joined, False, *counts)


def split(text: str) -> list[str | tuple[str]]:
    """Split into texts, and references as tuples of one.

    Raises ValueError: a `${` is not closed.
    """
    pieces: list[str | tuple[str]] = []
    literal, at = "", 0
    while (start := text.find("${", at)) >= 0:
        if start > at and text[start - 1] == "$":
            literal += text[at : start - 1] + "${"
            at = start + 2
            continue
        end = text.find("}", start)
        if end < 0:
            raise ValueError(f"`${{` is not closed in {text!r}; write $${{ for the characters themselves")
        literal += text[at:start]
        if literal:
            pieces.append(literal)
        literal = ""
        pieces.append((text[start + 2 : end].strip(),))
        at = end + 1
    literal += text[at:]
    return [*pieces, literal] if literal or not pieces else pieces


def as_text(value: Any) -> str:
    """Return a value as part of a text: texts unchanged, other values as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def whole(event: Event) -> dict[str, Any]:
    """Return the event as a mapping in CloudEvents JSON form."""
    out: dict[str, Any] = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    for name in ("subject", "time", "datacontenttype", "dataschema", "data"):
        value = getattr(event, name)
        if value is not None:
            out[name] = value
    return out | event.extensions


def reference(text: str, place: str) -> Render:
    """Return a function event -> value of a path after its filters.

    Raises ValueError.
    """
    path, *filters = (part.strip() for part in text.split("|"))
    if path.startswith("secret:"):
        raise ValueError("secrets are for triggers; a function gets its own where it runs")
    for name in filters:
        if name not in FILTERS:
            raise ValueError(f"there is no filter {name!r}: {nearest(name, FILTERS)}")
    # As in CEL, the event's own attributes may be named through `event`.
    path = path.removeprefix("event.")
    get: Render = whole if path == "event" else getter(path)

    def render(event: Event) -> Any:
        value = get(event)
        if value is MISSING:
            raise Invalid(f"{place}: the event has no {path}", remedy=f"match on {path}: {{exists: true}}, or send it")
        for name in filters:
            if not isinstance(value, str):
                raise Invalid(f"{place}: `{name}` is for a text, and {path} is {type(value).__name__}")
            value = FILTERS[name](PurePosixPath(value))
        return value

    return render
