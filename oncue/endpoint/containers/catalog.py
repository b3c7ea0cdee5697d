"""Catalogue of container runtimes, by kind.

A new one is its module and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from oncue.endpoint.containers.base import ContainerRuntime
from oncue.endpoint.containers.host import HostRuntime

NONE = "none"

CONTAINERS: dict[str, Callable[[], ContainerRuntime]] = {
    NONE: HostRuntime,
}
