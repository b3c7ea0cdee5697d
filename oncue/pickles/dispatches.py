"""Pickle functions with functools.singledispatch, and singledispatchmethods.

This is for those that a worker cannot import. The pickle holds the registered functions; weak
references and caches are made anew.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

_example: Any = functools.singledispatch(lambda _: None)


def dispatches(obj: Any) -> bool:
    return type(obj) is types.FunctionType and obj.__code__ is _example.__code__


def reduced(obj: Any) -> Any:
    """Return the reduced value: an empty function, filled with its registry later.

    The registered functions may reach the function itself, so it must exist first.
    """
    return shell, (), (dict(obj.registry), obj.__wrapped__), None, None, fill


def shell() -> Any:
    return functools.singledispatch(_unfilled)


def fill(made: Any, given: tuple[dict[type, Callable[..., Any]], Callable[..., Any]]) -> None:
    registry, wrapped = given
    for kind, function in registry.items():
        made.register(kind, function)
    functools.update_wrapper(made, wrapped)


def reduced_method(method: functools.singledispatchmethod[Any]) -> Any:
    """Return the reduced value, without the weak references since Python 3.13."""
    return method_of, (method.dispatcher,)


def method_of(dispatcher: Any) -> functools.singledispatchmethod[Any]:
    made = functools.singledispatchmethod(dispatcher.__wrapped__)
    made.dispatcher = dispatcher
    return made


def _unfilled(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("a function was called while it was being unpickled")
