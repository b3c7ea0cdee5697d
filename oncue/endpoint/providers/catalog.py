"""Catalogue of providers, by kind.

A new provider is its module and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from oncue.endpoint.providers.base import Provider, ProviderContext
from oncue.endpoint.providers.local import LocalProvider

LOCAL = "local"

PROVIDERS: dict[str, Callable[[ProviderContext], Provider]] = {
    LOCAL: LocalProvider,
}
