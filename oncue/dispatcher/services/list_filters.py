"""Filters of lists for a caller, and how far items of a list are counted."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.registry_cache import RegistryCache
from oncue.view import EventFilter, TaskFilter

COUNTED = 10_000  # items; of more, it is only said that there are more
Filters = TypeVar("Filters", TaskFilter, EventFilter)


def visible(caller: Caller, filters: Filters, registry: RegistryCache) -> Filters:
    """Return the filters with an endpoint's id, for what the caller may see.

    `filters.endpoint`: a name or an id. Raises NotFound.
    """
    endpoint = filters.endpoint
    if endpoint:
        endpoint = registry.find_endpoint(caller, endpoint).id
    return msgspec.structs.replace(filters, endpoint=endpoint, owner=caller.only or filters.owner)
