"""Functions under functools.lru_cache and functools.cache, where a worker cannot import them: they travel as the function
and the cache's parameters, and get a fresh cache there. So do cached properties, which hold a lock up to Python 3.11."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def importable(cached: Any) -> bool:
    """Whether a worker finds it by its name."""
    module, found = getattr(cached, "__module__", None), None
    if module and module != "__main__":
        found = sys.modules.get(module)
        for part in getattr(cached, "__qualname__", "").split("."):
            found = getattr(found, part, None)
    return found is cached


def reduced(cached: Any) -> Any:
    """First the cache, then what it is of: a function that calls itself reaches itself through its cache."""
    parameters = cached.cache_parameters()
    return shell, (parameters["maxsize"], parameters["typed"]), cached.__wrapped__, None, None, fill


def shell(maxsize: int | None, typed: bool) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    inner: Callable[..., Any] = _unfilled

    def take(function: Callable[..., Any]) -> None:
        nonlocal inner
        inner = function

    made = functools.lru_cache(maxsize, typed)(call)
    made.oncue_take = take  # type: ignore[attr-defined]
    return made


def fill(made: Any, function: Callable[..., Any]) -> None:
    made.oncue_take(function)
    del made.oncue_take
    functools.update_wrapper(made, function)


def reduced_property(cached: functools.cached_property[Any]) -> Any:
    state = {name: value for name, value in vars(cached).items() if name not in ("func", "lock")}
    return functools.cached_property, (cached.func,), state


def _unfilled(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("a cached function was called while it was being unpickled")
