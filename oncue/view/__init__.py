"""The server's database of answers, derived from the log. See view.py."""

from __future__ import annotations

from oncue.view.lists import TaskFilter
from oncue.view.lookups import ClaimRow, DeadRow, EventRow, SkippedRow
from oncue.view.projector import Applied
from oncue.view.queries import OpenRow
from oncue.view.schema import ViewError
from oncue.view.tasks import Closing
from oncue.view.view import View

__all__ = [
    "Applied",
    "ClaimRow",
    "Closing",
    "DeadRow",
    "EventRow",
    "OpenRow",
    "SkippedRow",
    "TaskFilter",
    "View",
    "ViewError",
]
