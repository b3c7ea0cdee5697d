"""The Python client."""

from __future__ import annotations

from oncue.client.batch import Options, Retry
from oncue.client.bound import BoundClient
from oncue.client.client import Client, as_completed
from oncue.client.task import Task

__all__ = ["BoundClient", "Client", "Options", "Retry", "Task", "as_completed"]
