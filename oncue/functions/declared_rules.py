"""Rules in Python: `@oncue.rule(on=oncue.file(...))` above a function.

The decorator only notes what it was given, while `oncue deploy FILE.py` reads the file. Elsewhere,
as on a worker, it does nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class DeclaredTrigger(NamedTuple):
    """A trigger: `oncue.file(...)` or `oncue.webhook(...)`."""

    kind: str
    name: str  # "": it is named after its first rule
    options: dict[str, Any]
    line: int


class DeclaredRule(NamedTuple):
    """A rule above a function.

    `keys` are those of a rule file, of the rule or of its `run`.
    """

    name: str
    on: Any
    function: str
    keys: dict[str, Any]
    file: str
    line: int


_collected: list[DeclaredRule] | None = None


@contextlib.contextmanager
def collecting() -> Iterator[list[DeclaredRule]]:
    """Collect the rules of files that are imported in this context."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def rule(*, on: Any = None, name: str = "", **keys: Any) -> Callable[[F], F]:
    """Declare a rule that runs the function below. The function stays as it is.

    on: oncue.file(...), oncue.webhook(...), oncue.done(...), a trigger's name, a list of these, or
    attributes of events as in a rule file. Rules whose patterns have `on` (join ...) need none.
    name: of the rule; default: the function's.
    keys: the keys of a rule (match, when, retry, batch ...) and of its `run` (endpoint, args ...).

        @oncue.rule(on=oncue.file("/data"), endpoint="polaris", args={"path": "${data.path}"})
        def reconstruct(path): ...
    """
    line = sys._getframe(1).f_lineno

    def declare(fn: F) -> F:
        if _collected is not None:
            file = getattr(getattr(fn, "__code__", None), "co_filename", "")
            qualname = getattr(fn, "__qualname__", "")
            _collected.append(DeclaredRule(name or qualname, on, qualname, keys, file, line))
        return fn

    return declare


def file(path: str, *, name: str = "", **options: Any) -> DeclaredTrigger:
    """Return a trigger of files: the folder, and the options of `kind: file`."""
    return DeclaredTrigger("file", name, {"path": path, **options}, sys._getframe(1).f_lineno)


def webhook(*, name: str = "", **options: Any) -> DeclaredTrigger:
    """Return a trigger of HTTP requests, with the options of `kind: webhook`."""
    return DeclaredTrigger("webhook", name, options, sys._getframe(1).f_lineno)


def done(*rules: str, state: Any = None) -> dict[str, Any]:
    """Return the pattern of outcomes of these rules, in these states."""
    return {"done": list(rules)} | ({} if state is None else {"state": state})
