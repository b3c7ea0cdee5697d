"""Run Python functions when files arrive, webhooks are called, or you ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oncue.version import __version__

__all__ = ["Client", "OncueExecutor", "__version__", "as_completed"]

if TYPE_CHECKING:
    from oncue.client import Client, as_completed
    from oncue.client.executor import OncueExecutor

_HOMES = {"Client": "oncue.client", "as_completed": "oncue.client", "OncueExecutor": "oncue.client.executor"}


def __getattr__(name: str) -> Any:
    """Import the client on first use, so that workers and agents start without it."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'oncue' has no attribute {name!r}")
