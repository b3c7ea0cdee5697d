"""Properties of a function in a rule file: keys of `run` beside its arguments.

They are those of @oncue.function, for functions that do not know oncue. They take effect where the
function is packed, so they are part of its hash.
"""

from __future__ import annotations

import msgspec

from oncue.quantities import size_bytes
from oncue.rules.parsing.node_values import typed
from oncue.strict_yaml.document import Node, Problems

FUNCTION_KEYS = ("files", "fresh", "memory", "detached")


class FunctionProperties(msgspec.Struct, frozen=True):
    """Properties that a rule file states of a function."""

    files: tuple[str, ...] = ()  # paths or globs, relative to the function's file
    fresh: bool = False
    memory_bytes: int = 0
    detached: bool = False


NO_PROPERTIES = FunctionProperties()


def function_properties(run: Node, function: str, problems: Problems) -> FunctionProperties:
    """Parse the properties of a run. A function that is registered already takes none."""
    stated = [key for key in FUNCTION_KEYS if key in run.value]
    if not stated:
        return NO_PROPERTIES
    if function and ".py:" not in function:
        command = "oncue functions register FILE.PY:NAME --file ... --memory ..."
        problems.add(
            run.at_key(stated[0]),
            f"{function} is a registered function: `{stated[0]}` is said where it is registered",
            f"write file.py:name, or give the properties to `{command}`",
        )
    get = run.value.get
    return FunctionProperties(
        _files(get("files"), problems),
        typed(get("fresh"), bool, "fresh", False, problems),
        _memory(get("memory"), problems),
        typed(get("detached"), bool, "detached", False, problems),
    )


def _files(node: Node | None, problems: Problems) -> tuple[str, ...]:
    if node is None:
        return ()
    items = node.value if isinstance(node.value, list) else [node]
    for item in items:
        if not isinstance(item.value, str) or not item.value.strip():
            problems.add(item, "`files` is a path, a glob, or a list of them", "for example [flat.txt, masks/*.txt]")
    return tuple(str(item.value) for item in items)


def _memory(node: Node | None, problems: Problems) -> int:
    if node is None:
        return 0
    try:
        return size_bytes(node.value)
    except ValueError as e:
        problems.add(node, f"memory: {e}", "for example memory: 2GB")
        return 0
