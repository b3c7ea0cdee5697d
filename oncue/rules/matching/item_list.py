"""ItemList: the list of `for_each`, and ${item} in the arguments of its tasks."""

from __future__ import annotations

from typing import Any, NamedTuple

from oncue.errors import Invalid
from oncue.rules.matching.expression import cost, parse, paths_of
from oncue.rules.matching.fields import MISSING, parse_path, step_into
from oncue.rules.matching.filters import NoValue, as_text
from oncue.rules.matching.template import Refer, Reference, Render, Template, checked, compile_args, split
from oncue.strict_yaml.document import Node, Problems

MOST_ITEMS = 10_000  # tasks of one firing
EXAMPLE = 'for_each: "${data.detectors}"'
TOO_MANY = "split the event at its sender, or give each task a part of the list"


class Item(NamedTuple):
    """One item, and what it is from: an Event, or EventRows of a stateful rule."""

    source: Any
    value: Any


class ItemList(NamedTuple):
    """A compiled `for_each`."""

    text: str  # as written
    template: Template

    def items(self, source: Any) -> list[Item]:
        """Return the items for an Event or EventRows.

        Raises Invalid: the value is not a list, or too long.
        """
        value = self.template.render(source)
        if not isinstance(value, list):
            raise Invalid(
                f"for_each: {self.text} is not a list but {as_text(value)[:60]!r}",
                remedy="send a list, or make one: ${data.names | split(',')}",
            )
        check_number(len(value), self.text)
        return [Item(source, each) for each in value]


def check_number(tasks: int, text: str) -> None:
    """Raise Invalid if one firing would make too many tasks."""
    if tasks > MOST_ITEMS:
        raise Invalid(
            f"for_each: {text} has {tasks:,} items; one event makes {MOST_ITEMS:,} tasks at most", remedy=TOO_MANY
        )


def parse_for_each(node: Node, problems: Problems, refer: Refer) -> ItemList | None:
    """Parse `for_each`: one ${...} whose value is a list, or a list."""
    if isinstance(node.value, list):
        if not 0 < len(node.value) <= MOST_ITEMS:
            problems.add(node, f"`for_each` has {len(node.value):,} items; it takes 1 to {MOST_ITEMS:,}")
    elif not isinstance(node.value, str) or not _is_reference(node.value):
        problems.add(node, "`for_each` is a list, or one ${...} whose value is a list", EXAMPLE)
        return None
    text = node.value if isinstance(node.value, str) else "the list"
    return ItemList(text, compile_args(node, problems, "for_each", refer))


def _is_reference(text: str) -> bool:
    """Return True for a text that is one ${...}.

    Also for a broken one: `compile_args` says what is wrong with it.
    """
    try:
        pieces = split(text)
    except ValueError:
        return True
    return len(pieces) == 1 and isinstance(pieces[0], tuple)


def refer_to_item(refer: Refer) -> Refer:
    """Return a Refer for Items: ${item} and ${item.PATH}, and what `refer` knows."""

    def find(text: str, place: str) -> Reference:
        expression = parse(text)
        paths = paths_of(expression)
        of_item = [path for path in paths if path.partition(".")[0] == "item"]
        if not of_item:
            found = refer(text, place)
            return Reference(lambda item: found.render(item.source), found.cost)
        if len(of_item) < len(paths):
            raise ValueError(f"${{{text}}} is of the item and of the event: write a ${{...}} for each of them")
        return Reference(checked(expression, place, _of_item), cost(expression))

    return find


def _of_item(path: str) -> Render:
    """Return the function that gets a part of an item. Raises ValueError."""
    keys = parse_path("data" + path.removeprefix("item"))[1:]
    missing = NoValue(f"an item has no {path.removeprefix('item.')}", f"send it, or add | default(...) to ${{{path}}}")

    def get(item: Item) -> Any:
        value = item.value
        for key in keys:
            value = value.get(key, MISSING) if type(value) is dict else step_into(value, key)
            if value is MISSING:
                return missing
        return value

    return get
