"""Functions under functools.singledispatch, and methods under singledispatchmethod, where a worker cannot import them: they
travel as what was registered with them. The weak references and caches that they hold are made anew."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

_example: Any = functools.singledispatch(lambda _: None)


def dispatches(obj: Any) -> bool:
    return type(obj) is types.FunctionType and obj.__code__ is _example.__code__


def reduced(obj: Any) -> Any:
    """First the function, then what it chooses from, which may reach the function again."""
    return shell, (), (dict(obj.registry), obj.__wrapped__), None, None, fill


def shell() -> Any:
    return functools.singledispatch(_unfilled)


def fill(made: Any, given: tuple[dict[type, Callable[..., Any]], Callable[..., Any]]) -> None:
    registry, wrapped = given
    for kind, function in registry.items():
        made.register(kind, function)
    functools.update_wrapper(made, wrapped)


def reduced_method(method: functools.singledispatchmethod[Any]) -> Any:
    """From Python 3.13 on it has a cache with weak references of its own."""
    return method_of, (method.dispatcher,)


def method_of(dispatcher: Any) -> functools.singledispatchmethod[Any]:
    made = functools.singledispatchmethod(dispatcher.__wrapped__)
    made.dispatcher = dispatcher
    return made


def _unfilled(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("a function was called while it was being unpickled")
