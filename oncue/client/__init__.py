"""Python client of an oncue server."""

from __future__ import annotations

from oncue.client.async_client import AsyncClient
from oncue.client.bound import BoundClient
from oncue.client.client import Client
from oncue.client.gather import as_completed
from oncue.client.options import Options, Retry
from oncue.client.task import Task

__all__ = ["AsyncClient", "BoundClient", "Client", "Options", "Retry", "Task", "as_completed"]
