"""Pickle functions with a functools cache, and cached properties.

This is for those that a worker cannot import. The pickle holds the function and the cache's
parameters; the worker makes a fresh cache. Cached properties hold a lock up to Python 3.11, which
is left out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def importable(cached: Any) -> bool:
    """True if a worker can import it by its name."""
    module, found = getattr(cached, "__module__", None), None
    if module and module != "__main__":
        found = sys.modules.get(module)
        for part in getattr(cached, "__qualname__", "").split("."):
            found = getattr(found, part, None)
    return found is cached


def reduced(cached: Any) -> Any:
    """Return the reduced value: an empty cache, then filled with its function.

    A function that calls itself reaches itself through its cache, so that must exist first.
    """
    parameters = cached.cache_parameters()
    return shell, (parameters["maxsize"], parameters["typed"]), cached.__wrapped__, None, None, fill


def shell(maxsize: int | None, typed: bool) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    inner: Callable[..., Any] = _unfilled

    def set_function(function: Callable[..., Any]) -> None:
        nonlocal inner
        inner = function

    made = functools.lru_cache(maxsize, typed)(call)
    made.oncue_set = set_function  # type: ignore[attr-defined]
    return made


def fill(made: Any, function: Callable[..., Any]) -> None:
    made.oncue_set(function)
    del made.oncue_set
    functools.update_wrapper(made, function)


def reduced_property(cached: functools.cached_property[Any]) -> Any:
    state = {name: value for name, value in vars(cached).items() if name not in ("func", "lock")}
    return functools.cached_property, (cached.func,), state


def _unfilled(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("a cached function was called while it was being unpickled")
