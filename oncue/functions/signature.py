"""What a caller of a function must give it, and may: for checking calls that are written down long before they are made.

Only what is certain is told. What wraps a function (functools.wraps) and hands on *args and **kwargs may well add some of its
own, so it counts as what its own signature says; unless its source shows that it hands on just what it gets.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

from oncue.functions.source import bound_names, parsed
from oncue.protocol.records import Parameter

MOST = 1_000  # parameters
_WORDS = ("positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword")
_KINDS: dict[Any, Any] = {getattr(inspect.Parameter, word.upper()): word for word in _WORDS}


def parameters_of(fn: Callable[..., Any]) -> tuple[Parameter, ...] | None:
    """None: not known (some builtins)."""
    while (inner := _handed_on(fn)) is not None:
        fn = inner
    try:
        found = inspect.signature(fn, follow_wrapped=False).parameters.values()
    except (ValueError, TypeError):
        return None
    if len(found) > MOST:
        return None
    return tuple(Parameter(p.name, _KINDS[p.kind], _required(p)) for p in found)


def _required(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def _handed_on(fn: Any) -> Any:
    """The callable that gets just what this one gets; None where that is not certain."""
    if isinstance(fn, functools._lru_cache_wrapper):
        return fn.__wrapped__
    if not isinstance(fn, types.FunctionType) or not hasattr(fn, "__wrapped__") or hasattr(fn, "__signature__"):
        return None
    return fn.__wrapped__ if _only_hands_on(fn) else None


def _only_hands_on(wrapper: types.FunctionType) -> bool:
    """Whether all that its source does with its *args and **kwargs is to call what it wraps with both."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(wrapper.__code__)))
    except (OSError, SyntaxError, ValueError, RecursionError):  # a prompt, a lambda in the middle of a line
        return False
    node = tree.body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    a = node.args
    if a.posonlyargs or a.args or a.kwonlyargs or a.vararg is None or a.kwarg is None:
        return False
    both, wrapped = (a.vararg.arg, a.kwarg.arg), set(_names_of(wrapper))
    inside = [n for statement in node.body for n in ast.walk(statement)]
    calls = sum(_is_call(n, wrapped, *both) for n in inside)
    uses = sum(isinstance(n, ast.Name) and n.id in both for n in inside)
    return calls > 0 and uses == 2 * calls


def _names_of(wrapper: Any) -> Iterator[str]:
    """By which the wrapper knows what it wraps."""
    for name, cell in zip(wrapper.__code__.co_freevars, wrapper.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            if cell.cell_contents is wrapper.__wrapped__:
                yield name


def _is_call(node: ast.AST, functions: set[str], args: str, kwargs: str) -> bool:
    """f(*args, **kwargs), and nothing beside."""
    match node:
        case ast.Call(
            func=ast.Name(id=name),
            args=[ast.Starred(value=ast.Name(id=a))],
            keywords=[ast.keyword(arg=None, value=ast.Name(id=k))],
        ):
            return name in functions and (a, k) == (args, kwargs)
    return False


# ---------------------------------------------------------------- by the text alone


def names_in_text(text: str) -> list[str] | None:
    """All that the text of a module binds at its top level; None where a star import may bind more."""
    statements = parsed(text).body
    if any(isinstance(s, ast.ImportFrom) and s.names[0].name == "*" for s in statements):
        return None
    return list(dict.fromkeys(name for s in statements for name in sorted(bound_names(s))))


def parameters_in_text(text: str, name: str) -> tuple[Parameter, ...] | None:
    """Of the function that the text of a module defines at its top level; None for what cannot be told without running it:
    what is decorated, made in another way, bound more than once, or bound by a star import perhaps."""
    binding = [s for s in parsed(text).body if name in bound_names(s)]
    if len(binding) != 1 or names_in_text(text) is None:
        return None
    found = binding[0]
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) or found.decorator_list:
        return None
    return _declared(found.args)


def _declared(a: ast.arguments) -> tuple[Parameter, ...]:
    plain = [*a.posonlyargs, *a.args]
    needed = len(plain) - len(a.defaults)
    found = [
        Parameter(p.arg, "positional_only" if i < len(a.posonlyargs) else "positional_or_keyword", i < needed)
        for i, p in enumerate(plain)
    ]
    if a.vararg:
        found.append(Parameter(a.vararg.arg, "var_positional"))
    found += [
        Parameter(p.arg, "keyword_only", default is None)
        for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    if a.kwarg:
        found.append(Parameter(a.kwarg.arg, "var_keyword"))
    return tuple(found)
