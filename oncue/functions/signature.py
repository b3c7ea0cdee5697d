"""Parameters of a function, to check calls in rule files before they are made.

Only certain results count. A wrapper (functools.wraps) that passes on *args and **kwargs may add
arguments of its own, so its own signature is used, unless its source shows that it passes on
exactly what it gets.
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

MAX_PARAMETERS = 1_000
_WORDS = ("positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword")
_KINDS: dict[Any, Any] = {getattr(inspect.Parameter, word.upper()): word for word in _WORDS}


def parameters_of(fn: Callable[..., Any]) -> tuple[Parameter, ...] | None:
    """Return the parameters of a callable, or None if unknown (some builtins)."""
    while (inner := _forwards_to(fn)) is not None:
        fn = inner
    try:
        found = inspect.signature(fn, follow_wrapped=False).parameters.values()
    except (ValueError, TypeError):
        return None
    if len(found) > MAX_PARAMETERS:
        return None
    return tuple(Parameter(p.name, _KINDS[p.kind], _required(p)) for p in found)


def _required(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def _forwards_to(fn: Any) -> Any:
    """Return the callable that certainly gets this one's arguments, or None."""
    if isinstance(fn, functools._lru_cache_wrapper):
        return fn.__wrapped__
    if not isinstance(fn, types.FunctionType) or not hasattr(fn, "__wrapped__") or hasattr(fn, "__signature__"):
        return None
    return fn.__wrapped__ if _only_forwards(fn) else None


def _only_forwards(wrapper: types.FunctionType) -> bool:
    """True if it uses *args and **kwargs only to call the wrapped function."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(wrapper.__code__)))
    except (OSError, SyntaxError, ValueError, RecursionError):  # a prompt, a lambda within a line
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
    """Yield the wrapper's variables that hold the wrapped function."""
    for name, cell in zip(wrapper.__code__.co_freevars, wrapper.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            if cell.cell_contents is wrapper.__wrapped__:
                yield name


def _is_call(node: ast.AST, functions: set[str], args: str, kwargs: str) -> bool:
    """True for f(*args, **kwargs) without other arguments."""
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
    """Return the names bound at a module's top level.

    None if a star import may bind more.
    """
    statements = parsed(text).body
    if any(isinstance(s, ast.ImportFrom) and s.names[0].name == "*" for s in statements):
        return None
    return list(dict.fromkeys(name for s in statements for name in sorted(bound_names(s))))


def parameters_in_text(text: str, name: str) -> tuple[Parameter, ...] | None:
    """Return the parameters of a function defined at a module's top level.

    None if that needs the module to run: the name is decorated, not a `def`, bound more than once,
    or perhaps bound by a star import.
    """
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
