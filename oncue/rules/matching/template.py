"""Arguments with `${path}` in them, compiled once to closures.

"${data.size}"            the value, with its type
"${event}"                the whole event as a mapping
"${id}", "${event.id}"    an attribute of the event
"scan ${data.n} of ${x}"  text; values that are not texts as JSON
"${data.path | stem}"     filters (filters.py), and arithmetic (expression.py)
"$${"                     the characters ${
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.rules.matching.expression import (
    MAX_CHARS,
    NO_COST,
    Cost,
    Expression,
    Path,
    compile_expression,
    cost,
    outside_quotes,
    parse,
)
from oncue.rules.matching.fields import MISSING, getter
from oncue.rules.matching.filters import NoValue, as_text
from oncue.strict_yaml.document import Node, Problems

MOST_UNCLOSED = 16  # references of a text whose quotes are not closed
Render = Callable[[Any], Any]  # of an Event; in a stateful rule of EventRows (event_rows.py)


class Reference(NamedTuple):
    """A compiled ${...}."""

    render: Render
    cost: Cost


Refer = Callable[[str, str], Reference]  # (text, place) -> its Reference. Raises ValueError


class Template:
    """Compiled arguments: `render(event)` returns the value, or raises Invalid.

    `constant`: the value is the same for all events. `cost` (of its ${...}) and `items` (other
    values) are for its cost.
    """

    __slots__ = ("constant", "cost", "items", "render")

    def __init__(self, render: Render, constant: bool, cost: Cost = NO_COST, items: int = 1) -> None:
        self.render, self.constant, self.cost, self.items = render, constant, cost, items


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
    constant = all(p.constant for p in parts)
    return Template(render, constant, total(p.cost for p in parts), 1 + sum(p.items for p in parts))


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    found = NO_COST
    for each in costs:
        found = each if found is NO_COST else found if each is NO_COST else found.plus(each)
    return found


def _text(text: str, place: str, refer: Refer) -> Template:
    pieces = [piece if isinstance(piece, str) else refer(piece[0], place) for piece in split(text)]
    if len(pieces) == 1 and isinstance(pieces[0], Reference):  # the usual form
        return Template(pieces[0].render, False, pieces[0].cost)
    all_costs = total(piece.cost for piece in pieces if isinstance(piece, Reference))
    if len(pieces) == 1:
        only = pieces[0]
        return Template(lambda event: only, True)
    renders = [piece if isinstance(piece, str) else piece.render for piece in pieces]

    def joined(event: Any) -> str:
        return "".join([piece if isinstance(piece, str) else as_text(piece(event)) for piece in renders])

    return Template(joined, False, all_costs)


def parsed(text: str) -> list[Expression]:
    """Return the expressions of a text. Raises ValueError."""
    return [parse(piece[0]) for piece in split(text) if isinstance(piece, tuple)]


def split(text: str) -> list[str | tuple[str]]:
    """Split into texts, and references as tuples of one.

    Raises ValueError: a `${` is not closed.
    """
    pieces: list[str | tuple[str]] = []
    literal, at, unclosed = "", 0, 0
    while (start := text.find("${", at)) >= 0:
        if start > at and text[start - 1] == "$":
            literal += text[at : start - 1] + "${"
            at = start + 2
            continue
        end, is_unclosed = _end_of(text, start)
        unclosed += is_unclosed
        if end < 0 or unclosed > MOST_UNCLOSED:
            raise ValueError(f"`${{` is not closed in {text!r}; write $${{ for the characters themselves")
        literal += text[at:start]
        if literal:
            pieces.append(literal)
        literal = ""
        pieces.append((text[start + 2 : end].strip(),))
        at = end + 1
    literal += text[at:]
    return [*pieces, literal] if literal or not pieces else pieces


def _end_of(text: str, start: int) -> tuple[int, bool]:
    """Return the position of the } that closes a ${; -1: there is none.

    A } in the quotes of an argument, such as a pattern with {2}, does not close it. True if such
    quotes are not closed: MAX_CHARS were searched in vain.
    """
    end = text.find("}", start)
    if not {"'", '"'} & set(text[start:end]):
        return end, False
    inside = outside_quotes(text[start : start + MAX_CHARS], 2)
    quoted = next((at for at, char in inside if char == "}"), -1)
    return (start + quoted, False) if quoted >= 0 else (end, True)


def whole(event: Event) -> dict[str, Any]:
    """Return the event as a mapping in CloudEvents JSON form."""
    out: dict[str, Any] = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    for name in ("subject", "time", "datacontenttype", "dataschema", "data"):
        value = getattr(event, name)
        if value is not None:
            out[name] = value
    return out | event.extensions


def reference(text: str, place: str) -> Reference:
    """Compile an expression of one event. Raises ValueError."""
    expression = parse(text)
    if isinstance(expression, Path):
        return Reference(_required(expression.text, place), cost(expression))
    return Reference(checked(expression, place, _optional), cost(expression))


def checked(expression: Expression, place: str, atom: Callable[[str], Render]) -> Render:
    """Return a function source -> value that raises Invalid, with the place."""
    get = compile_expression(expression, atom)

    def render(source: Any) -> Any:
        try:
            value = get(source)
        except ValueError as e:
            raise Invalid(f"{place}: {e}") from None
        if type(value) is NoValue:
            raise Invalid(f"{place}: {value.why}", remedy=value.remedy)
        return value

    return render


def _path_getter(path: str) -> tuple[str, Render]:
    """Return the path in short, and the function that gets its value, or MISSING."""
    if path.startswith("secret:"):
        raise ValueError("secrets are for triggers; a function gets its own where it runs")
    # As in CEL, the event's own attributes may be named through `event`.
    path = path.removeprefix("event.")
    return path, whole if path == "event" else getter(path)


def _required(written: str, place: str) -> Render:
    path, get = _path_getter(written)

    def render(event: Event) -> Any:
        value = get(event)
        if value is MISSING:
            missing = _missing(path)
            raise Invalid(f"{place}: {missing.why}", remedy=missing.remedy)
        return value

    return render


def _optional(written: str) -> Render:
    path, get = _path_getter(written)
    missing = _missing(path)

    def render(event: Event) -> Any:
        value = get(event)
        return missing if value is MISSING else value

    return render


def _missing(path: str) -> NoValue:
    return NoValue(f"the event has no {path}", f"match on {path}: {{exists: true}}, or send it")
